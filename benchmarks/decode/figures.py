"""Times and ratios out of the raw results. Pure; the report, the plots and the README use it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from benchmarks.common.tables import Measured, ratio

#: By system, batch size and length of the prompts.
Key = tuple[str, int, int]
Values = dict[Key, Measured]

Entry = Mapping[str, Any]


def step_ms(entry: Entry) -> float | None:
    """Milliseconds of a decode step; None if the whole batch never grew together."""
    steps = entry["decode_steps"]
    return 1000 * entry["decode_seconds"] / steps if steps else None


def decode_speed(entry: Entry) -> float | None:
    """Tokens per second, of all texts together, after the first."""
    step = step_ms(entry)
    return None if step is None else 1000 * entry["batch"] / step


def first_ms(entry: Entry) -> float:
    """Milliseconds until every text had its first token."""
    return float(1000 * entry["first_seconds"])


def prefill_speed(entry: Entry) -> float:
    """Prompt tokens per second."""
    return float(entry["batch"] * entry["prompt"] / entry["first_seconds"])


def values_of(results: Mapping[str, Any], quantity: Callable[[Entry], float | None]) -> Values:
    """`quantity` by system and cell, once for each round."""
    grouped: dict[Key, list[float]] = {}
    for entry in results["measurements"]:
        value = quantity(entry)
        if value is not None:
            key = entry["system"], entry["batch"], entry["prompt"]
            grouped.setdefault(key, []).append(value)
    return {key: Measured(tuple(values)) for key, values in grouped.items()}


def systems_in(results: Mapping[str, Any]) -> list[str]:
    """In the order in which they were measured."""
    return list(dict.fromkeys(entry["system"] for entry in results["measurements"]))


def times_as_fast(steps: Values, ours: str, other: str, batch: int, prompt: int) -> Measured | None:
    """The other's time for a step over ours, paired by round; None if either was not measured."""
    mine, theirs = steps.get((ours, batch, prompt)), steps.get((other, batch, prompt))
    if mine is None or theirs is None or len(mine.values) != len(theirs.values):
        return None
    return ratio(theirs, mine)


def fastest(speeds: Values, batch: int, prompt: int) -> list[tuple[str, float]]:
    """Systems and their medians, the fastest first."""
    found = [
        (system, value.median)
        for (system, size, length), value in speeds.items()
        if (size, length) == (batch, prompt)
    ]
    return sorted(found, key=lambda pair: -pair[1])
