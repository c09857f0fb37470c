"""What a cache asks of its policy."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol

#: Whether a key may be evicted: its model is in memory, and no request uses it.
Free = Callable[[str], bool]


class Policy(Protocol):
    """Knows the keys in a cache and says which one goes.

    Every request calls `insert` or `hit`, once, in order of time.
    """

    def insert(self, key: str, size: int) -> None:
        """A model is asked for that is not here. From now on it is: it will be loaded."""

    def hit(self, key: str) -> None:
        """A model is asked for that is here, or is being loaded."""

    def victim(self, free: Free) -> str:
        """The key to evict, which is forgotten here. At least one key is free."""


def first(keys: Iterable[str], free: Free) -> str | None:
    """The first key that is free."""
    return next(filter(free, keys), None)
