"""What the report says of the real server, and of the simulation beside it. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.common import tables

Entry = dict[str, Any]

#: Times what is counted, from which on the report says so.
_MUCH_MORE = 1.15


def _points(points: Sequence[Sequence[float]]) -> str:
    return ", ".join(f"{place:.0f}: {1000 * seconds:.1f} ms" for place, seconds in points)


def _milliseconds(seconds: float) -> str:
    return f"{1000 * seconds:.1f} ms"


def _factor(value: float) -> str:
    return f"{value:.2f}x as long"


def _megabytes(size: float) -> str:
    return f"{size / 1e6:.0f} MB"


_ROWS: tuple[tuple[str, str, Callable[[Any], str]], ...] = (
    ("decode", "decode step by sequences", _points),
    ("prefill", "prefill step by tokens", _points),
    ("unpacked_decode", "decode step, not packed yet", _points),
    ("unpacked_prefill", "first prefill of a cold model", _points),
    ("load", "load of a model", _milliseconds),
    ("first_load", "the first one, hashes checked", _milliseconds),
    ("pack", "packing a model, alone", _milliseconds),
    ("packing_beside_steps", "packing beside steps", _factor),
    ("step_beside_packing", "a step beside packing", _factor),
    ("overhead", "a request outside of the engine", _milliseconds),
    ("model_bytes", "memory of a model, as the server counts it", _megabytes),
    ("resident_bytes", "and as its process grows", _megabytes),
)


def times_table(results: dict[str, Any]) -> str:
    times = results["times"]
    rows = [(label, told(times[name])) for name, label, told in _ROWS if name in times]
    return tables.paragraphs(
        tables.table(("weights in the page cache", ""), rows), _uncounted(times)
    )


def _uncounted(times: dict[str, Any]) -> str:
    more = times["resident_bytes"] / times["model_bytes"]
    if more < _MUCH_MORE:
        return ""
    return (
        f"A model takes {more:.1f}x the memory that the server counts, so its cache holds more "
        "models than its budget is meant for. Predictions beside measurements count as the server "
        "does; fleets count what is really taken."
    )


def validation(results: dict[str, Any]) -> str:
    entries = results["validation"]
    header = [
        "measured -> predicted (error)",
        *(f"{one['rate']:.1f} requests/s ({one['share']:g})" for one in entries),
    ]
    names = list(entries[0]["errors"])
    rows = [[_label(name), *(_compared(one, name) for one in entries)] for name in names]
    counts = ["requests", *(str(one["measured"]["requests"]) for one in entries)]
    failed = ["failed", *(f"{one['measured']['failed']} -> 0" for one in entries)]
    return tables.paragraphs(
        "In brackets: times the rate at which one request after the other could be answered. "
        "Above 1 the server keeps up only by batches.",
        tables.table(header, [counts, failed, *rows]),
        _errors(entries),
        f"A p99 of {min(one['measured']['requests'] for one in entries)} requests hangs on a few "
        "of them: its error is mostly theirs.",
    )


def _label(name: str) -> str:
    words = {"first_ms": "first token", "total_ms": "whole answer"}
    key, _, rank = name.partition(" ")
    return f"{words[key]} {rank}, ms" if rank else name.replace("_", " ")


def _figure(told: Entry, name: str) -> float | None:
    key, _, rank = name.partition(" ")
    value: float | None = told[key][rank] if rank else told[key]
    return value


def _compared(entry: Entry, name: str) -> str:
    was, told = (_figure(entry[side], name) for side in ("measured", "predicted"))
    error = entry["errors"][name]
    digits = 2 if name == "hit_ratio" else 0
    texts = ["-" if value is None else f"{value:.{digits}f}" for value in (was, told)]
    return f"{texts[0]} -> {texts[1]}" + (f" ({error:+.0%})" if error is not None else "")


def _errors(entries: Sequence[Entry]) -> str:
    """A sentence on how far off the predictions are."""
    parts = []
    for name in ("tokens_per_second", "hit_ratio", "first_ms p50", "first_ms p99", "total_ms p50"):
        errors = [one["errors"][name] for one in entries if one["errors"][name] is not None]
        if errors:
            furthest = max(errors, key=abs)
            parts.append(f"{_label(name).removesuffix(', ms')} {furthest:+.0%}")
    return "The prediction that is furthest off: " + ", ".join(parts) + "."
