"""The list of all models: made by going through the store, kept, and renewed now and then."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable

from gpt2serve.engine.stores.backend import sort_key
from gpt2serve.errors import StoreUnavailable

#: A listing may take at most one part in this many of the time.
SHARE = 10


class Catalog:
    """Ids in the order of `sort_key`. Thread-safe.

    `read` goes through the store; it is called at most every `refresh` seconds, only when
    somebody asks, and in a thread of its own except for the very first time. Until it has
    returned, answers are those of the last time. `on_renewed` is told all ids, in that thread.
    """

    def __init__(
        self,
        read: Callable[[], Iterable[str]],
        *,
        refresh: float,
        clock: Callable[[], float],
        on_renewed: Callable[[set[str]], None],
    ) -> None:
        self._read = read
        self._refresh = refresh
        self._clock = clock
        self._on_renewed = on_renewed
        self._lock = threading.Lock()
        self._first = threading.Lock()
        self._keys: list[str] | None = None
        self._next = 0.0
        self._problem: StoreUnavailable | None = None
        self._renewal: threading.Thread | None = None

    def keys(self) -> list[str]:
        """All ids, as sorted `sort_key`s: the same list until there is a new one.

        Raises `StoreUnavailable` if there was no list yet and there cannot be one now.
        """
        keys = self._keys
        if keys is not None:
            self._renew_if_due()
            return keys
        with self._first:
            return self._renew_first() if self._keys is None else self._keys

    def join(self) -> None:
        """Wait for a renewal that is under way."""
        with self._lock:
            renewal = self._renewal
        if renewal is not None:
            renewal.join()

    def _renew_first(self) -> list[str]:
        if self._problem is not None and self._clock() < self._next:
            raise StoreUnavailable(
                str(self._problem), retry_after=self._problem.retry_after, everywhere=False
            )
        try:
            return self._renew()
        except StoreUnavailable as error:
            self._problem = error
            raise

    def _renew_if_due(self) -> None:
        with self._lock:
            if self._renewal is not None or self._clock() < self._next:
                return
            self._renewal = threading.Thread(
                target=self._renew_behind, name="gpt2serve-catalog", daemon=True
            )
            self._renewal.start()

    def _renew_behind(self) -> None:
        try:
            self._renew()
        except StoreUnavailable:
            pass  # the last list goes on being right enough
        finally:
            with self._lock:
                self._renewal = None

    def _renew(self) -> list[str]:
        begin = self._clock()
        try:
            keys = sorted(sort_key(model) for model in self._read())
        finally:
            took = self._clock() - begin
            self._next = begin + took + max(self._refresh, took * SHARE)
        self._keys = keys
        self._on_renewed({key[:-1] for key in keys})
        return keys
