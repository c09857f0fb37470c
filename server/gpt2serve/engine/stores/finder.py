"""The search over a store: an index that is kept, and the cards that are read for it.

Reading cards takes a while, so it happens in a thread of its own, which begins when somebody
searches. Until a card was read, its model is found by its id.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from itertools import islice

import msgspec

from gpt2serve.engine.stores.backend import Described
from gpt2serve.engine.stores.search import SearchIndex
from gpt2serve.package import ModelCard

#: Models whose cards are remembered; about half a kilobyte each.
MOST_CARDS = 100_000
#: Cards that are read in one go; then the index is made anew, and the thread pauses.
BATCH = 20_000
#: So many times as long as it has worked, so that requests do not notice.
PAUSE = 3.0

_LONGEST_TEXT = 200
_LONGEST_ADDRESS = 1000


class Finder:
    """Thread-safe. No search waits for a card.

    `describe` reads the card of one model and may touch the disk; `describable` gives, of all
    ids, those for which it can.
    """

    def __init__(
        self,
        describe: Callable[[str, Described | None], Described | None],
        describable: Callable[[Sequence[str]], Iterable[str]],
        *,
        clock: Callable[[], float],
    ) -> None:
        self._describe = describe
        self._describable = describable
        self._clock = clock
        self._known: dict[str, Described] = {}
        self._lock = threading.Lock()
        self._first = threading.Lock()
        self._index: SearchIndex | None = None
        #: The list of models for which cards were read last.
        self._done: Sequence[str] | None = None
        self._reading: threading.Thread | None = None
        self._closed = threading.Event()

    def find(self, keys: Sequence[str], search: str, after: str, limit: int) -> list[str]:
        """As `SearchIndex.find`, among `keys` as they are now or were a moment ago.

        Another list of keys makes the index and the cards be renewed, behind the caller's back.
        """
        with self._first:
            index = self._index or self._make(keys)
        self._renew_if_due(keys)
        return index.find(search, after, limit)

    def find_among(self, keys: Sequence[str], search: str, after: str, limit: int) -> list[str]:
        """The same among these keys, of which there are few."""
        return SearchIndex(keys, self._cards(keys)).find(search, after, limit)

    def card(self, model: str) -> ModelCard | None:
        """As far as it was read."""
        known = self._known.get(model)
        return known.card if known else None

    def join(self) -> None:
        """Wait until the cards are read, if they are being read."""
        with self._lock:
            reading = self._reading
        if reading is not None:
            reading.join()

    def close(self) -> None:
        self._closed.set()

    def _make(self, keys: Sequence[str]) -> SearchIndex:
        self._index = index = SearchIndex(keys, self._cards(keys))
        return index

    def _cards(self, keys: Sequence[str]) -> dict[str, ModelCard]:
        models = (key[:-1] for key in keys)
        return {model: known.card for model in models if (known := self._known.get(model))}

    def _renew_if_due(self, keys: Sequence[str]) -> None:
        with self._lock:
            if self._reading is not None or keys is self._done or self._closed.is_set():
                return
            self._done = keys
            self._reading = threading.Thread(
                target=self._renew, args=(keys,), name="gpt2serve-cards", daemon=True
            )
            self._reading.start()

    def _renew(self, keys: Sequence[str]) -> None:
        try:
            if self._index is None or self._index.keys != keys:
                self._make(keys)
            self._read([key[:-1] for key in keys], lambda: self._make(keys))
        finally:
            with self._lock:
                self._reading = None

    def _read(self, models: Sequence[str], on_news: Callable[[], object]) -> None:
        readable = list(islice(self._describable(models), MOST_CARDS))
        for model in self._known.keys() - set(readable):
            del self._known[model]
        for first in range(0, len(readable), BATCH):
            begin = self._clock()
            news = [self._look(model) for model in readable[first : first + BATCH]]
            if any(news):
                on_news()
            if self._closed.wait(PAUSE * (self._clock() - begin)):
                return

    def _look(self, model: str) -> bool:
        """Whether there is anything new."""
        known = self._known.get(model)
        found = self._describe(model, known)
        if found is known:
            return False
        if found is None:
            del self._known[model]
        else:
            self._known[model] = found
        return known is None or found is None or found.card != known.card


class _CardOnly(msgspec.Struct):
    card: ModelCard


def card_in(manifest: bytes) -> ModelCard:
    """The card in a `manifest.json`; an empty one if it is none. Nothing else is checked."""
    try:
        return brief(msgspec.json.decode(manifest, type=_CardOnly).card)
    except msgspec.MsgspecError:
        return ModelCard()


def brief(card: ModelCard) -> ModelCard:
    """What a list shows. Nobody remembers a picture that is written out in its address."""
    return ModelCard(
        title=card.title[:_LONGEST_TEXT],
        handle=card.handle[:_LONGEST_TEXT],
        picture=card.picture if len(card.picture) <= _LONGEST_ADDRESS else "",
    )
