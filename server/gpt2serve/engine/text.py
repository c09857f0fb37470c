"""From tokens to text, piece by piece, without ever taking a piece back.

Three things can make the end of a text uncertain, and each holds text back until it is not:
a UTF-8 character of which only some bytes are there, spaces that transformers' clean-up may
yet remove, and the beginning of a stop string.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Iterable, Sequence

#: transformers' `clean_up_tokenization`, applied one after the other. The text-generation
#: pipeline does this by default, so huggingtweets' users have always seen cleaned texts.
CLEAN_UP = (
    (" .", "."),
    (" ?", "?"),
    (" !", "!"),
    (" ,", ","),
    (" ' ", "'"),
    (" n't", "n't"),
    (" 'm", "'m"),
    (" 's", "'s"),
    (" 've", "'ve"),
    (" 're", "'re"),
)
#: What the end of a text may grow into: the above, and what becomes one of the above when
#: " ' " inside it has been replaced.
_PATTERNS = tuple(
    pattern for old, _ in CLEAN_UP for pattern in dict.fromkeys((old, old.replace("'", " ' ")))
)
_LONGEST = max(map(len, _PATTERNS))


def clean_up(text: str) -> str:
    """Remove the spaces before punctuation and contractions, as transformers does."""
    for old, new in CLEAN_UP:
        text = text.replace(old, new)
    return text


def _settled(text: str) -> int:
    """How many characters of `text` no further text can make `clean_up` change."""
    for start in range(max(0, len(text) - _LONGEST), len(text)):
        if any(pattern.startswith(text[start:]) for pattern in _PATTERNS):
            # " ' " ends with the space that another pattern may begin with.
            while text[max(0, start - 2) : start + 1] == " ' ":
                start -= 2
            return start
    return len(text)


def whole_characters(text: bytes) -> tuple[str, bytes]:
    """The text, and what of it is the beginning of a character that is not all there."""
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    return decoder.decode(text), decoder.getstate()[0]


class StopStrings:
    """Finds the first place where one of the stop strings begins."""

    def __init__(self, stop: Sequence[str]) -> None:
        self._stop = tuple(stop)
        self._longest = max(map(len, self._stop), default=0)

    def __bool__(self) -> bool:
        return bool(self._stop)

    def find(self, text: str, start: int) -> int | None:
        """Where the first stop string begins that ends after `start`; None without one."""
        begin = max(0, start - self._longest + 1)
        found = [at for stop in self._stop if (at := text.find(stop, begin)) >= 0]
        return min(found, default=None)

    def settled(self, text: str) -> int:
        """How many characters of `text` cannot be part of a stop string any more."""
        for start in range(max(0, len(text) - self._longest + 1), len(text)):
            if any(stop.startswith(text[start:]) for stop in self._stop):
                return start
        return len(text)


class TextStream:
    """The text of one sequence while it is generated.

    `push` takes tokens and returns the text that became certain with them; `finish` returns
    the rest. Their concatenation is `text`, whatever the pieces were.
    """

    def __init__(
        self,
        token_bytes: Callable[[int], bytes],
        stop: Sequence[str] = (),
        *,
        begun: bytes = b"",
    ) -> None:
        """`begun`: the beginning of a character that the prompt ended in."""
        self._token_bytes = token_bytes
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._decoder.decode(begun)
        self._stop = StopStrings(stop)
        self._raw = ""
        self._released = ""
        self.stopped = False

    @property
    def text(self) -> str:
        """All that has been released."""
        return self._released

    def push(self, tokens: Iterable[int]) -> str:
        return self._advance(self._decoder.decode(b"".join(map(self._token_bytes, tokens))))

    def finish(self) -> str:
        """No more tokens. Half a character becomes U+FFFD."""
        piece = self._advance(self._decoder.decode(b"", final=True))
        return piece if self.stopped else piece + self._release(len(self._raw))

    def _advance(self, new: str) -> str:
        if self.stopped or not new:
            return ""
        checked = len(self._raw)
        self._raw += new
        certain = len(self._raw)
        if self._stop:
            at = self._stop.find(self._raw, checked)
            if at is not None:
                self.stopped = True
                self._raw = self._raw[:at]
                return self._release(at)
            certain = self._stop.settled(self._raw)
        return self._release(_settled(self._raw[:certain]))

    def _release(self, end: int) -> str:
        released = clean_up(self._raw[:end])
        piece = released[len(self._released) :]
        self._released = released
        return piece
