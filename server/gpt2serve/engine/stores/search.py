"""Finding models by what somebody types: pure, and made once for each list of models.

All models are lines of one text, in order of their ids, and `bytes.find` goes through a hundred
thousand of them in a millisecond or two. A second text has a mark wherever a run of letters and
digits begins, so that the same search finds what begins with a word.
"""

from __future__ import annotations

import re
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate, chain, islice

from gpt2serve.engine.stores.backend import page_of, sort_key
from gpt2serve.package import ModelCard

#: `str.split` takes it for white space, so no word has it.
_MARK = "\x1f"
_BEGINNING = re.compile(r"(?<![^\W_])(?=[^\W_])")


class SearchIndex:
    """Ids in order of `sort_key`, and what their cards say. Never changes.

    A model is found if every word of the search occurs in its id, title or handle, whatever the
    case of the letters. First comes the model whose id was typed in full, which could not be told
    apart by typing more; then those in which every word begins a part: no letter or digit stands
    before it. Models of one rank are in the order of their ids.
    """

    def __init__(self, keys: Sequence[str], cards: Mapping[str, ModelCard]) -> None:
        """`keys`: sorted `sort_key`s of all models; `cards` by id, as far as they are known."""
        plain, marked = [], []
        for key in keys:
            line = _line(key[:-1], cards.get(key[:-1]))
            plain.append(_encode(line))
            marked.append(_encode(_marked(line)))
        self.keys = keys
        self._plain = _Lines(plain)
        self._marked = _Lines(marked)

    def find(self, search: str, after: str = "", limit: int = 100) -> list[str]:
        """Up to `limit` ids that come after the id `after` among the results."""
        words = search.casefold().split()
        if not words:
            return page_of(self.keys, after, limit)
        if len(words) > 1:
            # The first word's lines are gone through, so it should have few.
            words.sort(key=lambda word: self._plain.count(_encode(word)))
        plain = [_encode(word) for word in words]
        marked = [_encode(_marked(word)) for word in words]
        found = self._exact_first(plain, marked, search.strip(), after)
        return [self.keys[line][:-1] for line in islice(found, limit)]

    def _exact_first(
        self, plain: list[bytes], marked: list[bytes], typed: str, after: str
    ) -> Iterator[int]:
        line = self._line_of(typed)
        found = self._ranked(plain, marked, "" if after == typed else after)
        if line is not None:
            found = (other for other in found if other != line)
            if not after:
                found = chain([line], found)
        return found

    def _ranked(self, plain: list[bytes], marked: list[bytes], after: str) -> Iterator[int]:
        begin = bisect_right(self.keys, sort_key(after)) if after else 0
        if after and not self._begins_with(after, marked):
            return self._others(plain, marked, begin)
        return chain(self._marked.with_all(marked, begin), self._others(plain, marked, 0))

    def _others(self, plain: list[bytes], marked: list[bytes], begin: int) -> Iterator[int]:
        """What has every word, but not every one at the beginning of a part."""
        found = self._plain.with_all(plain, begin)
        return (line for line in found if not self._marked.has_all(line, marked))

    def _begins_with(self, model: str, marked: list[bytes]) -> bool:
        line = self._line_of(model)
        if line is not None:
            return self._marked.has_all(line, marked)
        # It has gone since; nobody knows its title any more.
        text = _encode(_marked(_line(model, None)))
        return all(word in text for word in marked)

    def _line_of(self, model: str) -> int | None:
        line = bisect_left(self.keys, sort_key(model))
        found = line < len(self.keys) and self.keys[line] == sort_key(model)
        return line if found else None


class _Lines:
    """Lines as one text, in UTF-8: there words are found where their bytes are."""

    def __init__(self, lines: Sequence[bytes]) -> None:
        self._text = b"\n".join(lines)
        self._starts = array("Q", accumulate((len(line) + 1 for line in lines), initial=0))

    def count(self, word: bytes) -> int:
        return self._text.count(word)

    def with_all(self, words: Sequence[bytes], begin: int) -> Iterator[int]:
        """Numbers of the lines from `begin` on that have every word."""
        at = self._starts[begin]
        while (at := self._text.find(words[0], at)) >= 0:
            line = bisect_right(self._starts, at) - 1
            if self.has_all(line, words[1:]):
                yield line
            at = self._starts[line + 1]

    def has_all(self, line: int, words: Sequence[bytes]) -> bool:
        start, end = self._starts[line], self._starts[line + 1]
        return all(self._text.find(word, start, end) >= 0 for word in words)


def _line(model: str, card: ModelCard | None) -> str:
    """Everything that can be found of a model. Its words are apart; none goes on in the next."""
    if card is None:
        return model.casefold()
    return " ".join(f"{model} {card.title} {card.handle}".casefold().split())


def _marked(text: str) -> str:
    return _BEGINNING.sub(_MARK, text)


def _encode(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")
