"""Greedy-Dual-Size-Frequency (Cherkasova, 1998): the least useful goes, and the rest ages.

A key's priority is age + frequency x cost / size, where the age of the cache is the priority of
what it evicted last. If a miss costs what the model weighs, size falls out: LFU with dynamic
aging (LFU-DA), which is also what this is where all sizes are equal.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.policies.policy import Free


@dataclass(slots=True)
class _Entry:
    #: With the number of the latest request: of equal priorities the least recently used goes.
    priority: tuple[float, int]
    #: What one more request adds.
    worth: float
    frequency: int = 1


class GDSF:
    """cost: of a miss, by size; in any unit."""

    def __init__(self, cost: Callable[[int], float]) -> None:
        self._cost = cost
        self._age = 0.0
        self._entries: dict[str, _Entry] = {}
        #: Each key once. Its priority here may be an older, lower one.
        self._heap: list[tuple[tuple[float, int], str]] = []
        self._requests = 0

    def insert(self, key: str, size: int) -> None:
        self._requests += 1
        worth = self._cost(size) / size
        self._entries[key] = _Entry((self._age + worth, self._requests), worth)
        self._push(key)

    def hit(self, key: str) -> None:
        self._requests += 1
        entry = self._entries[key]
        entry.frequency += 1
        entry.priority = self._age + entry.frequency * entry.worth, self._requests

    def victim(self, free: Free) -> str:
        in_use = []
        while True:
            priority, key = heapq.heappop(self._heap)
            if priority < self._entries[key].priority:
                self._push(key)
            elif not free(key):
                in_use.append(key)
            else:
                break
        for other in in_use:
            self._push(other)
        self._age = priority[0]
        del self._entries[key]
        return key

    def _push(self, key: str) -> None:
        heapq.heappush(self._heap, (self._entries[key].priority, key))
