"""The entries of a comparison by server, rate and round. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.common.tables import Measured, ratio

Entries = Sequence[dict[str, Any]]


def measured_systems(results: Mapping[str, Any]) -> list[str]:
    """In the order of the tables; those that failed have no entries."""
    return [name for name in results["systems"] if name not in results["failed"]]


def of(entries: Entries, kind: str, system: str) -> list[dict[str, Any]]:
    return [entry for entry in entries if entry["kind"] == kind and entry["system"] == system]


def sustained(entries: Entries, system: str) -> dict[int, dict[str, Any]]:
    """The point with the highest sustained rate of each round that has one."""
    best: dict[int, dict[str, Any]] = {}
    for entry in of(entries, "open", system):
        former = best.get(entry["round"])
        if entry["sustained"] and (former is None or entry["step"] > former["step"]):
            best[entry["round"]] = entry
    return best


def over_rounds(entries: Entries, *keys: str) -> Measured | None:
    """A figure, such as ("ttft_ms", "p50"), of each entry that has it."""
    values = []
    for entry in entries:
        value: Any = entry
        for key in keys:
            value = value[key] if value is not None else None
        if value is not None:
            values.append(float(value))
    return Measured(tuple(values)) if values else None


def codes(entries: Entries) -> dict[str, int]:
    """How many requests ended with each code that is not "ok", all entries together."""
    counts: Counter[str] = Counter()
    for entry in entries:
        counts.update(entry["codes"])
    return {code: counts[code] for code in sorted(counts) if code != "ok"}


def points(entries: Entries, system: str) -> list[list[dict[str, Any]]]:
    """The measurements of each rate, in the order of the rates."""
    steps: dict[int, list[dict[str, Any]]] = {}
    for entry in of(entries, "open", system):
        steps.setdefault(entry["step"], []).append(entry)
    return [steps[step] for step in sorted(steps)]


def sustained_rates(entries: Entries, system: str) -> dict[int, float]:
    """By round: the work done at the highest sustained rate, which is what counts of it."""
    best = sustained(entries, system)
    return {number: entry["requests_per_second"] for number, entry in best.items()}


def closed_rates(entries: Entries, system: str) -> dict[int, float]:
    """By round; a server that did nothing has none."""
    closed = of(entries, "closed", system)
    return {one["round"]: rate for one in closed if (rate := one["requests_per_second"]) > 0}


def paired(ours: Mapping[int, float], theirs: Mapping[int, float]) -> Measured | None:
    """Quotients of the rounds that both have."""
    both = sorted(set(ours) & set(theirs))
    if not both:
        return None
    return ratio(*(Measured(tuple(side[number] for number in both)) for side in (ours, theirs)))
