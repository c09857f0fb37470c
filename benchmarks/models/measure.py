"""Measures the cells and the cliff of a plan: one entry for each and each round."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.common.measuring import say
from benchmarks.common.servers import Server, ServerFailed
from benchmarks.common.worker import Worker
from benchmarks.models import serving
from benchmarks.models.library import Library
from benchmarks.models.plan import Cell, Step, Variant

Entry = dict[str, Any]


@dataclass(frozen=True)
class Bench:
    """What all measurements have in common. logs: a folder for what servers print."""

    library: Library
    clients: Worker
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


def measure_cells(
    bench: Bench, load: serving.Load, plan: Sequence[Cell], rounds: int
) -> list[Entry]:
    """Each cell has a server of its own in each round, and the machine for itself.

    A server that does not start costs its system one entry with the "error", no more.
    """
    measured = []
    todo = [cell for cell in plan if cell.fits]
    for number in range(rounds):
        for cell in todo:
            entry = {"system": cell.system.name, "cache": cell.cache, "held": cell.held}
            try:
                figures = _measure_cell(bench, load, cell, number)
            except ServerFailed as error:
                say(f"{cell.system.name} failed: {error}")
                figures = {"error": str(error)[-300:]}
            measured.append({**entry, "round": number, **figures})
            say(_progress(measured[-1], len(measured), rounds * len(todo)))
    return measured


def _measure_cell(bench: Bench, load: serving.Load, cell: Cell, number: int) -> Entry:
    models = bench.library.models
    server, seconds = bench.start(cell)
    with server:
        # The most popular come last, so that they are the most recently used.
        serving.fill(server.url, reversed(models[: cell.held]))
        figures = load.measure(bench.clients, server, models, number)
        if cell.system.is_ours:
            figures["resident"] = serving.resident(server.url)
        return {"start_seconds": seconds, **figures}


def measure_cliff(
    bench: Bench,
    load: serving.Load,
    variants: Sequence[Variant],
    plan: Sequence[Step],
    rounds: int,
) -> list[Entry]:
    """One server for each variant; those that are not measured sleep."""
    measured = []
    with ExitStack() as stack:
        servers = {
            variant.name: stack.enter_context(_cliff_server(bench, variant, plan[0].cache))
            for variant in variants
        }
        for server in servers.values():  # what happens once happens now
            serving.fill(server.url, bench.library.models[: plan[-1].models])
        for number, step in _in_rounds(plan, rounds):
            server, models = servers[step.variant], bench.library.models[: step.models]
            # Twice: the first load of a process measures more bytes than the model has, and may
            # take another one's place.
            serving.fill(server.url, 2 * models[: step.cache])
            figures = load.measure(bench.clients, server, models, number)
            entry = {"system": step.variant, "models": step.models, "cache": step.cache}
            measured.append({**entry, "ratio": step.ratio, "round": number, **figures})
            say(_progress(measured[-1], len(measured), rounds * len(plan)))
    return measured


def _cliff_server(bench: Bench, variant: Variant, cache: int) -> Server:
    pinned = bench.library.models[: int(variant.pinned * cache)]
    size = bench.library.sizes[variant.system.weights]
    cell = Cell(variant.system, cache, held=cache, cache_bytes=cache * size, fits=True)
    return bench.start(cell, pinned)[0]


def _in_rounds(plan: Sequence[Step], rounds: int) -> Iterator[tuple[int, Step]]:
    return ((number, step) for number in range(rounds) for step in plan)


def _progress(entry: Entry, done: int, count: int) -> str:
    where = f"{done} of {count}: {entry['system']}, cache for {entry['cache']}"
    if "ratio" in entry:
        where += f", {entry['models']} models"
    if "error" in entry:
        return f"{where}: failed"
    latency = entry["end_to_end_ms"]
    p99 = "-" if latency is None else f"{latency['p99']:.0f} ms"
    hits = "-" if entry["hit_ratio"] is None else f"{entry['hit_ratio']:.0%}"
    return (
        f"{where}: {entry['requests_per_second']:.1f} requests/s, p99 {p99}, hits {hits}; "
        f"others took {entry['others']:.0%}"
    )
