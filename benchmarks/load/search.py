"""The highest rate that a server sustains, found by doubling and bisecting. Pure.

Rates lie on one grid for all servers and all rounds, so that measurements of the same rate can be
put together and compared.
"""

from __future__ import annotations

import math
from typing import Any

from benchmarks.load.outcome import UNFINISHED

#: Rates of the grid between one and its double: each is 9 % above the one before.
STEPS_PER_DOUBLING = 8

#: A rate is sustained if the work done is at least this share of the work that came ...
LEAST_SHARE = 0.95
#: ... or lacks no more requests than chance explains where few come; ...
CHANCE_REQUESTS = 2.0
#: ... if 99 % of the first tokens come in that time; ...
MOST_TTFT_MS = 2000.0
#: ... and at most this share of the requests fails.
MOST_FAILED = 0.01


def rate_of(step: int) -> float:
    """Requests per second."""
    return float(2 ** (step / STEPS_PER_DOUBLING))


def step_of(rate: float) -> int:
    """The nearest."""
    return round(STEPS_PER_DOUBLING * math.log2(rate))


def is_sustained(figures: dict[str, Any]) -> bool:
    """figures: of `summary.summary`."""
    first = figures["ttft_ms"] or figures["end_to_end_ms"]
    if first is None or first["p99"] > MOST_TTFT_MS:
        return False
    finished = figures["ok"] + figures["codes"].get(UNFINISHED, 0)
    if figures["requests"] - finished > MOST_FAILED * figures["requests"]:
        return False
    missing = figures["offered_per_second"] - figures["requests_per_second"]
    allowed = (1 - LEAST_SHARE) * figures["offered_per_second"]
    return bool(missing <= max(allowed, CHANCE_REQUESTS / figures["seconds"]))


class Search:
    """Says which step to measure next, and which is the highest that was sustained.

    From `start` it goes up or down by `stride` until one step is sustained and a higher one is
    not; then it halves the gap until they are neighbours.
    It ends after `most` measurements in any case, and never goes below `lowest`.
    """

    def __init__(self, start: int, *, stride: int, most: int, lowest: int) -> None:
        self._next = max(start, lowest)
        self._stride = stride
        self._left = most
        self._lowest = lowest
        #: The highest step that was sustained, and the lowest above it that was not.
        self._low: int | None = None
        self._high: int | None = None

    @property
    def best(self) -> int | None:
        """None if no step was sustained."""
        return self._low

    @property
    def next(self) -> int | None:
        """None when the search is over."""
        # Nothing lies below the lowest, so it counts as a sustained one would that lies there.
        floor = self._lowest - 1 if self._low is None else self._low
        return None if self._high == floor + 1 or not self._left else self._next

    def tell(self, *, sustained: bool) -> None:
        """What came of `next`."""
        if sustained:
            self._low = self._next
        else:
            self._high = self._next
        self._left -= 1
        self._next = self._choose()

    def _choose(self) -> int:
        if self._low is not None and self._high is not None:
            return (self._low + self._high) // 2
        if self._high is None:
            return self._next + self._stride
        return max(self._next - self._stride, self._lowest)
