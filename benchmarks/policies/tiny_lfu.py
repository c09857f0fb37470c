"""W-TinyLFU (Einziger et al., 2017): who was asked for more often in recent times stays.

Newcomers are in a small window, an LRU list; the main part is a segmented LRU. When a newcomer has
to leave the window and there is no room, it goes, unless it was asked for more often than what
the main part would give up. Frequencies are counted exactly here, of all models, not estimated,
and halved from time to time.
"""

from __future__ import annotations

from collections import Counter, OrderedDict

from benchmarks.policies.policy import Free, first
from benchmarks.policies.slru import SLRU

#: Of the budget, as in Caffeine.
_WINDOW = 0.01
_MOST = 15
#: Frequencies are halved after so many requests for each key that the cache holds.
_PERIOD = 10


class WTinyLFU:
    """budget: bytes of the cache."""

    def __init__(self, budget: int) -> None:
        self._window_limit = _WINDOW * budget
        self._main_limit = budget - self._window_limit
        #: Bytes by key, the least recently used first.
        self._window: OrderedDict[str, int] = OrderedDict()
        self._main = SLRU(self._main_limit)
        self._window_bytes = self._main_bytes = 0
        self._asked: Counter[str] = Counter()
        self._requests = 0

    def insert(self, key: str, size: int) -> None:
        self._count(key)
        self._window[key] = size
        self._window_bytes += size
        while self._window_bytes > self._window_limit:
            oldest = next(iter(self._window))
            if oldest == key or self._main_bytes + self._window[oldest] > self._main_limit:
                break
            self._leave_window(oldest)

    def hit(self, key: str) -> None:
        self._count(key)
        if key in self._window:
            self._window.move_to_end(key)
        else:
            self._main.hit(key)

    def victim(self, free: Free) -> str:
        newcomer = None
        if self._window_bytes > self._window_limit:
            newcomer = first(self._window, free)
        other = self._main.next_victim(free)
        if newcomer and other and self._asked[newcomer] > self._asked[other]:
            self._leave_window(newcomer)
            newcomer = None
        key = newcomer or other or first(self._window, free)
        assert key is not None, "nothing is free"
        if key in self._window:
            self._window_bytes -= self._window.pop(key)
        else:
            self._main_bytes -= self._main.remove(key)
        return key

    def _count(self, key: str) -> None:
        self._asked[key] = min(self._asked[key] + 1, _MOST)
        self._requests += 1
        if self._requests >= _PERIOD * max(1, len(self._window) + len(self._main)):
            self._requests = 0
            self._asked = Counter({key: n // 2 for key, n in self._asked.items() if n > 1})

    def _leave_window(self, key: str) -> None:
        size = self._window.pop(key)
        self._window_bytes -= size
        self._main.insert(key, size)
        self._main_bytes += size
