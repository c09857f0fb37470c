"""What a measurement knows about other work, and what it does about it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.common import machine, measuring


def _burn(seconds: float) -> None:
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass


def test_the_work_of_a_process_itself_is_not_that_of_others() -> None:
    before = machine.process_seconds(os.getpid())
    _burn(0.2)
    assert machine.process_seconds(os.getpid()) - before >= 0.15


def test_work_that_is_not_named_is_that_of_others() -> None:
    watch = machine.OtherWork([])
    _burn(0.3)
    # One core at least, of all of them; less if this test itself had to wait.
    assert watch.share() > 0


def test_processes_that_a_process_started_are_of_its_family() -> None:
    command = [sys.executable, "-c", "input()"]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as child:
        assert {os.getpid(), child.pid} <= set(machine.family(os.getpid()))
    assert child.pid not in machine.family(os.getpid())
    assert machine.family(2**31 - 1) == [2**31 - 1]


def test_a_process_that_is_not_there_has_no_times() -> None:
    assert machine.process_seconds(2**31 - 1) != machine.process_seconds(2**31 - 1)  # NaN


class _Watch:
    """Others take a given share in each run."""

    def __init__(self, shares: list[float]) -> None:
        self._shares = iter(shares)

    def __call__(self, processes: list[int]) -> _Watch:
        assert processes == [1]
        return self

    def share(self) -> float:
        return next(self._shares)


@pytest.mark.parametrize(
    ("shares", "runs", "chosen"),
    [
        ([0.01], 1, 0),
        ([0.5, 0.02], 2, 1),
        ([0.5, 0.2, 0.3], 3, 1),
        ([float("nan")], 1, 0),
    ],
)
def test_the_least_disturbed_run_counts(
    monkeypatch: pytest.MonkeyPatch, shares: list[float], runs: int, chosen: int
) -> None:
    monkeypatch.setattr(measuring, "SETTLE_SECONDS", 0)
    monkeypatch.setattr(machine, "OtherWork", _Watch(shares))
    made: list[dict[str, int]] = []

    def work() -> dict[str, int]:
        made.append({"run": len(made)})
        return made[-1]

    assert measuring.undisturbed(work, [1], tries=3)["run"] == chosen
    assert len(made) == runs


def test_results_do_not_make_a_commit_unclean_but_any_code_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "ROOT", tmp_path)
    assert machine.commit() == "not committed"
    who = ["-c", "user.name=n", "-c", "user.email=e"]
    (tmp_path / "code.py").write_text("1")
    for command in (["init", "-q"], ["add", "."], [*who, "commit", "-qm", "first"]):
        subprocess.run(["git", *command], cwd=tmp_path, check=True, capture_output=True)
    clean = machine.commit()
    assert re.fullmatch("[0-9a-f]{7,}", clean)
    results = tmp_path / "benchmarks" / "results"
    results.mkdir(parents=True)
    (results / "decode.json").write_text("{}")
    assert machine.commit() == clean
    (tmp_path / "new.py").write_text("2")
    assert machine.commit() == clean + "+"
