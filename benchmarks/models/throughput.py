"""Tables of requests a second, latency and memory by size of the cache. Pure."""

from __future__ import annotations

from typing import Any

from benchmarks.common import tables
from benchmarks.models import selection
from benchmarks.models.plan import GPT2SERVE, SAME_BYTES, SYSTEMS
from benchmarks.models.selection import Selection


def section(results: dict[str, Any]) -> str:
    plot = "![Requests a second, and p99](benchmarks/models-throughput.svg)"
    return tables.paragraphs(
        _cells_table(results), plot if results["cells"] else "", _ratios_table(results)
    )


def _cells_table(results: dict[str, Any]) -> str:
    chosen = Selection(results["cells"], "cache")
    left_out = {(entry["system"], entry["cache"]): entry for entry in results["left_out"]}
    caches = sorted({*chosen.places, *(cache for _, cache in left_out)})
    rows = []
    for cache in caches:
        for system in SYSTEMS:
            if chosen.at(system.name, cache):
                rows.append(_cell_row(chosen, system.name, cache))
            elif (system.name, cache) in left_out:
                needed = left_out[system.name, cache]["cache_bytes"]
                note = f"does not fit: {needed / 1e9:.1f} GB"
                rows.append((str(cache), system.name, note, *["-"] * 8))
    header = ("cache", "system", "requests/s", "tokens/s", "p50", "p99", "max", "hits")
    more = ("errors", "memory if files differ", "here")
    return tables.table((*header, *more), rows) if rows else ""


def _cell_row(chosen: Selection, system: str, cache: int) -> tuple[str, ...]:
    def of(figure: selection.Figure) -> tables.Measured | None:
        return chosen.measured(system, cache, figure)

    name = system
    if system == SAME_BYTES.name:
        name += f" ({chosen.at(system, cache)[0]['held']} models)"
    return (
        str(cache),
        name,
        selection.text(of(selection.requests)),
        selection.text(of(selection.tokens), 0),
        selection.text(of(selection.p50), 0, " ms"),
        selection.text(of(selection.p99), 0, " ms"),
        selection.text(of(selection.slowest), 0, " ms"),
        selection.percent(of(selection.hits)),
        selection.errors(chosen.at(system, cache)),
        selection.gigabytes(of(selection.mapped)),
        selection.gigabytes(of(selection.shared)),
    )


def _ratios_table(results: dict[str, Any]) -> str:
    """gpt2serve beside each peer, by round."""
    chosen = Selection(results["cells"], "cache")
    rows = []
    for cache in chosen.places:
        for peer in peers(chosen):
            faster = chosen.ratio(GPT2SERVE.name, peer, cache, selection.tokens)
            sooner = chosen.ratio(peer, GPT2SERVE.name, cache, selection.p99)
            if faster is not None:
                times = (selection.text(faster, 2, "x"), selection.text(sooner, 2, "x"))
                rows.append((str(cache), peer, *times))
    header = ("cache", f"{GPT2SERVE.name} beside", "tokens/s", "p99: shorter by")
    return tables.table(header, rows) if rows else ""


def peers(chosen: Selection) -> list[str]:
    ours = {system.name for system in SYSTEMS if system.is_ours}
    return [name for name in chosen.systems if name not in ours]
