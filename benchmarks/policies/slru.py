"""Segmented LRU (Karedla et al., 1994): what was asked for again is protected.

Of those that are not protected the least recently used goes first. If too much is protected, the
least recently used of it no longer is. In the paper it then counts as if it had just been used;
here it keeps its place, as it would in a list that the server already has, and which is better
where models are asked for some times in a row and then no more.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict

from benchmarks.policies.policy import Free, first

#: Of the budget.
PROTECTED = 0.8


class SLRU:
    """budget: bytes of the cache."""

    def __init__(self, budget: float) -> None:
        self._limit = PROTECTED * budget
        self._requests = 0
        #: By key: (bytes, number of the latest request).
        self._keys: dict[str, tuple[int, int]] = {}
        #: The least recently used first.
        self._protected: OrderedDict[str, None] = OrderedDict()
        self._protected_bytes = 0
        #: (number of the latest request, key); what is no longer so stays for a while.
        self._others: list[tuple[int, str]] = []

    def __len__(self) -> int:
        return len(self._keys)

    def insert(self, key: str, size: int) -> None:
        self._use(key, size)
        self._expose(key)

    def hit(self, key: str) -> None:
        size, _ = self._keys[key]
        self._use(key, size)
        if key in self._protected:
            self._protected.move_to_end(key)
            return
        self._protected[key] = None
        self._protected_bytes += size
        while self._protected_bytes > self._limit and len(self._protected) > 1:
            other, _ = self._protected.popitem(last=False)
            self._protected_bytes -= self._keys[other][0]
            self._expose(other)

    def victim(self, free: Free) -> str:
        key = self.next_victim(free)
        assert key is not None, "nothing is free"
        self.remove(key)
        return key

    def next_victim(self, free: Free) -> str | None:
        """What `victim` would give, if there is any."""
        in_use = []
        found = None
        while self._others and found is None:
            used, key = self._others[0]
            if key in self._protected or self._keys.get(key, (0, 0))[1] != used:
                heapq.heappop(self._others)
            elif free(key):
                found = key
            else:
                in_use.append(heapq.heappop(self._others))
        for one in in_use:
            heapq.heappush(self._others, one)
        return found or first(self._protected, free)

    def remove(self, key: str) -> int:
        """Returns its bytes."""
        size, _ = self._keys.pop(key)
        if key in self._protected:
            del self._protected[key]
            self._protected_bytes -= size
        return size

    def _use(self, key: str, size: int) -> None:
        self._requests += 1
        self._keys[key] = size, self._requests

    def _expose(self, key: str) -> None:
        heapq.heappush(self._others, (self._keys[key][1], key))
