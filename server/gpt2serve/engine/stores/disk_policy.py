"""Pure policy: what leaves a disk cache that has to make room."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Entry:
    """Something in the cache. `used` is the time of its last use, in seconds."""

    name: str
    bytes: int
    used: float


def evict(entries: Iterable[Entry], excess: int, remove: Callable[[Entry], bool]) -> int:
    """Remove the least recently used until `excess` bytes are free; returns the bytes freed.

    `remove` says False of an entry that somebody holds; it stays, and the next one goes.
    """
    freed = 0
    for entry in sorted(entries, key=lambda entry: (entry.used, entry.name)):
        if freed >= excess:
            break
        if remove(entry):
            freed += entry.bytes
    return freed
