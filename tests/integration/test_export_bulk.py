"""A folder of checkpoints, good and broken, exported as a user does, with breaks of every kind."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file, save_file

from gpt2export import cli, exporter, sources, writer
from gpt2serve.package import read_manifest, verify_hashes
from tests.export_fixtures import write_checkpoint

#: GPT2EXPORT_BULK=1000 for a thousand.
GOOD = int(os.environ.get("GPT2EXPORT_BULK", "60"))
WEIGHTS = "model.safetensors"
BROKEN = {
    "truncated": "is not a readable weights file",
    "org-0/no-config": "it has no config.json",
    "org-1/no-config": "it has no config.json",
    "nan": "holds NaN or infinity",
    "a name": "is not a model id",
}
#: A process with torch, transformers and onnxruntime has about 450 MB, and a tiny model adds
#: nothing to speak of.
MEMORY = 900e6


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`m0`.. and `org-0/m1`..: one checkpoint with other weights each. Old enough to trust."""
    root = tmp_path_factory.mktemp("checkpoints")
    pattern = write_checkpoint(tmp_path_factory.mktemp("pattern") / "tiny")
    tensors = load_file(pattern / WEIGHTS)
    names = [f"org-{n % 3}/m{n}" if n % 2 else f"m{n}" for n in range(GOOD)]
    for number, name in enumerate([*names, *BROKEN]):
        shutil.copytree(pattern, root / name)
        changed = dict(tensors)
        changed["transformer.ln_f.bias"] = changed["transformer.ln_f.bias"] + 0.001 * number
        save_file(changed, root / name / WEIGHTS, metadata={"format": "pt"})
    (root / "empty" / "inside").mkdir(parents=True)
    os.truncate(root / "truncated" / WEIGHTS, 5000)
    for name in ("org-0/no-config", "org-1/no-config"):
        (root / name / "config.json").unlink()
    tensors["transformer.ln_f.bias"] = torch.full_like(tensors["transformer.ln_f.bias"], torch.nan)
    save_file(tensors, root / "nan" / WEIGHTS, metadata={"format": "pt"})
    return root


class Exporting:
    """`gpt2export` as a process that writes into files, not a terminal."""

    def __init__(self, checkpoints: Path, store: Path, *options: str) -> None:
        self.store = store
        self.out, self.err = store.parent / "out", store.parent / "err"
        self.report = store.parent / "report.jsonl"
        arguments = [str(checkpoints), "--store", str(store), "--report", str(self.report)]
        with self.out.open("wb") as out, self.err.open("wb") as err:
            self.process = psutil.Popen(
                [sys.executable, "-m", "gpt2export.cli", *arguments, *options],
                stdout=out,
                stderr=err,
                env=os.environ | {"OMP_NUM_THREADS": "1"},
            )
        self.memory = 0.0

    def workers(self) -> list[psutil.Process]:
        try:
            return list(self.process.children(recursive=True))
        except psutil.NoSuchProcess:
            return []

    def until(self, condition: Callable[[], bool]) -> None:
        end = time.monotonic() + 300 + GOOD
        while not condition():
            assert time.monotonic() < end
            assert self.process.poll() is None, self.err.read_text()
            self.look()
            time.sleep(0.02)

    def wait(self) -> int:
        while self.process.poll() is None:
            self.look()
            time.sleep(0.05)
        return int(self.process.returncode)

    def look(self) -> None:
        """The memory of the largest worker."""
        for worker in self.workers():
            try:
                self.memory = max(self.memory, worker.memory_info().rss)
            except psutil.NoSuchProcess:
                continue

    def rows(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.report.read_text().splitlines()]

    def states(self) -> dict[str, str]:
        return {row["id"]: row["status"] for row in self.rows()}


def packages(store: Path) -> set[str]:
    """Ids of the packages, each of which is whole."""
    found = set()
    for path in published(store):
        manifest = read_manifest(path)
        verify_hashes(path, manifest)
        assert manifest.id == str(path.parent.relative_to(store))
        found.add(manifest.id)
    return found


def count(store: Path) -> int:
    return len(published(store))


def published(store: Path) -> list[Path]:
    """Without a look into temporary folders, which may vanish under it."""
    if not store.is_dir():
        return []
    first = [path for path in store.iterdir() if path.is_dir() and path.name[0] != "."]
    folders = [*first, *(path for folder in first for path in folder.iterdir())]
    return [path / "cpu-int8" for path in folders if (path / "cpu-int8").is_dir()]


@pytest.fixture(scope="module")
def runs(checkpoints: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Interrupted, killed, with a worker killed: after each, the same command goes on."""
    store = tmp_path_factory.mktemp("bulk") / "store"
    time.sleep(sources.SETTLED / 1e9)
    seen: dict[str, Any] = {"store": store}

    run = Exporting(checkpoints, store, "--jobs", "2")
    run.until(lambda: count(store) >= GOOD // 6)
    run.process.send_signal(signal.SIGINT)
    seen["interrupted"] = (run.wait(), run.out.read_text(), run.err.read_text(), run.states())
    seen["after interrupt"] = packages(store)
    seen["left after interrupt"] = list(store.glob(f"{writer.PREFIX}*"))

    run = Exporting(checkpoints, store, "--jobs", "2")
    run.until(lambda: count(store) >= GOOD // 2)
    workers = run.workers()
    run.process.kill()
    run.process.wait()
    _, alive = psutil.wait_procs(workers, timeout=60)
    seen["alive after kill"] = alive
    seen["after kill"] = packages(store)
    seen["reported before kill"] = run.states()

    run = Exporting(checkpoints, store, "--jobs", "2")
    run.until(lambda: count(store) >= GOOD * 2 // 3)
    run.workers()[0].kill()
    seen["finished"] = (run.wait(), run.out.read_text(), run.err.read_text(), run.states())
    seen["memory"] = run.memory
    return seen


def good(checkpoints: Path) -> set[str]:
    folders = (path.parent for path in checkpoints.rglob("config.json"))
    return {str(path.relative_to(checkpoints)) for path in folders} - BROKEN.keys()


def test_an_interrupted_run_says_how_to_go_on(runs: dict[str, Any]) -> None:
    status, out, err, states = runs["interrupted"]
    assert status == cli.INTERRUPTED
    assert " exported, 0 unchanged, " in out
    assert "The same command goes on" in err
    assert "Traceback" not in err
    exported = {model for model, state in states.items() if state == "exported"}
    assert exported == runs["after interrupt"]
    assert GOOD // 6 <= len(exported) < GOOD
    assert runs["left after interrupt"] == []


def test_a_kill_loses_only_what_was_being_made(runs: dict[str, Any]) -> None:
    assert runs["alive after kill"] == []
    assert runs["after kill"] >= runs["after interrupt"]
    states = runs["reported before kill"]
    assert {model for model in states if states[model] == "unchanged"} == runs["after interrupt"]
    # Two may have been published with nobody left to be told.
    reported = {model for model in states if states[model] != "failed"}
    assert len(runs["after kill"] - reported) <= 2
    assert reported <= runs["after kill"]


def test_the_next_run_goes_on_and_does_the_rest(runs: dict[str, Any], checkpoints: Path) -> None:
    status, _, err, states = runs["finished"]
    assert status == 1
    assert packages(runs["store"]) == good(checkpoints)
    assert len(good(checkpoints)) == GOOD
    assert states.keys() - BROKEN.keys() == good(checkpoints)
    unchanged = {model for model, state in states.items() if state == "unchanged"}
    assert unchanged >= runs["after kill"]
    # The worker that was killed may have published its package with nobody told: tried again, it
    # is found there.
    assert len(unchanged - runs["after kill"]) <= 1
    assert {states[model] for model in good(checkpoints) - unchanged} == {"exported"}
    assert list(runs["store"].glob(f"{writer.PREFIX}*")) == []
    assert "without a checkpoint are left out" in err


def test_a_killed_worker_fails_nothing(runs: dict[str, Any]) -> None:
    _, _, err, _ = runs["finished"]
    assert "killed by SIGKILL" in err


def test_failures_are_listed_with_their_reasons(runs: dict[str, Any]) -> None:
    _, out, _, states = runs["finished"]
    assert {model for model, state in states.items() if state == "failed"} == BROKEN.keys()
    total, *reasons = [line for line in out.splitlines() if line]
    assert f"{GOOD + len(BROKEN)} packages in" in total.replace(",", "")
    assert f" {len(BROKEN)} failed." in total
    text = "\n".join(reasons)
    assert "2 failed: ... is not a checkpoint: it has no config.json." in text
    for model, reason in BROKEN.items():
        assert model in text
        assert reason in text


def test_a_log_gets_lines(runs: dict[str, Any]) -> None:
    _, _, err, _ = runs["finished"]
    assert "\r" not in err
    assert "exported before and unchanged" in err
    assert len(err.splitlines()) < 20


def test_memory_is_bounded(runs: dict[str, Any]) -> None:
    assert 50e6 < runs["memory"] < MEMORY


def test_what_is_unchanged_is_not_read_again(
    runs: dict[str, Any],
    checkpoints: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def never(folder: Path) -> str:
        raise AssertionError(f"{folder} is hashed")

    monkeypatch.setattr(sources, "source_hash", never)
    some = [str(checkpoints / name) for name in ("org-1/m1", "m2", "m4")]
    ids = ("org-1/m1", "m2", "m4")
    listed = checkpoints.parent / "list"
    listed.write_text("".join(f"{path}\t{model}\n" for path, model in zip(some, ids, strict=True)))
    arguments = ["--from-file", str(listed), "--store", str(runs["store"])]
    assert cli.main(arguments) == 0
    assert "3 packages in" in (out := capsys.readouterr().out)
    assert "0 exported, 3 unchanged" in out


def test_a_checkpoint_that_changes_meanwhile_is_not_published(
    checkpoints: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "tiny"
    shutil.copytree(checkpoints / "m0", folder)

    def change(line: str) -> None:
        if "comparing" in line:
            (folder / "README.md").write_text("# New")

    options = exporter.Options(store=tmp_path / "store")
    job = exporter.Job(str(folder), "tiny")
    (outcome,) = exporter.Exporter(job, options, change).run()
    assert (outcome.status, "changed while it was exported" in outcome.message) == ("failed", True)
    assert packages(tmp_path / "store") == set()
    (outcome,) = exporter.Exporter(job, options, lambda line: None).run()
    assert outcome.status == "exported"


def test_a_progress_bar_in_a_terminal(tmp_path: Path) -> None:
    """Through a pseudo terminal, with what fails fast: nothing loads torch."""
    master, slave = os.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
    for name in ("x", "y"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
    words = [str(tmp_path / "x"), str(tmp_path / "y")]
    done = subprocess.run(
        [sys.executable, "-m", "gpt2export.cli", *words, "--store", str(tmp_path / "store")],
        stdout=subprocess.PIPE,
        stderr=slave,
        check=False,
    )
    os.close(slave)
    shown = b""
    while chunk := read(master):
        shown += chunk
    os.close(master)
    assert done.returncode == 1
    assert b"2/2, 2 failed" in shown
    assert b"\r" in shown
    assert b"failed: x: " in shown


def read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 65536)
    except OSError:  # the other side is closed
        return b""
