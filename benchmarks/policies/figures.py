"""Finds entries among the raw results and compares them. Pure."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.policies.plan import BASE, OPTIMUM

Entry = dict[str, Any]


@dataclass(frozen=True)
class Place:
    """What all policies of a comparison have in common."""

    trace: str
    models: int
    sizes: str
    cache: float


class Selection:
    def __init__(self, results: dict[str, Any]) -> None:
        self._entries = {(_place(one), one["policy"]): one for one in results["cells"]}
        self._usual_bytes = float(results["costs"]["model_bytes"])

    @property
    def places(self) -> list[Place]:
        """Those where policies were compared: other ones than LRU were simulated there."""
        return [place for place, policy in self._entries if policy == OPTIMUM]

    def at(self, place: Place, policy: str) -> Entry | None:
        return self._entries.get((place, policy))

    def change(self, place: Place, policy: str, quantity: str = "misses") -> float | None:
        """Against LRU: -0.1 is a tenth less."""
        one, base = self.at(place, policy), self.at(place, BASE)
        if one is None or base is None or not base[quantity]:
            return None
        return float(one[quantity]) / float(base[quantity]) - 1

    def changes(self, places: Iterable[Place], policy: str) -> list[float]:
        found = (self.change(place, policy) for place in places)
        return [change for change in found if change is not None]

    def loads(self, place: Place, policy: str) -> float:
        """That a request causes on average, in loads of models of the usual size."""
        one = self._entries[place, policy]
        return float(one["bytes_loaded"]) / self._usual_bytes / float(one["requests"])

    def lru_needs(self, place: Place, policy: str) -> float | None:
        """How many times as large a cache LRU needs for as few misses.

        None if that is more, or less, than what was simulated.
        """
        aim = self._entries[place, policy]["misses"]
        curve = [
            (other.cache, one["misses"])
            for (other, name), one in self._entries.items()
            if name == BASE
            and (other.trace, other.models, other.sizes) == (place.trace, place.models, place.sizes)
        ]
        share = _crossing(sorted(curve), aim)
        return None if share is None else share / place.cache


def _place(entry: Entry) -> Place:
    return Place(entry["trace"], entry["models"], entry["sizes"], entry["cache"])


def _crossing(curve: Sequence[tuple[float, float]], aim: float) -> float | None:
    """Where a falling curve comes down to `aim`; between its points by straight lines."""
    for (left, high), (right, low) in itertools.pairwise(curve):
        if high >= aim >= low and high > low:
            share = (high - aim) / (high - low)
            return math.exp((1 - share) * math.log(left) + share * math.log(right))
    return None
