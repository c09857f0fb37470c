"""Measures systems in turn, each in a process of its own that sleeps meanwhile."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from benchmarks.common import model
from benchmarks.common.measuring import TRIES, note_failure, say, undisturbed
from benchmarks.common.worker import Worker, WorkerFailed
from benchmarks.decode import plan
from benchmarks.decode.plan import Cell
from benchmarks.peers import System

#: Tokens of the generations that warm up.
_WARM_TOKENS = 4


@dataclass
class Measurements:
    """For the results: one entry for each system, cell and round, in the order of measurement.

    They are filled while it is measured. A system that failed has no entries.
    """

    entries: list[dict[str, Any]] = field(default_factory=list)
    #: What went wrong, by system.
    failed: dict[str, str] = field(default_factory=dict)


@contextlib.contextmanager
def workers(
    systems: Sequence[System], assets: model.Assets, threads: int, failed: dict[str, str]
) -> Iterator[dict[System, Worker]]:
    """A process for each system that does not fail, with the model loaded."""
    with contextlib.ExitStack() as stack:
        running = {}
        for system in systems:
            say(f"loading {system.name}")
            options = {"precision": system.precision, "threads": threads}
            worker = stack.enter_context(Worker(system.target, options, python=system.python))
            try:
                worker.call("load", assets=assets.arguments)
            except WorkerFailed as error:
                note_failure(failed, system.name, error)
            else:
                running[system] = worker
        yield running


class Grid:
    """All cells with all systems, in rounds."""

    def __init__(
        self,
        running: dict[System, Worker],
        assets: model.Assets,
        cells: Sequence[Cell],
        *,
        new_tokens: int,
        fixed: bool,
        made: Measurements,
    ) -> None:
        """new_tokens: of each text, at least; exactly if `fixed`. made: is filled."""
        self._running = dict(running)
        self._cells = cells
        self._tokens = {
            cell: new_tokens if fixed else cell.new_tokens(new_tokens) for cell in cells
        }
        most = max(cell.batch for cell in cells)
        lengths = dict.fromkeys(cell.prompt for cell in cells)
        self._prompts = {n: model.prompts(assets.checkpoint, most, n) for n in lengths}
        self._made = made

    def measure(self, rounds: int, most_seconds: float) -> None:
        self._warm_up()
        spent: dict[Cell, list[float]] = {cell: [] for cell in self._cells}
        for number in range(rounds):
            say(f"round {number + 1} of at most {rounds}")
            for cell in self._cells:
                if plan.wants_round(spent[cell], rounds, most_seconds):
                    begin = time.perf_counter()
                    self._measure_cell(cell, number)
                    spent[cell].append(time.perf_counter() - begin)

    def _warm_up(self) -> None:
        """Every batch size with the shortest prompts, and one of each longer prompt."""
        shortest = min(self._prompts)
        sizes = dict.fromkeys(cell.batch for cell in self._cells)
        warm = [(size, shortest) for size in sizes]
        warm += [(1, length) for length in self._prompts if length != shortest]
        for system, worker in list(self._running.items()):
            say(f"warming up {system.name}")
            with self._failing(system):
                for size, length in warm:
                    prompts = self._prompts[length][:size]
                    worker.call("generate", prompts=prompts, tokens=_WARM_TOKENS)

    def _measure_cell(self, cell: Cell, number: int) -> None:
        """Another system begins in each round, so that none always runs after the same one."""
        systems = list(self._running)
        first = number % max(1, len(systems))
        for system in systems[first:] + systems[:first]:
            with self._failing(system):
                self._made.entries.append(self._measure_system(system, cell, number))

    def _measure_system(self, system: System, cell: Cell, number: int) -> dict[str, Any]:
        tokens, tries = self._tokens[cell], TRIES
        if plan.is_shortened(system.precision, cell, tokens):
            tokens, tries = 1, 1
        worker = self._running[system]
        work = partial(_generate, worker, self._prompts[cell.prompt][: cell.batch], tokens)
        result = undisturbed(work, [worker.pid], tries)
        say(_line(system, cell, result))
        place = {"system": system.name, "batch": cell.batch, "prompt": cell.prompt}
        return {**place, "tokens": tokens, "round": number, **result}

    @contextlib.contextmanager
    def _failing(self, system: System) -> Iterator[None]:
        """What fails inside takes the system out, with all that was measured of it."""
        try:
            yield
        except WorkerFailed as error:
            note_failure(self._made.failed, system.name, error)
            del self._running[system]
            self._made.entries[:] = [
                entry for entry in self._made.entries if entry["system"] != system.name
            ]


def _generate(worker: Worker, prompts: list[dict[str, Any]], tokens: int) -> dict[str, Any]:
    """What is kept of a generation. That its texts have the right length is checked there."""
    result = worker.call("generate", prompts=prompts, tokens=tokens)
    return {
        "seconds": round(result["seconds"], 6),
        "first_seconds": round(result["first_seconds"], 6),
        "decode_seconds": round(result["decode_seconds"], 6),
        "decode_steps": result["decode_steps"],
    }


def _line(system: System, cell: Cell, result: dict[str, Any]) -> str:
    first = 1000 * result["first_seconds"]
    steps = result["decode_steps"]
    step = f"{1000 * result['decode_seconds'] / steps:.1f} ms a step" if steps else "no common step"
    return (
        f"{system.name}, {cell.batch} x {cell.prompt}: first token {first:.0f} ms, {step}; "
        f"others took {result['others']:.0%}"
    )
