"""What comes back from the engine: token events, finished generations, one end per request."""

from __future__ import annotations

from typing import Literal

import msgspec

FinishReason = Literal["eos", "length", "stop"]


class TopToken(msgspec.Struct, frozen=True):
    """One of the likeliest tokens of a place in the text, and the model's own log-probability."""

    id: int
    logprob: float


class Token(msgspec.Struct, frozen=True, omit_defaults=True):
    """One generated token.

    `text` is what became certain with this token: it may be empty (half of a character, or
    text that may yet turn out to be a stop string) or hold several tokens' text.
    `logprob` is the natural logarithm of the probability that the model itself gave the
    token, before temperature, penalties and filters. `top` holds the likeliest tokens in its
    place, best first, if the request asked for some.
    """

    id: int
    text: str
    logprob: float
    top: tuple[TopToken, ...] = ()


class PromptToken(msgspec.Struct, frozen=True, omit_defaults=True):
    """One token of the prompt, as `Token`. Nothing comes before the first: it has no logprob."""

    id: int
    logprob: float | None
    top: tuple[TopToken, ...] = ()


class PromptTokens(msgspec.Struct, frozen=True):
    """All tokens that the model read, once, before the first that it generates."""

    tokens: tuple[PromptToken, ...]


class TokenEvent(msgspec.Struct, frozen=True):
    """Sequence `index` of the request has one token more."""

    index: int
    token: Token


class Generation(msgspec.Struct, frozen=True, kw_only=True):
    """A finished sequence.

    `tokens` counts generated tokens, end-of-text included. `seed` reproduces this very
    sequence when given with `num_return_sequences=1`. `details` holds the tokens if the
    request asked for them.
    """

    index: int
    text: str
    finish_reason: FinishReason
    tokens: int
    seed: int
    details: tuple[Token, ...] | None = None

    @property
    def mean_logprob(self) -> float:
        """Of its tokens, by which the best of several is found; 0 without `details`."""
        details = self.details or ()
        return sum(token.logprob for token in details) / max(1, len(details))


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """`prompt_tokens` counts what the model read: prefix and prompt, once."""

    prompt_tokens: int
    completion_tokens: int


class Timing(msgspec.Struct, frozen=True, kw_only=True):
    """Milliseconds. Queue: waiting for a place in the batch. Load: waiting for the model."""

    queue_ms: float
    load_ms: float
    prefill_ms: float
    decode_ms: float


class Done(msgspec.Struct, frozen=True, kw_only=True):
    """The last event of a request that succeeded. A failure is raised instead.

    `model_version` names the weights that spoke.
    """

    model_version: str = ""
    usage: Usage
    timing: Timing


Event = PromptTokens | TokenEvent | Generation | Done


class GenerationResult(msgspec.Struct, frozen=True, kw_only=True):
    """The whole answer: one `Generation` per sequence, in order of index."""

    model: str
    #: Names the weights that spoke.
    model_version: str = ""
    generations: tuple[Generation, ...]
    #: If the request asked for them.
    prompt_tokens: tuple[PromptToken, ...] | None = None
    usage: Usage
    timing: Timing
