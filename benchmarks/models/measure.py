"""Measures the cells and the cliff of a plan: one entry for each and each round."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any

from benchmarks.common.measuring import note_failure, say
from benchmarks.common.servers import Server, ServerFailed
from benchmarks.common.worker import WorkerFailed
from benchmarks.models import plan, serving
from benchmarks.models.library import Library
from benchmarks.models.plan import Cell, Step, Variant

Entry = dict[str, Any]
#: Measures one entry after the other; closing it ends its server.
Work = Generator[Entry, None, None]
#: With what a system can fail: it does not start, its load does not run, HTTP does not work.
#: URLError, HTTPError and TimeoutError are OSErrors.
FAILURES = (ServerFailed, WorkerFailed, OSError, HTTPException)


@dataclass(frozen=True)
class Bench:
    """What all measurements have in common. logs: a folder for what servers print."""

    library: Library
    threads: int
    logs: Path

    def start(self, cell: Cell, pinned: Sequence[str] = ()) -> tuple[Server, float]:
        return serving.timed_start(
            cell.system,
            self.library,
            held=cell.held,
            cache_bytes=cell.cache_bytes,
            threads=self.threads,
            log=self.logs / f"{cell.system.name.replace(' ', '-')}.log",
            pinned=pinned,
        )


def new_results() -> dict[str, Any]:
    """What the functions below fill while they measure, so that an interrupted run loses none."""
    return {"cells": [], "cliff": [], "failed": {}}


def measure_cells(
    bench: Bench, load: serving.Load, cells: Sequence[Cell], rounds: int, results: dict[str, Any]
) -> None:
    """Each cell has a server of its own in each round, and the machine for itself."""
    entries = results["cells"]
    for number in range(rounds):
        for cell in plan.in_order(cells, number):
            where = {"system": cell.system.name, "cache": cell.cache}
            work = _measure_cell(bench, load, cell, number)
            _collect(work, entries, where, results["failed"], cell.label)


def _measure_cell(bench: Bench, load: serving.Load, cell: Cell, number: int) -> Work:
    models = bench.library.models
    server, seconds = bench.start(cell)
    with server, serving.new_clients() as clients:
        # The most popular come last, so that they are the most recently used.
        serving.fill(server.url, reversed(models[: cell.held]))
        figures = load.measure(clients, server, models, number)
        if cell.system.is_ours:
            figures["resident"] = serving.resident(server.url)
        yield {"held": cell.held, "round": number, "start_seconds": seconds, **figures}


def measure_cliff(
    bench: Bench,
    load: serving.Load,
    todo: Sequence[tuple[Variant, Cell, Sequence[Step]]],
    rounds: int,
    results: dict[str, Any],
) -> None:
    """Each variant has a server of its own in each round, which takes all of its steps."""
    entries = results["cliff"]
    for number in range(rounds):
        for variant, cell, steps in plan.rotated(todo, number):
            work = _measure_steps(bench, load, variant, cell, steps, number)
            _collect(work, entries, {"system": variant.name}, results["failed"], variant.label)


def _measure_steps(
    bench: Bench,
    load: serving.Load,
    variant: Variant,
    cell: Cell,
    steps: Sequence[Step],
    number: int,
) -> Work:
    models = bench.library.models
    server, _ = bench.start(cell, models[: int(variant.pinned * cell.held)])
    with server, serving.new_clients() as clients:
        # What happens once for a model happens now: gpt2serve compares its hash, and the first
        # load of a process measures more bytes than the model has.
        most = max(step.models for step in steps)
        serving.fill(server.url, models[: most if variant.system.is_ours else 1])
        for step in steps:
            serving.fill(server.url, plan.filling(step, models))
            asked = models[: step.models]
            one = load.like(step.traffic, variant.longer)
            figures = one.measure(clients, server, asked, number)
            place = {"traffic": step.traffic, "models": step.models, "ratio": step.ratio}
            if variant.system.is_ours:
                figures["resident"] = serving.resident(server.url)
            yield {**place, "cache": step.cache, "round": number, **figures}


def _collect(
    work: Work,
    entries: list[Entry],
    where: Entry,
    failed: dict[str, str],
    label: str,
) -> None:
    """Add to `entries` what `work` measures, each with `where`, as soon as it is there.

    A failure costs all entries that have `where`, also those of former rounds, so that what
    stays is of every round; and what has failed once is not tried again. The same system may
    still work elsewhere, with a smaller cache.
    """
    if label in failed:
        return
    try:
        with closing(work):
            for figures in work:
                entries.append({**where, **figures})
                say(f"{label}: {_progress(entries[-1])}")
    except FAILURES as error:
        note_failure(failed, label, error)
        entries[:] = [entry for entry in entries if not where.items() <= entry.items()]


def _progress(entry: Entry) -> str:
    latency = entry["end_to_end_ms"]
    p99 = "-" if latency is None else f"{latency['p99']:.0f} ms"
    hits = "-" if entry["hit_ratio"] is None else f"{entry['hit_ratio']:.0%}"
    asked = f"{entry['models']} models, {entry['traffic']}, " if "traffic" in entry else ""
    return (
        f"{asked}round {entry['round'] + 1}, {entry['requests_per_second']:.1f} requests/s, "
        f"p99 {p99}, hits {hits}; others took {entry['others']:.0%}"
    )
