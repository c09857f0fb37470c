"""Least recently used: what the server does."""

from __future__ import annotations

from collections import OrderedDict

from benchmarks.policies.policy import Free


class LRU:
    def __init__(self) -> None:
        #: In order of use, the least recent first.
        self._keys: OrderedDict[str, None] = OrderedDict()

    def insert(self, key: str, size: int) -> None:
        del size
        self._keys[key] = None

    def hit(self, key: str) -> None:
        self._keys.move_to_end(key)

    def victim(self, free: Free) -> str:
        key = next(filter(free, self._keys))
        del self._keys[key]
        return key
