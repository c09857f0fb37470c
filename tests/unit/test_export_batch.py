"""Many checkpoints in processes that die, hang and fail. Nothing here loads torch.

The processes are real ones. A few lines are put before what they run, so that a model's name
says what is to happen to it.
"""

from __future__ import annotations

import io
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gpt2export import batch, pool, writer
from gpt2export.batch import Batch
from gpt2export.errors import ExportError, StoreError
from gpt2export.exporter import Job, Options, Outcome
from gpt2export.progress import Progress
from tests.waiting import wait_until

#: What a model's name does to the process that exports it.
FATES = """
import os, signal, sys, time
from pathlib import Path
from gpt2export import exporter, worker
class Fated(exporter.Exporter):
    def run(self):
        model, store = self._job.model, self._options.store
        (store / f"{model}.begun").open("a").write(f"{os.getpid()} {time.monotonic()}\\n")
        if model.startswith("killed"):
            os.kill(os.getpid(), signal.SIGKILL)
        if model.startswith("once") and not (store / f"{model}.died").exists():
            (store / f"{model}.died").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if model.startswith("exits"):
            print("torch says why", file=sys.stderr, flush=True)
            os._exit(3)
        if model.startswith("raises"):
            raise KeyError("surprise")
        if model.startswith("hangs"):
            with exporter.writer.staging(store):
                time.sleep(600)
        if model.startswith("slow"):
            time.sleep(0.3)
        if model.startswith("full"):
            def write(*_):
                try:
                    raise OSError(28, "No space left on device")
                except OSError as error:
                    raise exporter.ExportError("it cannot be published") from error
            yield self._timed("cpu-int8", write)
            return
        yield exporter.Outcome(model, "cpu-int8", "exported", size=1)
worker.Exporter = Fated
"""


class Run:
    """One batch over models of these names, and what came of it."""

    def __init__(
        self,
        store: Path,
        names: list[str],
        processes: int = 1,
        interrupts: Callable[[], int] = lambda: 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.store = store
        self.said = io.StringIO()
        jobs = [Job(f"no/such/{name}", name) for name in names]
        self.batch = Batch(
            jobs,
            Options(store=store, threads=4),
            processes,
            Progress(len(jobs), self.said),
            interrupts,
            clock,
        )
        self.outcomes: list[Outcome] = []
        for outcomes in self.batch.run():
            self.outcomes += outcomes

    @property
    def states(self) -> dict[str, str]:
        return {outcome.model: outcome.status for outcome in self.outcomes}

    def message(self, model: str) -> str:
        return next(outcome.message for outcome in self.outcomes if outcome.model == model)

    def begun(self, model: str) -> list[str]:
        """Processes in which it was begun."""
        path = self.store / f"{model}.begun"
        return [line.split()[0] for line in path.read_text().splitlines()] if path.exists() else []


@pytest.fixture(autouse=True)
def fates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "_START", FATES + pool._START)


def test_a_process_that_dies_fails_only_its_own_checkpoint(tmp_path: Path) -> None:
    run = Run(tmp_path, ["a", "killed", "b", "exits", "c", "raises", "d"], processes=2)
    assert run.states == {
        **dict.fromkeys("abcd", "exported"),
        **dict.fromkeys(("killed", "exits", "raises"), "failed"),
    }
    assert "ended twice (killed by SIGKILL), the second time alone" in run.message("killed")
    assert "want of memory" in run.message("killed")
    assert "status 3: torch says why" in run.message("exits")
    assert run.message("raises") == "KeyError: 'surprise'"
    assert [len(run.begun(name)) for name in ("a", "killed", "raises")] == [1, 2, 1]
    assert run.batch.left == 0
    assert "killed: the process ended (killed by SIGKILL); tried again later" in run.said.getvalue()


def test_what_died_once_is_tried_again_alone(tmp_path: Path) -> None:
    run = Run(tmp_path, ["once-1", "slow-1", "once-2", "slow-2"], processes=4)
    assert set(run.states.values()) == {"exported"}
    times = {
        path.stem: [float(line.split()[1]) for line in path.read_text().splitlines()]
        for path in tmp_path.glob("*.begun")
    }
    # Only after the slow ones, which were begun beside them.
    last = max(times["slow-1"] + times["slow-2"])
    assert min(times["once-1"][1], times["once-2"][1]) > last + 0.25


def test_processes_are_used_again(tmp_path: Path) -> None:
    names = [f"m{number}" for number in range(20)]
    run = Run(tmp_path, names, processes=3)
    assert run.states == dict.fromkeys(names, "exported")
    assert 1 <= len({run.begun(name)[0] for name in names}) <= 3


@pytest.mark.parametrize(
    ("name", "value"), [("MOST_JOBS", 2), ("SLACK", -(1 << 40))], ids=["many jobs", "grown"]
)
def test_a_worn_process_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: int
) -> None:
    monkeypatch.setattr(pool, name, value)
    names = [f"m{number}" for number in range(4)]
    run = Run(tmp_path, names)
    assert run.states == dict.fromkeys(names, "exported")
    most = 2 if name == "MOST_JOBS" else 1
    assert len({run.begun(name)[0] for name in names}) == 4 // most


def test_processes_that_cannot_start_are_no_endless_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "_START", "raise SystemExit('nothing works here')")
    with pytest.raises(ExportError, match="can start: status 1: nothing works here"):
        Run(tmp_path, ["a", "b", "c"])


def test_a_full_store_stops_the_run(tmp_path: Path) -> None:
    run = Run(tmp_path, ["a", "full", "b", "c"])
    assert run.states == {"a": "exported", "full": "failed"}
    assert run.batch.stopped == batch.FULL
    assert run.batch.left == 2


def test_a_store_that_cannot_be_written_is_found_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "store").write_text("a file")
    with pytest.raises(StoreError, match="cannot be written"):
        Run(tmp_path / "store", ["a"])
    assert list(tmp_path.glob("*.begun")) == []


def begun(store: Path, name: str) -> bool:
    return (store / f"{name}.begun").exists()


def test_the_first_interrupt_lets_what_runs_end(tmp_path: Path) -> None:
    run = Run(
        tmp_path,
        ["slow-1", "slow-2", "c", "d"],
        processes=2,
        interrupts=lambda: int(begun(tmp_path, "slow-1") and begun(tmp_path, "slow-2")),
    )
    assert run.states == {"slow-1": "exported", "slow-2": "exported"}
    assert (run.batch.stopped, run.batch.left) == (batch.INTERRUPTED, 2)
    assert "Ctrl-C again stops at once" in run.said.getvalue()


def test_the_second_interrupt_ends_all_at_once(tmp_path: Path) -> None:
    before = time.monotonic()
    run = Run(
        tmp_path,
        ["a", "hangs", "b"],
        interrupts=lambda: 2 * bool(list(tmp_path.glob(f"{writer.PREFIX}*"))),
    )
    assert run.states == {"a": "exported"}
    assert run.batch.left == 2
    assert list(tmp_path.glob(f"{writer.PREFIX}*")) == []
    assert time.monotonic() - before < 60  # it would hang for ten minutes


def test_what_does_not_end_soon_after_the_first_is_ended(tmp_path: Path) -> None:
    jumps = iter(range(0, 10_000, 3))  # seconds between two looks at the clock
    run = Run(
        tmp_path,
        ["hangs", "b"],
        interrupts=lambda: int(begun(tmp_path, "hangs")),
        clock=lambda: float(next(jumps)),
    )
    assert (run.states, run.batch.left) == ({}, 2)


def test_nothing_is_begun_after_an_interrupt_while_looking(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[Job] = []
    monkeypatch.setattr(batch, "_PORTION", 2)
    monkeypatch.setattr(batch, "unchanged", lambda job, options: looked.append(job))
    run = Run(tmp_path, ["a", "b", "c", "d"], interrupts=lambda: int(bool(looked)))
    assert len(looked) == 2
    assert (run.states, run.batch.left) == ({}, 4)
    assert run.begun("a") == []


def test_each_process_gets_its_share_of_the_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    start: Any = pool._start

    def spy(theirs: Any, output: Any, threads: int) -> subprocess.Popen[bytes]:
        seen.append(threads)
        process: subprocess.Popen[bytes] = start(theirs, output, threads)
        return process

    monkeypatch.setattr(pool, "_start", spy)
    Run(tmp_path, ["slow-1", "slow-2", "c"], processes=2)
    assert seen == [2, 2]


def test_a_process_ends_with_the_one_that_started_it(tmp_path: Path) -> None:
    """By kill -9 too; else it would go on writing into a store that the next run works on."""
    code = f"""
import sys
from pathlib import Path
from gpt2export import pool
from gpt2export.exporter import Job, Options
pool._START = {pool._START!r}
workers = pool.Pool(1, Options(store=Path(sys.argv[1])))
workers.begin(Job("no/such", "hangs"))
print(workers._workers[0]._process.pid, flush=True)
while True:
    list(workers.events(1))
"""
    starter = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert starter.stdout is not None
    worker = int(json.loads(starter.stdout.readline()))
    wait_until(lambda: begun(tmp_path, "hangs"))
    starter.kill()
    starter.communicate()
    wait_until(lambda: not Path(f"/proc/{worker}/cmdline").exists() or is_zombie(worker))


def is_zombie(process: int) -> bool:
    """Nobody has asked how it ended yet."""
    return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
