"""From what a caller gives as a prompt to what the model reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gpt2serve.engine.checks import check_integer
from gpt2serve.engine.text import whole_characters
from gpt2serve.engine.tokenizer import Tokenizer
from gpt2serve.errors import ContextExceeded, InvalidRequest
from gpt2serve.package import Manifest

#: A text, or token ids.
Prompt = str | Sequence[int]

#: GPT-2's longest token has 128 bytes, so a prompt with more for each place in the context
#: cannot fit, and is refused before it is tokenised.
LONGEST_TOKEN = 128


@dataclass(frozen=True, slots=True)
class Tokenised:
    """`ids` is what the model reads, its prefix first, `text` what a caller sees of it.

    `begun` holds the bytes of a character that the ids begin and do not end.
    """

    text: str
    ids: list[int]
    prefix_tokens: int = 0
    begun: bytes = b""


def tokenise(prompt: Prompt, manifest: Manifest, tokenizer: Tokenizer) -> Tokenised:
    """Raises `InvalidRequest`."""
    if isinstance(prompt, str):
        return _text(prompt, manifest, tokenizer)
    if isinstance(prompt, list | tuple):
        return _tokens(prompt, manifest, tokenizer)
    raise InvalidRequest("prompt", "must be a text or a list of token ids")


def _text(prompt: str, manifest: Manifest, tokenizer: Tokenizer) -> Tokenised:
    size = len(prompt.encode(errors="replace"))
    if size > manifest.dimensions.context_length * LONGEST_TOKEN:
        context = manifest.dimensions.context_length
        raise ContextExceeded.by("prompt", context, f"too few for {size} bytes")
    prefix = manifest.generation_defaults.prefix
    ids = tokenizer.encode(prefix + prompt)
    if not ids:
        # As in transformers, an empty prompt begins with the beginning-of-text token.
        return Tokenised(prompt, [manifest.bos_token_id])
    return Tokenised(prompt, ids, len(tokenizer.encode(prefix)) if prefix else 0)


def _tokens(prompt: Sequence[int], manifest: Manifest, tokenizer: Tokenizer) -> Tokenised:
    """Taken as they are: without the model's prefix."""
    if not prompt:
        raise InvalidRequest("prompt", "must have at least one token")
    last = manifest.dimensions.vocab_size - 1
    ids = [check_integer("prompt", token, 0, last) for token in prompt]
    text, begun = whole_characters(tokenizer.decode(ids))
    return Tokenised(text, ids, begun=begun)
