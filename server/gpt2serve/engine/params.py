"""What a request may ask for, and what it gets for the fields that it leaves out."""

from __future__ import annotations

import math
import secrets

import msgspec

from gpt2serve.errors import InvalidRequest
from gpt2serve.package import GenerationDefaults

MAX_SEED = 2**63 - 1
MAX_STOP_STRINGS = 16
MAX_STOP_LENGTH = 256
#: Values beyond these change no text any more, but would take scores out of the numbers that
#: a float can hold, and a step that fails ends every request in its batch.
LEAST_TEMPERATURE = 1e-10
MOST_PENALTY = 1e30


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True):
    """How to continue a prompt. None takes the model's own default.

    num_return_sequences  how many continuations; at least 1, at most the server's batch size
    max_new_tokens        upper bound for generated tokens; wins over max_length
    min_new_tokens        no end-of-text before that many generated tokens
    max_length            upper bound for prompt and generated tokens together
    min_length            no end-of-text before prompt and generated tokens are that many
    do_sample             draw at random; False takes the likeliest token each time
    temperature           > 0; below 1 sharpens the distribution, above 1 flattens it
    top_k                 keep the k likeliest tokens; 0 keeps all
    top_p                 0 < p <= 1; keep the likeliest tokens that together reach p
    repetition_penalty    > 0; above 1 makes tokens that were there already less likely
    no_repeat_ngram_size  n-grams of this size occur once only; 0 allows all
    stop                  generation ends where one of these strings would begin
    seed                  0 to 2**63-1; the same seed gives the same text; None draws one
    return_full_text      put the prompt before each text (default: yes)
    details               return every token with its log-probability
    """

    num_return_sequences: int | None = None
    max_new_tokens: int | None = None
    min_new_tokens: int | None = None
    max_length: int | None = None
    min_length: int | None = None
    do_sample: bool | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    repetition_penalty: float | None = None
    no_repeat_ngram_size: int | None = None
    stop: tuple[str, ...] = ()
    seed: int | None = None
    return_full_text: bool = True
    details: bool = False


class ResolvedParams(msgspec.Struct, frozen=True, kw_only=True):
    """`SamplingParams` with nothing left open, for a prompt of known length.

    `max_tokens` and `min_tokens` bound the number of generated tokens.
    """

    sequences: int
    max_tokens: int
    min_tokens: int
    do_sample: bool
    temperature: float
    top_k: int
    top_p: float
    repetition_penalty: float
    no_repeat_ngram_size: int
    stop: tuple[str, ...]
    seed: int
    return_full_text: bool
    details: bool


def resolve(
    params: SamplingParams,
    defaults: GenerationDefaults,
    *,
    prompt_tokens: int,
    prefix_tokens: int,
    context_length: int,
    max_sequences: int,
) -> ResolvedParams:
    """Fill in the model's defaults and check every value. Raises `InvalidRequest`.

    `prompt_tokens` counts the prefix too, `prefix_tokens` is its share. As in transformers,
    explicit lengths in new tokens win over total lengths, and total lengths do not count
    the prefix.
    """
    pick = _Picker(params, defaults)
    sequences = pick.integer("num_return_sequences", 1, max_sequences)
    do_sample = pick.boolean("do_sample")
    if not do_sample and sequences > 1:
        raise InvalidRequest(
            "num_return_sequences",
            "without sampling all sequences would be equal; set do_sample to true or ask for 1",
        )
    max_tokens = _max_tokens(params, defaults, prompt_tokens, prefix_tokens, context_length)
    return ResolvedParams(
        sequences=sequences,
        max_tokens=max_tokens,
        min_tokens=_min_tokens(params, defaults, prompt_tokens, prefix_tokens, max_tokens),
        do_sample=do_sample,
        temperature=max(pick.number("temperature", above=0.0), LEAST_TEMPERATURE),
        top_k=pick.integer("top_k", 0),
        top_p=pick.number("top_p", above=0.0, up_to=1.0),
        repetition_penalty=min(
            max(pick.number("repetition_penalty", above=0.0), 1 / MOST_PENALTY), MOST_PENALTY
        ),
        no_repeat_ngram_size=pick.integer("no_repeat_ngram_size", 0),
        stop=_stop(params.stop),
        seed=_seed(params.seed),
        return_full_text=_check_boolean("return_full_text", params.return_full_text),
        details=_check_boolean("details", params.details),
    )


class _Picker:
    """Takes a field from the request, else from the model's defaults, and checks its range."""

    def __init__(self, params: SamplingParams, defaults: GenerationDefaults) -> None:
        self._params = params
        self._defaults = defaults

    def _value(self, field: str) -> object:
        value = getattr(self._params, field)
        return getattr(self._defaults, field) if value is None else value

    def integer(self, field: str, low: int, high: int | None = None) -> int:
        return check_integer(field, self._value(field), low, high)

    def boolean(self, field: str) -> bool:
        return _check_boolean(field, self._value(field))

    def number(self, field: str, *, above: float, up_to: float = math.inf) -> float:
        value = self._value(field)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise InvalidRequest(field, f"must be a number, not {value!r}")
        if not math.isfinite(value) or not above < value <= up_to:
            bounds = f"above {above:g}" + (f" and at most {up_to:g}" if up_to < math.inf else "")
            raise InvalidRequest(field, f"must be {bounds}, not {value}")
        return float(value)


def _check_boolean(field: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise InvalidRequest(field, f"must be true or false, not {value!r}")
    return value


def check_integer(field: str, value: object, low: int, high: int | None = None) -> int:
    """Return `value` if it is an integer in [low, high]; raises `InvalidRequest`."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise InvalidRequest(field, f"must be an integer, not {value!r}")
    if value < low or (high is not None and value > high):
        bounds = f"at least {low}" if high is None else f"between {low} and {high}"
        raise InvalidRequest(field, f"must be {bounds}, not {value}")
    return value


def _max_tokens(
    params: SamplingParams,
    defaults: GenerationDefaults,
    prompt_tokens: int,
    prefix_tokens: int,
    context_length: int,
) -> int:
    room = context_length - prompt_tokens
    if room < 1:
        raise InvalidRequest(
            "prompt",
            f"has {prompt_tokens} tokens, but the model's context is {context_length} and at "
            "least one token must be left to generate",
        )
    if params.max_new_tokens is not None:
        asked = check_integer("max_new_tokens", params.max_new_tokens, 1)
        return _within_room("max_new_tokens", asked, room, prompt_tokens, context_length)
    if params.max_length is not None:
        length = check_integer("max_length", params.max_length, 1) + prefix_tokens
        asked = _beyond_prompt("max_length", length, prompt_tokens)
        return _within_room("max_length", asked, room, prompt_tokens, context_length)
    if defaults.max_new_tokens is not None:
        return min(defaults.max_new_tokens, room)
    if defaults.max_length is not None:
        length = min(defaults.max_length + prefix_tokens, context_length)
        return _beyond_prompt("prompt", length, prompt_tokens)
    return room


def _within_room(field: str, asked: int, room: int, prompt_tokens: int, context: int) -> int:
    if asked > room:
        raise InvalidRequest(
            field,
            f"the prompt's {prompt_tokens} tokens and {asked} new ones do not fit into the "
            f"model's context of {context}; at most {room} new tokens are possible",
        )
    return asked


def _beyond_prompt(field: str, length: int, prompt_tokens: int) -> int:
    if length <= prompt_tokens:
        raise InvalidRequest(
            field,
            f"the prompt has {prompt_tokens} tokens and the length is bounded to {length}, so "
            "nothing can be generated; use max_new_tokens, or raise max_length",
        )
    return length - prompt_tokens


def _min_tokens(
    params: SamplingParams,
    defaults: GenerationDefaults,
    prompt_tokens: int,
    prefix_tokens: int,
    max_tokens: int,
) -> int:
    """As in transformers, min_new_tokens wins over min_length."""
    new = params.min_new_tokens
    total = params.min_length
    if new is None and total is None:
        new, total = defaults.min_new_tokens, defaults.min_length
    total = check_integer("min_length", 0 if total is None else total, 0)
    if new is not None:
        wanted = check_integer("min_new_tokens", new, 0)
    else:
        wanted = max(total + prefix_tokens - prompt_tokens, 0)
    if params.min_new_tokens is not None and wanted > max_tokens:
        raise InvalidRequest(
            "min_new_tokens", f"{wanted} is more than the {max_tokens} tokens that are allowed"
        )
    return min(wanted, max_tokens)


def _stop(stop: object) -> tuple[str, ...]:
    if isinstance(stop, str):
        stop = (stop,)
    if not isinstance(stop, tuple | list) or not all(isinstance(text, str) for text in stop):
        raise InvalidRequest("stop", "must be a list of strings")
    if len(stop) > MAX_STOP_STRINGS:
        raise InvalidRequest("stop", f"at most {MAX_STOP_STRINGS} strings, not {len(stop)}")
    for text in stop:
        if not 0 < len(text) <= MAX_STOP_LENGTH:
            raise InvalidRequest(
                "stop", f"each string has 1 to {MAX_STOP_LENGTH} characters, not {len(text)}"
            )
    return tuple(stop)


def _seed(seed: int | None) -> int:
    # 53 bits, so that a drawn seed survives a client that reads numbers as doubles.
    return secrets.randbits(53) if seed is None else check_integer("seed", seed, 0, MAX_SEED)
