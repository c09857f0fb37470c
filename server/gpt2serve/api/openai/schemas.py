"""The body of `POST /v1/completions` and all answers of `/v1`, as msgspec structs.

Fields, ranges and defaults are OpenAI's, and vLLM's where OpenAI has none.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from gpt2serve.api.fields import MAX_INT32, CountOrZero, ModelId, StopString, described
from gpt2serve.engine.params import MAX_SEED

DEFAULT_MAX_TOKENS = 16
MAX_STOP_STRINGS = 4
MAX_LOGPROBS = 5
MAX_CHOICES = 128
MAX_BIAS = 100


_TokenId = Annotated[int, Meta(ge=0, le=MAX_INT32)]
_Choices = Annotated[int, Meta(ge=1, le=MAX_CHOICES)]
_Share = Annotated[float, Meta(ge=0, le=1)]
_Penalty = Annotated[float, Meta(ge=-2, le=2)]
_Bias = Annotated[float, Meta(ge=-MAX_BIAS, le=MAX_BIAS)]

#: msgspec reads lists of texts, of ids and of lists of ids as one kind of list, and says `anyOf`;
#: this tells them apart in the schema, as `prompts_of` does.
_ID_SCHEMA = {"type": "integer", "minimum": 0, "maximum": MAX_INT32}
_IDS_SCHEMA = {"type": "array", "items": _ID_SCHEMA, "minItems": 1}
_PROMPT_SCHEMA = {
    "oneOf": [
        {"type": "string"},
        {"type": "array", "items": {"type": "string"}, "minItems": 1},
        _IDS_SCHEMA,
        {"type": "array", "items": _IDS_SCHEMA, "minItems": 1},
        {"type": "null"},
    ]
}
_TokenIds = Annotated[list[_TokenId], Meta(min_length=1)]
_PromptList = Annotated[list[str | _TokenId | _TokenIds], Meta(min_length=1)]


class StreamOptions(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, frozen=True):
    """Goes with `stream: true`."""

    include_usage: Annotated[
        bool | None,
        described("One chunk more before the end, without choices and with the `usage`."),
    ] = None
    continuous_usage_stats: Annotated[
        bool | None,
        described("With `include_usage`: the usage so far in all other chunks, too; vLLM's."),
    ] = None
    include_obfuscation: Annotated[
        Literal[False] | None, described("Chunks are never obfuscated, so only false.")
    ] = None


class CompletionRequest(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, frozen=True):
    """Complete prompts. A field left out, or null, takes OpenAI's default, not the model's own."""

    model: ModelId
    prompt: Annotated[
        str | _PromptList | None,
        Meta(
            description="A text, a list of texts, a list of token ids, or a list of such lists. "
            "The model's prefix is put before a text, not before token ids. null begins a new "
            "text, as an empty one does.",
            examples=["My dream is", ["My dream is", "I like"], [3666, 4320, 318]],
            extra_json_schema=_PROMPT_SCHEMA,
        ),
    ]
    max_tokens: Annotated[
        CountOrZero | None,
        described("Most tokens to generate; 16 if left out. 0 only with `echo`.", 16),
    ] = None
    n: Annotated[
        _Choices | None,
        described("Completions of each prompt; 1 if left out, at most the server's batch.", 1),
    ] = None
    best_of: Annotated[
        _Choices | None,
        described(
            "Generate so many and return the `n` with the highest mean log-probability of their "
            "tokens, best first. Not beyond `n` with `stream`.",
            1,
        ),
    ] = None
    temperature: Annotated[
        Annotated[float, Meta(ge=0)] | None,
        described("1 if left out; 0 takes the likeliest token each time.", 1.0),
    ] = None
    top_p: Annotated[
        _Share | None,
        described("Keep the likeliest tokens that together reach this; 1, all, if left out.", 1.0),
    ] = None
    stop: Annotated[
        StopString | Annotated[list[StopString], Meta(max_length=MAX_STOP_STRINGS)] | None,
        described("The text ends where this string, or one of up to 4, would begin.", ["\n"]),
    ] = None
    logprobs: Annotated[
        Annotated[int, Meta(ge=0, le=MAX_LOGPROBS)] | None,
        described(
            "The log-probability of each token, and of so many likeliest ones in its place.", 2
        ),
    ] = None
    echo: Annotated[
        bool | None, described("Put the prompt before each text; false if left out.")
    ] = None
    seed: Annotated[
        Annotated[int, Meta(ge=0, le=MAX_SEED)] | None,
        described("The same seed gives the same text. Drawn if left out.", 7),
    ] = None
    presence_penalty: Annotated[
        _Penalty | None, described("Above 0: less of the tokens that were generated already.", 0)
    ] = None
    frequency_penalty: Annotated[
        _Penalty | None,
        described("The same, as often as they were generated; both 0 if left out.", 0),
    ] = None
    logit_bias: Annotated[
        dict[_TokenId, _Bias] | None,
        Meta(
            description="Token ids, and what to add to their logits; -100 bans a token.",
            examples=[{"50256": -100}],
            extra_json_schema={"propertyNames": {"pattern": "^(0|[1-9][0-9]{0,8})$"}},
        ),
    ] = None
    stream: Annotated[bool | None, described("Answer with text/event-stream, in chunks.")] = None
    stream_options: Annotated[StreamOptions | None, described("Only with `stream`.")] = None
    user: Annotated[
        str | None, described("Whom it is for, in your terms. It changes nothing.", "u-1")
    ] = None
    suffix: Annotated[None, described("Not supported: these models do not insert text.")] = None
    top_k: Annotated[
        Annotated[int, Meta(ge=-1, le=MAX_INT32)] | None,
        described("Keep the k likeliest tokens; 0 or -1, as if left out, keeps all. vLLM's.", 50),
    ] = None
    min_p: Annotated[
        _Share | None,
        described(
            "Keep tokens at least that likely as the likeliest; 0 if left out. vLLM's.", 0.05
        ),
    ] = None
    repetition_penalty: Annotated[
        Annotated[float, Meta(gt=0)] | None,
        described("Above 1: tokens that were there are less likely; 1 if left out. vLLM's.", 1.1),
    ] = None
    min_tokens: Annotated[
        CountOrZero | None,
        described("No end of text before that many generated tokens. vLLM's.", 0),
    ] = None
    ignore_eos: Annotated[bool | None, described("Go on after the end of text. vLLM's.")] = None

    @property
    def choices(self) -> int:
        """Completions to return for each prompt."""
        return self.n or 1

    @property
    def candidates(self) -> int:
        """Completions to generate for each prompt."""
        return self.best_of or self.choices


class CompletionLogprobs(msgspec.Struct, frozen=True, kw_only=True):
    """Lists of one length: an element for each token."""

    text_offset: Annotated[list[int], Meta(description="Where in `text` it begins, in characters.")]
    token_logprobs: Annotated[
        list[float | None], Meta(description="null for the first token that the model read.")
    ]
    tokens: Annotated[
        list[str],
        Meta(description='A token that is no whole text is "bytes:\\xe2\\x80", with backslashes.'),
    ]
    top_logprobs: list[dict[str, float] | None]


class CompletionChoice(msgspec.Struct, frozen=True, kw_only=True):
    text: str
    index: int
    logprobs: CompletionLogprobs | None = None
    finish_reason: Annotated[
        Literal["stop", "length"] | None,
        Meta(description="stop: the model ended the text, or a stop string did."),
    ] = None


class CompletionUsage(msgspec.Struct, frozen=True, kw_only=True):
    """Tokens of all prompts, and of all completions that were generated."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class Completion(msgspec.Struct, frozen=True, kw_only=True):
    """The answer; in a stream, one of its chunks."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: Annotated[int, Meta(description="Unix time.")]
    model: str
    choices: list[CompletionChoice]
    usage: CompletionUsage | UnsetType | None = UNSET
    system_fingerprint: Annotated[
        str | UnsetType, Meta(description="Names the weights that spoke.")
    ] = UNSET


class ModelObject(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    object: Literal["model"] = "model"
    created: Annotated[
        int, Meta(description="Always 0: packages do not say when they were made.")
    ] = 0
    owned_by: Annotated[str, Meta(description="The id's first part, if it has two.")]


class ModelObjects(msgspec.Struct, frozen=True, kw_only=True):
    """Models in the order of their ids. If `has_more`, go on with `after` = `last_id`."""

    object: Literal["list"] = "list"
    data: list[ModelObject]
    has_more: bool
    first_id: str | None
    last_id: str | None


class ErrorDetails(msgspec.Struct, frozen=True, kw_only=True):
    message: str
    type: Annotated[str, Meta(description="The kind of error, in OpenAI's terms.")]
    param: Annotated[str | None, Meta(description="The field that is wrong, where one is.")]
    code: Annotated[str | None, Meta(description="Stable; the same as on our other routes.")]


class ErrorBody(msgspec.Struct, frozen=True, kw_only=True):
    error: ErrorDetails
