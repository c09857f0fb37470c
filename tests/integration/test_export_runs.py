"""`gpt2export` as a process: many checkpoints, unchanged ones, and kill -9."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gpt2export import __version__, cli, writer
from gpt2serve.package import Manifest, read_manifest, verify_hashes
from tests.export_fixtures import write_checkpoint

KILLS = 3


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiny models gain nothing from more, and wait long for a busy machine."""
    monkeypatch.setattr(os, "cpu_count", lambda: 1)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    root = tmp_path_factory.mktemp("checkpoints")
    return [write_checkpoint(root / name, seed=seed) for seed, name in enumerate(("a", "b", "c"))]


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, list[list[str]]]:
    """Exit status, and the words of the table's lines."""
    status = cli.main([str(argument) for argument in arguments])
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    start = next(number for number, words in enumerate(lines) if words[:2] == ["id", "variant"])
    return status, lines[start + 1 :]


def states(rows: list[list[str]]) -> dict[str, str]:
    return {
        row[0]: row[-1] for row in rows if row and row[-1] in ("exported", "unchanged", "failed")
    }


def complete(package: Path) -> Manifest:
    manifest = read_manifest(package)
    verify_hashes(package, manifest)
    return manifest


def test_many_checkpoints(
    folders: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store, broken = tmp_path / "store", tmp_path / "broken"
    broken.mkdir()
    (broken / "config.json").write_text("{}")
    status, rows = run(capsys, folders[0], broken, folders[1], "--store", store)
    assert status == 1
    assert states(rows) == {"a": "exported", "broken": "failed", "b": "exported"}
    assert "holds no weights" in " ".join(rows[-1])

    # Again, with a new one and a changed one.
    card = folders[1] / "README.md"
    card.write_text("# Changed")
    status, rows = run(capsys, *folders, "--store", store)
    card.unlink()
    assert status == 0
    assert states(rows) == {"a": "unchanged", "b": "exported", "c": "exported"}
    assert complete(store / "b" / "cpu-int8").card.title == "Changed"


def test_what_counts_as_unchanged(
    folders: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def again(*options: object) -> str:
        return states(run(capsys, folders[0], "--store", tmp_path, *options)[1])["a"]

    text = tmp_path / "text"
    text.write_text("Some other text, long enough to say something.")
    assert again("--no-verify") == "exported"
    assert again("--no-verify") == "unchanged"
    assert again() == "exported"  # not verified before
    assert again() == "unchanged"
    assert again("--no-verify") == "unchanged"
    assert again("--calibration", text) == "exported"
    assert again("--calibration", text, "--force") == "exported"
    weights = tmp_path / "a" / "cpu-int8" / "model.onnx.data"
    weights.write_bytes(weights.read_bytes()[:-1])
    assert again("--calibration", text) == "exported"
    assert complete(tmp_path / "a" / "cpu-int8").source.exporter_version == __version__


def test_another_id_and_two_targets(
    folders: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, rows = run(
        capsys,
        folders[0],
        "--store",
        tmp_path,
        "--id",
        "me/poems",
        "--target",
        "cpu",
        "--target",
        "cuda",
    )
    assert (status, [row[1] for row in rows]) == (0, ["cpu-int8", "cuda-fp16"])
    for variant in ("cpu-int8", "cuda-fp16"):
        manifest = complete(tmp_path / "me" / "poems" / variant)
        assert (manifest.id, manifest.source.name) == ("me/poems", "a")


def command(folder: Path, store: Path, *options: str) -> list[str]:
    program = [sys.executable, "-m", "gpt2export.cli", str(folder), "--store", str(store)]
    return [*program, *options]


def test_several_processes(
    folders: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    store = tmp_path / "store"
    status, rows = run(capsys, folders[0], broken, folders[1], "--store", store, "--jobs", 2)
    assert status == 1
    assert states(rows) == {"a": "exported", "broken": "failed", "b": "exported"}
    for name in ("a", "b"):
        assert complete(store / name / "cpu-int8").id == name


def test_a_kill_leaves_the_old_package_or_the_new_one(
    folders: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exports model b over model a and kills the exporter at many moments, most of them while
    it writes; whoever reads then finds one of the two, whole. (The writer's own test kills at
    every step.)"""
    store, package = tmp_path / "store", tmp_path / "store" / "m" / "cpu-int8"
    options = ("--store", str(store), "--id", "m", "--force", "--no-verify")
    run(capsys, folders[1], *options)
    new = complete(package).version
    run(capsys, folders[0], *options)
    versions = {complete(package).version, new}
    assert len(versions) == 2
    rng = random.Random(0)
    for _ in range(KILLS):
        kill_while_writing([str(folders[1]), *options], store, delay=rng.uniform(0, 0.03))
        assert complete(package).version in versions
    run(capsys, folders[1], *options)
    assert complete(package).version == new
    assert list(store.glob(f"{writer.PREFIX}*")) == []


def kill_while_writing(arguments: list[str], store: Path, *, delay: float) -> None:
    """Start an exporter and kill it `delay` seconds after it has begun to write."""
    before = set(store.glob(f"{writer.PREFIX}*"))
    exporter = subprocess.Popen(
        [sys.executable, "-m", "gpt2export.cli", *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while exporter.poll() is None:
        if set(store.glob(f"{writer.PREFIX}*")) - before:
            time.sleep(delay)
            break
        time.sleep(0.001)
    exporter.kill()
    exporter.wait()


def test_a_package_that_is_open_can_be_replaced(
    folders: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A server has the old weights mapped while the new ones are published."""
    run(capsys, folders[0], "--store", tmp_path, "--id", "m", "--no-verify")
    path = tmp_path / "m" / "cpu-int8" / "model.onnx.data"
    before = path.read_bytes()
    descriptor = os.open(path, os.O_RDONLY)
    try:
        run(capsys, folders[1], "--store", tmp_path, "--id", "m", "--no-verify")
        assert os.pread(descriptor, len(before), 0) == before
        assert path.read_bytes() != before
    finally:
        os.close(descriptor)
