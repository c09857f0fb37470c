"""Orders to unload models, until they are carried out."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import Future

from gpt2serve.engine.messages import settle
from gpt2serve.errors import EngineClosed, RequestAborted


class Unloads:
    """Part of the engine thread. A key is one version of a model; an order is for all of them."""

    def __init__(self) -> None:
        self._orders: list[tuple[set[str], Future[None]]] = []

    def add(self, keys: Iterable[str], done: Future[None]) -> None:
        """`done` ends when none of these is there any more."""
        self._orders.append((set(keys), done))
        self._settle()

    def gone(self, key: str) -> None:
        for keys, _ in self._orders:
            keys.discard(key)
        self._settle()

    def take_back(self, key: str) -> None:
        """It stays, and with it what the order was for."""
        for keys, done in self._orders:
            if key in keys:
                settle(done, RequestAborted("The model was asked to be loaded again."))
        self._orders = [order for order in self._orders if key not in order[0]]

    def abort(self, error: EngineClosed) -> None:
        for _, done in self._orders:
            settle(done, error)

    def _settle(self) -> None:
        for keys, done in self._orders:
            if not keys:
                settle(done)
        self._orders = [order for order in self._orders if order[0]]
