"""The section on working sets that are larger than the cache. Pure."""

from __future__ import annotations

from typing import Any

from benchmarks.common import tables
from benchmarks.models import selection
from benchmarks.models.plan import LRU, PINNED
from benchmarks.models.selection import Selection


def section(results: dict[str, Any]) -> str:
    if not results["cliff"]:
        return ""
    chosen = Selection(results["cliff"], "ratio")
    rows = [_row(chosen, name, place) for place in chosen.places for name in chosen.systems]
    header = ("models / cache", "system", "requests/s", "p99", "was loaded", "at best")
    return tables.paragraphs(
        f"### The cliff\n\nA cache for {results['cliff_cache']} models, and as many models asked "
        f"as the first column says, all alike and at random. No cache can then know what comes "
        "next: *at best* is the share of requests that finds its model in memory whatever "
        "policy evicts. *half pinned* never evicts half of the cache (`--pin`).",
        tables.table(header, [row for row in rows if row]),
        "![Requests a second and hits against models over cache size](benchmarks/models-cliff.svg)",
        _finding(chosen),
    )


def _row(chosen: Selection, system: str, place: float) -> tuple[str, ...]:
    if not chosen.at(system, place):
        return ()
    values = [chosen.measured(system, place, figure) for figure in (selection.p99, selection.hits)]
    return (
        f"{place:g}",
        system,
        selection.text(chosen.measured(system, place, selection.requests)),
        selection.text(values[0], 0, " ms"),
        selection.percent(values[1]),
        f"{min(1.0, 1 / place):.0%}",
    )


def _finding(chosen: Selection) -> str:
    """What is left of the throughput where nothing is ever loaded."""
    sentences = []
    for name in chosen.systems:
        places, speeds = chosen.line(name, selection.requests)
        if len(places) > 1 and places[0] <= 1 and speeds[0] > 0:
            sentences.append(
                f"{name} keeps {speeds[-1] / speeds[0]:.0%} of its requests a second when "
                f"{places[-1]:g} times as many models are asked as there is room for."
            )
    half = chosen.ratio(PINNED.name, LRU.name, max(chosen.places), selection.requests)
    if half is not None:
        sentences.append(
            f"Half of the cache pinned gives {half.median:.2f} times the requests of none pinned "
            f"({half.low:.2f} - {half.high:.2f}) there."
        )
    return " ".join(sentences)
