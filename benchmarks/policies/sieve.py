"""SIEVE (Zhang et al., NSDI 2024): a queue, a bit for each key, and a hand.

The hand goes from the oldest key to the newest and round again. It takes the first key that was
not asked for since the hand was there last; keys never move.
"""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.policies.policy import Free


@dataclass(slots=True, eq=False)
class _Node:
    key: str
    visited: bool = False
    older: _Node | None = None
    newer: _Node | None = None


class Sieve:
    def __init__(self) -> None:
        self._nodes: dict[str, _Node] = {}
        self._oldest: _Node | None = None
        self._newest: _Node | None = None
        self._hand: _Node | None = None

    def insert(self, key: str, size: int) -> None:
        del size
        node = self._nodes[key] = _Node(key, older=self._newest)
        if self._newest is None:
            self._oldest = node
        else:
            self._newest.newer = node
        self._newest = node

    def hit(self, key: str) -> None:
        self._nodes[key].visited = True

    def victim(self, free: Free) -> str:
        """The hand passes keys that are in use, and leaves their bits as they are."""
        node = self._hand or self._oldest
        while node is not None and (node.visited or not free(node.key)):
            if free(node.key):
                node.visited = False
            node = node.newer or self._oldest
        assert node is not None, "the cache is empty"
        self._hand = node.newer
        self._unlink(node)
        return node.key

    def _unlink(self, node: _Node) -> None:
        del self._nodes[node.key]
        if node.older is None:
            self._oldest = node.newer
        else:
            node.older.newer = node.newer
        if node.newer is None:
            self._newest = node.older
        else:
            node.newer.older = node.older
