"""Quantities from the raw results, one value a round. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.coldstart.phases import PHASES
from benchmarks.common.tables import Measured

WARM, COLD = "warm", "cold"

Start = dict[str, Any]


def starts(results: dict[str, Any], system: str, cache: str) -> list[Start]:
    """In order of the rounds; empty if there was no such measurement."""
    return [one for one in results["starts"] if one["system"] == system and one["cache"] == cache]


def systems(results: dict[str, Any]) -> list[str]:
    return list(dict.fromkeys(one["system"] for one in results["starts"]))


def measured(chosen: Sequence[Start], quantity: str | Callable[[Start], float]) -> Measured:
    """quantity: a key of a start, or what computes a number from one."""
    if isinstance(quantity, str):
        return Measured(tuple(float(one[quantity]) for one in chosen))
    return Measured(tuple(map(quantity, chosen)))


def phases(chosen: Sequence[Start]) -> dict[str, float]:
    """Median milliseconds of each phase, in the order in which they come."""
    names = [name for name in PHASES if any(name in one["phases_ms"] for one in chosen)]
    return {
        name: statistics.median(one["phases_ms"].get(name, 0.0) for one in chosen) for name in names
    }


def sequential_rate(results: dict[str, Any], system: str) -> Callable[[Start], float]:
    """Bytes a second that reading the system's files alone, from beginning to end, gave."""
    size = results["file_bytes"][system]
    return lambda start: 1000 * size / float(start["reading_ms"])


def disk_rate(results: dict[str, Any], system: str) -> Callable[[Start], float]:
    """Bytes a second that the disk gives: the most of what was seen."""
    sequential = sequential_rate(results, system)
    direct = results["direct_rates"][system] or 0.0
    return lambda start: max(sequential(start), direct)


def share(results: dict[str, Any], system: str) -> Callable[[Start], float]:
    """Of the time to the first token, what the disk needs to give the bytes that were read."""
    rate = disk_rate(results, system)
    return lambda start: 1000 * float(start["read_bytes"]) / rate(start) / float(start["first_ms"])
