"""Belady's optimum: what is asked for again the latest goes. It knows the whole trace.

With equal sizes, and loads and answers that take no time, no policy has more hits. With sizes the
greatest size x requests until the next one goes, which is good and no bound.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence

from benchmarks.policies.policy import Free


class Belady:
    """keys: of all requests that will come, in order."""

    def __init__(self, keys: Sequence[str]) -> None:
        self._next_use = _next_uses(keys)
        self._now = -1
        #: By key: (size, number of the request that asks for it next).
        self._entries: dict[str, tuple[int, float]] = {}
        #: By size: (-next use, key), the latest first; what is no longer so stays for a while.
        self._heaps: dict[int, list[tuple[float, str]]] = {}

    def insert(self, key: str, size: int) -> None:
        self._now += 1
        self._entries[key] = size, self._next_use[self._now]
        self._push(key)

    def hit(self, key: str) -> None:
        self._now += 1
        self._entries[key] = self._entries[key][0], self._next_use[self._now]
        self._push(key)

    def victim(self, free: Free) -> str:
        in_use: list[str] = []
        latest = [self._latest(size, free, in_use) for size in list(self._heaps)]
        key = max((key for key in latest if key is not None), key=self._distance)
        for other in in_use:
            self._push(other)
        del self._entries[key]
        return key

    def _latest(self, size: int, free: Free, in_use: list[str]) -> str | None:
        """Of the keys of one size that may go. What is in the way is taken out of the heap."""
        heap = self._heaps[size]
        while heap:
            minus, key = heap[0]
            if self._entries.get(key) == (size, -minus):
                if free(key):
                    return key
                in_use.append(key)
            heapq.heappop(heap)
        return None

    def _distance(self, key: str) -> tuple[float, int, str]:
        size, use = self._entries[key]
        return size * (use - self._now), size, key

    def _push(self, key: str) -> None:
        size, use = self._entries[key]
        heapq.heappush(self._heaps.setdefault(size, []), (-use, key))


def _next_uses(keys: Sequence[str]) -> list[float]:
    """For each request the number of the next one for the same key; infinite if there is none."""
    following: dict[str, float] = {}
    uses = [math.inf] * len(keys)
    for number in range(len(keys) - 1, -1, -1):
        uses[number] = following.get(keys[number], math.inf)
        following[keys[number]] = number
    return uses
