"""Measures systems in turn, each in a process of its own that sleeps meanwhile."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from benchmarks.common import model
from benchmarks.common.measuring import say, undisturbed
from benchmarks.common.worker import Worker
from benchmarks.decode import plan
from benchmarks.decode.plan import Cell
from benchmarks.peers import System

#: Tokens of the generations that warm up.
_WARM_TOKENS = 4


@dataclass
class Measurements:
    """For the results: one entry for each system, cell and round, in the order of measurement."""

    entries: list[dict[str, Any]] = field(default_factory=list)
    left_out: list[dict[str, Any]] = field(default_factory=list)


@contextlib.contextmanager
def workers(
    systems: Sequence[System], assets: model.Assets, threads: int
) -> Iterator[dict[System, Worker]]:
    """A process for each system, with the model loaded."""
    with contextlib.ExitStack() as stack:
        running = {}
        for system in systems:
            say(f"loading {system.name}")
            options = {"precision": system.precision, "threads": threads}
            worker = stack.enter_context(Worker(system.target, options, python=system.python))
            worker.call("load", assets=assets.arguments)
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
    ) -> None:
        """new_tokens: of each text, at least; exactly if `fixed`."""
        self._running = running
        self._cells = cells
        self._tokens = {
            cell: new_tokens if fixed else cell.new_tokens(new_tokens) for cell in cells
        }
        most = max(cell.batch for cell in cells)
        lengths = dict.fromkeys(cell.prompt for cell in cells)
        self._prompts = {n: model.prompts(assets.checkpoint, most, n) for n in lengths}
        self._made = Measurements()

    def measure(self, rounds: int, most_seconds: float) -> Measurements:
        self._warm_up()
        spent: dict[Cell, list[float]] = {cell: [] for cell in self._cells}
        for number in range(rounds):
            say(f"round {number + 1} of at most {rounds}")
            for cell in self._cells:
                if plan.wants_round(spent[cell], rounds, most_seconds):
                    begin = time.perf_counter()
                    self._measure_cell(cell, number)
                    spent[cell].append(time.perf_counter() - begin)
        return self._made

    def _warm_up(self) -> None:
        """Every batch size with the shortest prompts, and one of each longer prompt."""
        shortest = min(self._prompts)
        sizes = dict.fromkeys(cell.batch for cell in self._cells)
        warm = [(size, shortest) for size in sizes]
        warm += [(1, length) for length in self._prompts if length != shortest]
        for system, worker in self._running.items():
            say(f"warming up {system.name}")
            for size, length in warm:
                prompts = self._prompts[length][:size]
                worker.call("generate", prompts=prompts, tokens=_WARM_TOKENS)

    def _measure_cell(self, cell: Cell, number: int) -> None:
        tokens = self._tokens[cell]
        for system, worker in self._running.items():
            if plan.is_left_out(system.precision, cell, tokens):
                if number == 0:
                    self._leave_out(system, cell, tokens)
                continue
            work = partial(_generate, worker, self._prompts[cell.prompt][: cell.batch], tokens)
            result = undisturbed(work, [worker.pid])
            place = {"system": system.name, "batch": cell.batch, "prompt": cell.prompt}
            self._made.entries.append({**place, "tokens": tokens, "round": number, **result})
            say(_line(system, cell, result))

    def _leave_out(self, system: System, cell: Cell, tokens: int) -> None:
        seconds = plan.expected_seconds(system.precision, cell, tokens)
        say(f"{system.name}, {cell.batch} x {cell.prompt}: left out, about {seconds:.0f} s")
        place = {"system": system.name, "batch": cell.batch, "prompt": cell.prompt}
        self._made.left_out.append({**place, "expected_seconds": round(seconds, 1)})


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
