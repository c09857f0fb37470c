"""The legacy completions API's `logprobs`: four lists with an element for each token."""

from __future__ import annotations

import codecs
from collections import deque
from collections.abc import Sequence

from gpt2serve.api.openai.schemas import CompletionLogprobs
from gpt2serve.engine.events import PromptToken, Token
from gpt2serve.engine.tokenizer import Tokenizer


def token_name(tokenizer: Tokenizer, token: int) -> str:
    """A token's text. Half a character is written as bytes, a special token by its name."""
    if (special := tokenizer.special_name(token)) is not None:
        return special
    spelled = tokenizer.token_bytes(token)
    try:
        return spelled.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(
            chr(byte) if 0x20 <= byte < 0x7F else f"\\x{byte:02x}" for byte in spelled
        )


class Offsets:
    """Where in a text its tokens begin, in characters.

    The text is what the tokens spell, but for spaces that were cleaned up, and without what a
    stop string has cut off. It comes after the tokens do, so an offset may have to wait for it.
    """

    def __init__(self, begun: bytes = b"") -> None:
        """`begun`: the beginning of a character, which came before the first token."""
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._decoder.decode(begun)
        self._spelled = ""
        self._text = ""
        #: So many characters of both are known to be the same but for cleaned spaces.
        self._in_spelled = self._in_text = 0
        #: Where in `_spelled` the tokens begin whose offsets are not known yet.
        self._starts: deque[int] = deque()

    @property
    def spelled(self) -> int:
        """Characters that the tokens have spelled."""
        return len(self._spelled)

    def token(self, spelled: bytes) -> None:
        # Its first byte may be part of a character that has begun, or break it off.
        self._spelled += self._decoder.decode(spelled[:1])
        complete = bool(spelled) and not self._decoder.getstate()[0]
        self._starts.append(len(self._spelled) - complete)
        self._spelled += self._decoder.decode(spelled[1:])

    def text(self, piece: str) -> None:
        self._text += piece

    def known(self, *, final: bool = False) -> list[int]:
        """The offsets that have become certain; all that are left if this is the end."""
        offsets = []
        while self._starts and (self._reaches(self._starts[0]) or final):
            self._starts.popleft()
            offsets.append(self._in_text)
        return offsets

    def _reaches(self, start: int) -> bool:
        while self._in_spelled < start and self._in_text < len(self._text):
            # What differs is a space that is in the tokens only.
            if self._spelled[self._in_spelled] == self._text[self._in_text]:
                self._in_text += 1
            self._in_spelled += 1
        return self._in_spelled == start


class LogprobsWriter:
    """The `logprobs` of one choice, whole or chunk by chunk."""

    def __init__(self, tokenizer: Tokenizer, begun: bytes = b"") -> None:
        self._tokenizer = tokenizer
        self._offsets = Offsets(begun)
        self._waiting: deque[Token | PromptToken] = deque()

    def prompt(self, tokens: Sequence[PromptToken], text: str) -> None:
        """What is echoed. A special token may stand there by its name."""
        for token in tokens:
            spelled = self._tokenizer.token_bytes(token.id)
            name = self._tokenizer.special_name(token.id)
            if name is not None and text.startswith(name, self._offsets.spelled):
                spelled = name.encode()
            self._add(token, spelled)
        self._offsets.text(text)

    def token(self, token: Token) -> None:
        self._add(token, self._tokenizer.token_bytes(token.id))
        self._offsets.text(token.text)

    def take(self, *, final: bool = False) -> CompletionLogprobs | None:
        """Of the tokens whose place in the text has become certain; all of them at the end."""
        offsets = self._offsets.known(final=final)
        if not offsets and not final:
            return None
        tokens = [self._waiting.popleft() for _ in offsets]
        names = [token_name(self._tokenizer, token.id) for token in tokens]
        return CompletionLogprobs(
            text_offset=offsets,
            token_logprobs=[token.logprob for token in tokens],
            tokens=names,
            top_logprobs=[self._top(*pair) for pair in zip(tokens, names, strict=True)],
        )

    def _add(self, token: Token | PromptToken, spelled: bytes) -> None:
        self._waiting.append(token)
        self._offsets.token(spelled)

    def _top(self, token: Token | PromptToken, name: str) -> dict[str, float] | None:
        """The likeliest tokens, and the token itself if it is none of them."""
        if token.logprob is None:
            return None
        top = {token_name(self._tokenizer, other.id): other.logprob for other in token.top}
        return top if name in top else top | {name: token.logprob}
