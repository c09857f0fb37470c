"""Text to tokens, and tokens to bytes.

GPT-2's tokenizer is byte-level BPE: every token stands for fixed bytes, so decoding is
concatenation. Models of one vocabulary share one `Tokenizer`, found by the file's sha256.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable
from pathlib import Path

import tokenizers

from gpt2serve.engine.remember import remember
from gpt2serve.errors import CorruptPackage, InvalidRequest
from gpt2serve.package import sha256_of


def _bytes_of_characters() -> dict[str, int]:
    """The inverse of GPT-2's `bytes_to_unicode` (openai/gpt-2, src/encoder.py).

    Printable bytes stand for themselves, the others for the characters from U+0100 on.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    table = {chr(byte): byte for byte in printable}
    return table | {chr(0x100 + n): byte for n, byte in enumerate(others)}


_BYTE_OF = _bytes_of_characters()

#: Characters of a text that is tokenised with Python's global lock held: some 200 microseconds.
_SHORT = 200


class Tokenizer:
    """Thread-safe. Special tokens such as end-of-text are known in prompts and have no bytes."""

    def __init__(self, path: Path) -> None:
        try:
            self._inner = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # tokenizers raises bare Exception for any bad file
            raise CorruptPackage(f"{path} is not a usable tokenizer ({error}).") from error
        self._inner.no_padding()
        self._inner.no_truncation()
        self._special = {
            token_id: b"" if token.special else token.content.encode()
            for token_id, token in self._inner.get_added_tokens_decoder().items()
        }
        self._bytes: dict[int, bytes] = dict(self._special)

    def encode(self, text: str) -> list[int]:
        """Raises `InvalidRequest` for what is no text.

        A long text lets other threads work: `tokenizers` gives the lock away for batches only.
        """
        try:
            if len(text) <= _SHORT:
                encoding = self._inner.encode(text, add_special_tokens=False)
            else:
                (encoding,) = self._inner.encode_batch_fast([text], add_special_tokens=False)
            ids: list[int] = encoding.ids
        except TypeError as error:  # half of a surrogate pair
            raise InvalidRequest("prompt", "is not valid Unicode") from error
        return ids

    def token_bytes(self, token: int) -> bytes:
        """The bytes that `token` adds to the text. Empty for special tokens."""
        known = self._bytes.get(token)
        if known is None:
            characters = self._inner.id_to_token(token) or ""
            known = bytes(_BYTE_OF[c] for c in characters if c in _BYTE_OF)
            self._bytes[token] = known
        return known

    def decode(self, tokens: Iterable[int]) -> bytes:
        """The bytes of all `tokens`, which may begin or end within a character."""
        return b"".join(map(self.token_bytes, tokens))

    def is_special(self, token: int) -> bool:
        """Whether `token` is one such as end-of-text, which is no text."""
        return self._special.get(token) == b""

    def special_name(self, token: int) -> str | None:
        """What a special token is written as, such as <|endoftext|>; None of all others."""
        return str(self._inner.id_to_token(token)) if self.is_special(token) else None


#: Models mostly share a vocabulary; one of GPT-2's size takes some megabytes.
REMEMBERED = 16


class TokenizerCache:
    """The tokenizers that were used last, by the sha256 of their file."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._by_hash: OrderedDict[str, Tokenizer] = OrderedDict()

    def find(self, sha256: str) -> Tokenizer | None:
        """The tokenizer if it is here already, so that its file need not be looked for."""
        with self._lock:
            tokenizer = self._by_hash.get(sha256)
            if tokenizer is not None:
                self._by_hash.move_to_end(sha256)
            return tokenizer

    def get(self, path: Path, sha256: str) -> Tokenizer:
        """Raises `CorruptPackage`. Reading one takes some ten milliseconds."""
        with self._lock:
            tokenizer = self._by_hash.get(sha256)
            if tokenizer is None:
                tokenizer = Tokenizer(path)
                if sha256_of(path) != sha256:
                    # Otherwise all models with this hash would read with a damaged file.
                    raise CorruptPackage(
                        f"{path} differs from the manifest's sha256; export the model again."
                    )
            remember(self._by_hash, sha256, tokenizer, most=REMEMBERED)
            return tokenizer
