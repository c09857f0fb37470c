"""Segmented LRU (Karedla et al., 1994): what was asked for again is protected.

Two LRU lists: newcomers are on probation, and go first; a key that is asked for again while it is
here is protected. If too much is, the least recently used of it is on probation again.
"""

from __future__ import annotations

from collections import OrderedDict

from benchmarks.policies.policy import Free, first

#: Of the budget.
PROTECTED = 0.8


class SLRU:
    """budget: bytes of the cache."""

    def __init__(self, budget: float) -> None:
        self._limit = PROTECTED * budget
        #: Bytes by key, the least recently used first.
        self._probation: OrderedDict[str, int] = OrderedDict()
        self._protected: OrderedDict[str, int] = OrderedDict()
        self._protected_bytes = 0

    def __len__(self) -> int:
        return len(self._probation) + len(self._protected)

    def insert(self, key: str, size: int) -> None:
        self._probation[key] = size

    def hit(self, key: str) -> None:
        if key in self._protected:
            self._protected.move_to_end(key)
            return
        self._protected[key] = size = self._probation.pop(key)
        self._protected_bytes += size
        while self._protected_bytes > self._limit and len(self._protected) > 1:
            other, size = self._protected.popitem(last=False)
            self._protected_bytes -= size
            self._probation[other] = size

    def victim(self, free: Free) -> str:
        key = self.next_victim(free)
        assert key is not None, "nothing is free"
        self.remove(key)
        return key

    def next_victim(self, free: Free) -> str | None:
        """What `victim` would give, if there is any."""
        return first(self._probation, free) or first(self._protected, free)

    def remove(self, key: str) -> int:
        """Returns its bytes."""
        if key in self._probation:
            return self._probation.pop(key)
        size = self._protected.pop(key)
        self._protected_bytes -= size
        return size
