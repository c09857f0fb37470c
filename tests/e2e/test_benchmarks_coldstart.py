"""The cold-start benchmark from its command to its report, with gpt2serve and a small model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from benchmarks.coldstart import __main__ as command
from benchmarks.coldstart import page_cache
from benchmarks.coldstart.figures import COLD, WARM, starts
from benchmarks.coldstart.names import CHECKED, HTTP, PACKED_FIRST
from benchmarks.common import model, results
from benchmarks.common.formats import SAMPLE
from benchmarks.peers import ENGINE_INT8

OURS = (ENGINE_INT8, CHECKED, PACKED_FIRST, HTTP)


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """Has a sample where the model of 124M would be made, without the text that it puts before
    prompts."""
    checkpoint = model.assets_in(tmp_path).checkpoint
    shutil.copytree(SAMPLE, checkpoint)
    config = json.loads((SAMPLE / "config.json").read_text())
    del config["task_specific_params"]
    (checkpoint / "config.json").write_text(json.dumps(config))
    return tmp_path


@pytest.mark.parametrize("options", [[], ["--another-file"]], ids=["dropped", "another-file"])
def test_a_short_run_of_gpt2serve(
    options: list[str],
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(command, "QUICK_ROUNDS", 1)
    # A test does not empty the page cache of the whole machine, even where it may.
    monkeypatch.setattr(page_cache, "_DROP_ALL", cache / "no" / "drop_caches")
    output = cache / "results.json"
    arguments = [
        *options,
        "--quick",
        "--threads",
        "1",
        "--cache",
        str(cache),
        "--output",
        str(output),
    ]
    for name in command.QUICK_NAMES:
        if name not in OURS:
            arguments += ["--skip", name]
    assert command.main(arguments) == 0

    made = results.load(output)
    assert made["rounds"] == 1
    caches = [WARM, COLD] if made["cold_by"] else [WARM]
    assert made["failed"] == {}
    assert made["cold_by"] == "another file" or not options
    assert [(one["system"], one["cache"]) for one in made["starts"]] == [
        (name, cache) for name in OURS for cache in caches
    ]
    for one in made["starts"]:
        _check(one, made["file_bytes"][one["system"]])
    for one in starts(made, HTTP, WARM):
        assert set(one["phases_ms"]) == {"load", "prefill", "rest"}
    for name in (ENGINE_INT8, CHECKED):
        (one,) = starts(made, name, WARM)
        assert {"check", "prefill", "rest"} <= set(one["phases_ms"])
        assert "session" not in one["phases_ms"]
    (simple,) = starts(made, PACKED_FIRST, WARM)
    assert {"session", "warm-up", "prefill"} <= set(simple["phases_ms"])
    # Hashes are compared for the model that is new to the engine, and for no other. The least of
    # the measurements is the one that the scheduler did not interrupt.
    usual, new = (
        min(one["phases_ms"]["check"] for one in made["starts"] if one["system"] == name)
        for name in (ENGINE_INT8, CHECKED)
    )
    assert new > 3 * usual

    said = capsys.readouterr().out
    for name in (ENGINE_INT8, HTTP):
        assert f"{name}, page cache warm" in said
    if not made["cold_by"]:
        pytest.skip(f"no cold page cache here: {made['not_dropped']}")


def _check(one: dict[str, Any], size: int) -> None:
    assert 0 < one["first_ms"] < one["done_ms"]
    assert sum(one["phases_ms"].values()) == pytest.approx(one["first_ms"], abs=0.01)
    assert all(value > 0 for value in one["phases_ms"].values())
    # The weights are most of a package, and a token needs all of them.
    if one["cache"] == COLD:
        assert 0.5 * size < one["read_bytes"] <= size - one["resident_bytes"]
    assert one["loaded_bytes"] > 0
    assert ("reading_ms" in one) == (one["cache"] == COLD)
