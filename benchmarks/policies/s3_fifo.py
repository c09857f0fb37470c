"""S3-FIFO (Yang et al., SOSP 2023): a small queue for newcomers, a main one, and a memory.

A newcomer that nobody asked for again while it passed through the small queue goes; if it is
asked for soon afterwards, it comes back into the main queue.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from benchmarks.policies.policy import Free, first

#: Of the bytes in the cache.
_SMALL = 0.1
_MOST = 3
#: A newcomer that was asked for again so often goes on to the main queue.
_PROVEN = 2


@dataclass(slots=True)
class _Entry:
    size: int
    again: int = 0


class S3FIFO:
    def __init__(self) -> None:
        #: The oldest first.
        self._small: OrderedDict[str, _Entry] = OrderedDict()
        self._main: OrderedDict[str, _Entry] = OrderedDict()
        #: Keys that left the small queue, as many as the main one has room for.
        self._ghosts: OrderedDict[str, None] = OrderedDict()
        self._small_bytes = self._main_bytes = 0

    def insert(self, key: str, size: int) -> None:
        if key in self._ghosts:
            del self._ghosts[key]
            self._to_main(key, _Entry(size))
        else:
            self._small[key] = _Entry(size)
            self._small_bytes += size

    def hit(self, key: str) -> None:
        entry = self._small.get(key) or self._main[key]
        entry.again = min(entry.again + 1, _MOST)

    def victim(self, free: Free) -> str:
        while True:
            share = _SMALL * (self._small_bytes + self._main_bytes)
            main = first(self._main, free)
            small = first(self._small, free)
            if small is not None and (self._small_bytes > share or main is None):
                entry = self._small.pop(small)
                self._small_bytes -= entry.size
                if entry.again < _PROVEN:
                    self._remember(small)
                    return small
                self._to_main(small, _Entry(entry.size))
            else:
                assert main is not None, "nothing is free"
                entry = self._main.pop(main)
                self._main_bytes -= entry.size
                if not entry.again:
                    return main
                self._to_main(main, _Entry(entry.size, entry.again - 1))

    def _to_main(self, key: str, entry: _Entry) -> None:
        self._main[key] = entry
        self._main_bytes += entry.size

    def _remember(self, key: str) -> None:
        self._ghosts[key] = None
        room = (1 - _SMALL) * (len(self._small) + len(self._main))
        while len(self._ghosts) > max(1, room):
            self._ghosts.popitem(last=False)
