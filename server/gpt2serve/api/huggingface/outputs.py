"""The answers that Hugging Face's clients read, made from the engine's results."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from gpt2serve.api.huggingface.params import Wish
from gpt2serve.engine.events import Generation, GenerationResult, PromptToken, Token

if TYPE_CHECKING:
    from gpt2serve.engine.preparation import PreparedRequest

FinishReason = Literal["length", "eos_token", "stop_sequence"]

FINISH_REASONS: dict[str, FinishReason] = {
    "length": "length",
    "eos": "eos_token",
    "stop": "stop_sequence",
}


class TextGenerationPrefillToken(msgspec.Struct, frozen=True, kw_only=True):
    """A token that the model read."""

    id: int
    text: str
    logprob: Annotated[float | None, Meta(description="Null for the first one.")]


class TextGenerationToken(msgspec.Struct, frozen=True, kw_only=True):
    """A generated token. The texts of all are the text: one may be empty, or hold several's."""

    id: int
    text: str
    logprob: float
    special: Annotated[bool, Meta(description="It is no text, as end-of-text.")]


class _Sequence(msgspec.Struct, frozen=True, kw_only=True):
    finish_reason: FinishReason
    generated_tokens: int
    seed: Annotated[int | None, Meta(description="Null if nothing was drawn.")]
    prefill: Annotated[
        list[TextGenerationPrefillToken],
        Meta(description="Empty unless decoder_input_details was asked for."),
    ]
    tokens: list[TextGenerationToken]
    top_tokens: Annotated[
        list[list[TextGenerationToken]] | UnsetType,
        Meta(description="With top_n_tokens: the likeliest tokens in each one's place."),
    ] = UNSET


class TextGenerationBestOfSequence(_Sequence, frozen=True, kw_only=True):
    """One of `best_of` texts that was not returned."""

    generated_text: str


class TextGenerationDetails(_Sequence, frozen=True, kw_only=True):
    """How a text came to be."""

    best_of_sequences: Annotated[
        list[TextGenerationBestOfSequence] | UnsetType,
        Meta(description="With best_of: the texts that were not returned."),
    ] = UNSET


class TextGenerationOutput(msgspec.Struct, frozen=True, kw_only=True):
    """A text, and if asked for, how it came to be."""

    generated_text: str
    details: TextGenerationDetails | UnsetType = UNSET


class Tokens:
    """Tokens in words, for one request."""

    def __init__(self, prepared: PreparedRequest) -> None:
        self._text_of = prepared.text_of
        self._tokenizer = prepared.tokenizer

    def generated(self, token: Token) -> TextGenerationToken:
        return TextGenerationToken(
            id=token.id,
            text=token.text,
            logprob=token.logprob,
            special=self._tokenizer.is_special(token.id),
        )

    def top(self, token: Token) -> list[TextGenerationToken]:
        """The likeliest tokens in the place of `token`, best first."""
        return [
            TextGenerationToken(
                id=top.id,
                text=self._text(top.id),
                logprob=top.logprob,
                special=self._tokenizer.is_special(top.id),
            )
            for top in token.top
        ]

    def prefill(self, tokens: Iterable[PromptToken]) -> list[TextGenerationPrefillToken]:
        return [
            TextGenerationPrefillToken(
                id=token.id, text=self._text(token.id), logprob=token.logprob
            )
            for token in tokens
        ]

    def _text(self, token: int) -> str:
        """Of a token by itself, which of a special one is its name."""
        return self._tokenizer.special_name(token) or self._text_of([token])


def outputs_of(
    result: GenerationResult, wish: Wish, prepared: PreparedRequest
) -> list[TextGenerationOutput]:
    """One output for each text that was wished for; of `best_of` those that are likeliest."""
    tokens = Tokens(prepared)
    prefill = tokens.prefill(result.prompt_tokens or ())
    generations = list(result.generations)
    others: list[Generation] | None = None
    if wish.best_of > 1:
        # As in Text Generation Inference, by the mean over the tokens.
        generations.sort(key=lambda one: one.mean_logprob, reverse=True)
        others = generations[wish.texts :]
    texts = generations[: wish.texts]
    return [_output(generation, others, wish, prefill, tokens) for generation in texts]


def seed_of(generation: Generation, wish: Wish) -> int | None:
    return generation.seed if wish.params.do_sample else None


def _output(
    generation: Generation,
    others: list[Generation] | None,
    wish: Wish,
    prefill: list[TextGenerationPrefillToken],
    tokens: Tokens,
) -> TextGenerationOutput:
    if not wish.details:
        return TextGenerationOutput(generated_text=generation.text)
    details = TextGenerationDetails(
        **_sequence(generation, wish, prefill, tokens),
        best_of_sequences=UNSET
        if others is None
        else [
            TextGenerationBestOfSequence(
                generated_text=other.text, **_sequence(other, wish, prefill, tokens)
            )
            for other in others
        ],
    )
    return TextGenerationOutput(generated_text=generation.text, details=details)


def _sequence(
    generation: Generation,
    wish: Wish,
    prefill: list[TextGenerationPrefillToken],
    tokens: Tokens,
) -> dict[str, Any]:
    """The fields of `_Sequence`."""
    details = generation.details or ()
    return {
        "finish_reason": FINISH_REASONS[generation.finish_reason],
        "generated_tokens": generation.tokens,
        "seed": seed_of(generation, wish),
        "prefill": prefill,
        "tokens": [tokens.generated(token) for token in details],
        "top_tokens": [tokens.top(token) for token in details]
        if wish.params.top_logprobs
        else UNSET,
    }
