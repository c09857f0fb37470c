"""The section on working sets that are larger than the cache. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from benchmarks.common import tables
from benchmarks.load.traffic import zipf
from benchmarks.models import selection
from benchmarks.models.findings import few_requests
from benchmarks.models.plan import LRU, PINNED, SCAN, TRAFFICS, UNIFORM, ZIPF
from benchmarks.models.selection import Selection

_HEADER = ("models / cache", "system", "requests/s", "p50", "p99", "max")
_MORE = ("hits", "at best", "errors", "models held", "memory if files differ")


def section(results: dict[str, Any]) -> str:
    left_out = _left_out(results)
    if not results["cliff"]:
        return left_out
    return tables.paragraphs(
        f"### The cliff\n\nA cache for {results['cliff_cache']} models, {results['cliff_clients']} "
        "clients, and as many models asked as the first column says, in several ways. *At best* is "
        "the share of requests that finds its model in memory if the most asked models are never "
        "evicted: whoever does not know what comes next can do no better. *half pinned* never "
        "evicts half of the cache, the most asked models if some are asked more than others "
        "(`--pin`). gpt2serve's cache is one of bytes: *models held* is how many it had at the "
        "end, which may be more than those.",
        left_out,
        "![Requests a second against models over cache size](benchmarks/models-cliff.svg)",
        "![Hits against models over cache size](benchmarks/models-hits.svg)",
        *(_of_one(results, traffic) for traffic in TRAFFICS),
        " ".join(few_requests(results["cliff"])),
    )


def describe(traffic: str, exponent: float) -> str:
    """For headings and plots."""
    return {
        UNIFORM: "all alike, at random",
        ZIPF: f"Zipf with exponent {exponent:g}, at random",
        SCAN: "one after the other",
    }[traffic]


def of(results: dict[str, Any], traffic: str) -> Selection:
    return Selection((e for e in results["cliff"] if e["traffic"] == traffic), "ratio")


def at_best(results: dict[str, Any], traffic: str, ratio: float) -> float:
    """The share of requests for as many models as there is room for, the most asked ones."""
    cache = results["cliff_cache"]
    exponent = results["zipf"] if traffic == ZIPF else 0.0
    return float(min(1.0, zipf(round(ratio * cache), exponent)[:cache].sum()))


def _left_out(results: dict[str, Any]) -> str:
    parts = [
        f"{entry['system']} was left out of the cliff, because a cache for {entry['cache']} models "
        f"does not fit: {entry['cache_bytes'] / 1e9:.1f} GB."
        for entry in results["cliff_left_out"]
    ]
    return " ".join(parts)


def _of_one(results: dict[str, Any], traffic: str) -> str:
    chosen = of(results, traffic)
    rows = [
        _row(chosen, name, place, at_best(results, traffic, place))
        for place in chosen.places
        for name in chosen.systems
        if chosen.at(name, place)
    ]
    if not rows:
        return ""
    return tables.paragraphs(
        f"**{describe(traffic, results['zipf']).capitalize()}**",
        tables.table((*_HEADER, *_MORE), rows),
        " ".join([*_what_is_left(chosen), *_what_pins_give(chosen)]),
    )


def _row(chosen: Selection, system: str, place: float, best: float) -> tuple[str, ...]:
    def measured(figure: selection.Figure) -> tables.Measured | None:
        return chosen.measured(system, place, figure)

    latencies = (selection.p50, selection.p99, selection.slowest)
    return (
        f"{place:g}",
        system,
        selection.text(measured(selection.requests)),
        *(selection.text(measured(figure), 0, " ms") for figure in latencies),
        selection.percent(measured(selection.hits)),
        f"{best:.0%}",
        selection.errors(chosen.at(system, place)),
        held(chosen.at(system, place)),
        selection.gigabytes(measured(selection.mapped)),
    )


def held(entries: Sequence[selection.Entry]) -> str:
    """Only gpt2serve tells."""
    counts = sorted({entry["resident"] for entry in entries if "resident" in entry})
    return "-".join(map(str, [*counts[:1], *counts[1:][-1:]])) or "-"


def _what_is_left(chosen: Selection) -> Iterable[str]:
    """Of the throughput where nothing is ever loaded."""
    for name in chosen.systems:
        places, speeds = chosen.line(name, selection.requests)
        if len(places) > 1 and places[0] <= 1 and speeds[0] > 0:
            yield (
                f"{name} keeps {speeds[-1] / speeds[0]:.0%} of its requests a second when "
                f"{places[-1]:g} times as many models are asked as there is room for."
            )


def _what_pins_give(chosen: Selection) -> Iterable[str]:
    half = chosen.ratio(PINNED.name, LRU.name, max(chosen.places), selection.requests)
    if half is not None:
        yield (
            f"Half of the cache pinned gives {half.median:.2f} times the requests of none pinned "
            f"({half.low:.2f} - {half.high:.2f}) there."
        )
