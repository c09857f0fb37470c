"""What a benchmark has measured is not lost when it fails, and one system takes no other along."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.common import cli, results
from benchmarks.common.measuring import failures, note_failure


@pytest.mark.parametrize("error", [RuntimeError("no room\nat all"), KeyboardInterrupt()])
def test_what_was_measured_before_the_end_is_kept_beside_the_last_results(
    tmp_path: Path, error: BaseException, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "decode.json"
    results.save({"benchmark": "decode", "old": True}, path)
    measured: dict[str, Any] = {"benchmark": "decode", "measurements": []}
    with pytest.raises(type(error)):
        _measure_until(error, path, measured)
    kept = results.load(tmp_path / "decode.incomplete.json")
    assert kept["measurements"] == [{"system": "ours"}]
    assert kept["incomplete"].startswith(type(error).__name__)
    assert results.load(path) == {"benchmark": "decode", "old": True}
    assert "decode.incomplete.json" in capsys.readouterr().err


def _measure_until(error: BaseException, path: Path, measured: dict[str, Any]) -> None:
    with cli.keeping(Namespace(output=path), measured):
        measured["measurements"].append({"system": "ours"})
        raise error


def test_nothing_is_kept_apart_when_all_went_well(tmp_path: Path) -> None:
    with cli.keeping(Namespace(output=tmp_path / "decode.json"), {}):
        pass
    assert list(tmp_path.iterdir()) == []


def test_failures_are_told_by_their_last_line() -> None:
    failed: dict[str, str] = {}
    assert failures(failed) == ""
    note_failure(failed, "optimum fp32", RuntimeError("Traceback ...\n  line\nMemoryError: full"))
    note_failure(failed, "llama.cpp q8_0", TimeoutError())
    expected = "optimum fp32 (MemoryError: full); llama.cpp q8_0 (TimeoutError)."
    assert failures(failed) == f"**Failed, and left out:** {expected}"
