"""The bodies of `POST /generate` and its answers, as msgspec structs.

They document themselves: descriptions, examples and bounds end up in `/schema`. The bounds
here are those that hold for every model; what depends on the model is checked by the engine.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import UNSET, Meta, UnsetType

from gpt2serve.api.fields import (
    Count,
    CountOrZero,
    ModelId,
    Positive,
    StopString,
    described,
)
from gpt2serve.engine.checks import MAX_STOP_STRINGS
from gpt2serve.engine.events import FinishReason, Generation, GenerationResult, Timing, Token, Usage
from gpt2serve.engine.params import MAX_SEED, SamplingParams

_StopList = Annotated[list[StopString], Meta(max_length=MAX_STOP_STRINGS)]


class GenerateRequest(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, frozen=True):
    """Continue a prompt. A field left out, or null, takes the model's own default."""

    model: ModelId
    prompt: Annotated[str, described("The text to continue.", "My dream is")]
    num_return_sequences: Annotated[
        Count | None,
        described("Continuations to return; at most the server's batch size.", 5),
    ] = None
    max_new_tokens: Annotated[
        Count | None, described("Most tokens to generate; wins over max_length.", 60)
    ] = None
    min_new_tokens: Annotated[
        CountOrZero | None, described("No end of text before that many generated tokens.", 0)
    ] = None
    max_length: Annotated[
        Count | None, described("Most tokens of prompt and generated text together.", 80)
    ] = None
    min_length: Annotated[
        CountOrZero | None,
        described("No end of text before prompt and generated text have that many tokens.", 0),
    ] = None
    do_sample: Annotated[
        bool | None, described("Draw at random; false takes the likeliest token each time.")
    ] = None
    temperature: Annotated[
        Positive | None,
        described("Below 1 sharpens the distribution, above 1 flattens it.", 1.0),
    ] = None
    top_k: Annotated[
        CountOrZero | None, described("Keep the k likeliest tokens; 0 keeps all.", 50)
    ] = None
    top_p: Annotated[
        Annotated[float, Meta(gt=0, le=1)] | None,
        described("Keep the likeliest tokens that together reach this probability.", 0.95),
    ] = None
    repetition_penalty: Annotated[
        Positive | None,
        described("Above 1 makes tokens that were there already less likely.", 1.0),
    ] = None
    no_repeat_ngram_size: Annotated[
        CountOrZero | None,
        described("Sequences of that many tokens occur once only; 0 allows all.", 0),
    ] = None
    stop: Annotated[
        StopString | _StopList | None,
        described("Generation ends where this string, or one of these, would begin.", ["\n"]),
    ] = None
    seed: Annotated[
        Annotated[int, Meta(ge=0, le=MAX_SEED)] | None,
        described("The same seed gives the same text. Drawn if left out.", 7),
    ] = None
    return_full_text: Annotated[bool, described("Put the prompt in front of each text.")] = True
    details: Annotated[bool, described("Also return every token with its log-probability.")] = False
    stream: Annotated[bool, described("Answer with text/event-stream, token by token.")] = False

    def params(self) -> SamplingParams:
        """The same wishes in the engine's terms."""
        values = {name: getattr(self, name) for name in _PARAM_FIELDS}
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        return SamplingParams(**values, stop=stop)


#: The engine can do more than this surface offers.
_PARAM_FIELDS = tuple(
    name
    for name in SamplingParams.__struct_fields__
    if name in GenerateRequest.__struct_fields__ and name != "stop"
)


class GeneratedText(msgspec.Struct, frozen=True, kw_only=True):
    """One continuation. `tokens` counts generated tokens, end of text included."""

    text: str
    finish_reason: FinishReason
    tokens: int
    seed: Annotated[
        int, Meta(description="Gives this very text again, with num_return_sequences 1.")
    ]
    details: Annotated[
        tuple[Token, ...] | UnsetType, Meta(description="There if the request asked for details.")
    ] = UNSET


class GenerateResponse(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to a `GenerateRequest`."""

    model: str
    model_version: Annotated[
        str, Meta(description="Names the weights that spoke; another one after a new export.")
    ]
    generations: list[GeneratedText]
    usage: Usage
    timing: Timing

    @classmethod
    def of(cls, result: GenerationResult) -> GenerateResponse:
        return cls(
            model=result.model,
            model_version=result.model_version,
            generations=[_generated(generation) for generation in result.generations],
            usage=result.usage,
            timing=result.timing,
        )


def _generated(generation: Generation) -> GeneratedText:
    return GeneratedText(
        text=generation.text,
        finish_reason=generation.finish_reason,
        tokens=generation.tokens,
        seed=generation.seed,
        details=UNSET if generation.details is None else generation.details,
    )


class SequenceEnd(msgspec.Struct, frozen=True, kw_only=True):
    """In a stream: sequence `index` has ended, and this is its whole text."""

    index: int
    finish_reason: FinishReason
    text: str
    tokens: int
    seed: int

    @classmethod
    def of(cls, generation: Generation) -> SequenceEnd:
        # The tokens themselves were streamed already, so `details` are not repeated.
        return cls(
            index=generation.index,
            finish_reason=generation.finish_reason,
            text=generation.text,
            tokens=generation.tokens,
            seed=generation.seed,
        )
