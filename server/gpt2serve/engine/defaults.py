"""A request with nothing left open: its own values, else the model's, each checked."""

from __future__ import annotations

import math
import secrets
from typing import Any

from gpt2serve.engine.checks import (
    check_above,
    check_between,
    check_bias,
    check_boolean,
    check_integer,
    check_stop,
)
from gpt2serve.engine.lengths import max_tokens, min_tokens
from gpt2serve.engine.params import (
    MAX_SEED,
    MOST_TOP_LOGPROBS,
    ResolvedParams,
    SamplingParams,
)
from gpt2serve.errors import InvalidRequest
from gpt2serve.package import GenerationDefaults

#: Values beyond these change no text any more, but would take scores out of the numbers that
#: a float can hold, and a step that fails ends every request in its batch.
LEAST_TEMPERATURE = 1e-10
MOST_PENALTY = 1e30


def resolve(
    params: SamplingParams,
    defaults: GenerationDefaults,
    *,
    prompt_tokens: int,
    prefix_tokens: int,
    context_length: int,
    vocab_size: int,
    max_sequences: int,
) -> ResolvedParams:
    """Fill in the model's defaults and check every value. Raises `InvalidRequest`.

    `prompt_tokens` counts the prefix too, `prefix_tokens` is its share, both before the prompt
    is truncated.
    """
    pick = _Picker(params, defaults)
    sequences = pick.integer("num_return_sequences", 1, max_sequences)
    do_sample = pick.boolean("do_sample")
    if not do_sample and sequences > 1:
        raise InvalidRequest(
            "num_return_sequences",
            "without sampling all sequences would be equal; set do_sample to true or ask for 1",
        )
    cut = _cut(params.truncate, prompt_tokens)
    read, prefix = prompt_tokens - cut, max(0, prefix_tokens - cut)
    most = max_tokens(params, defaults, read, prefix, context_length)
    return ResolvedParams(
        sequences=sequences,
        max_tokens=most,
        min_tokens=min_tokens(params, defaults, read, prefix, most),
        do_sample=do_sample,
        temperature=max(pick.above("temperature", 0.0), LEAST_TEMPERATURE),
        top_k=pick.integer("top_k", 0),
        top_p=pick.above("top_p", 0.0, up_to=1.0),
        repetition_penalty=min(
            max(pick.above("repetition_penalty", 0.0), 1 / MOST_PENALTY), MOST_PENALTY
        ),
        no_repeat_ngram_size=pick.integer("no_repeat_ngram_size", 0),
        stop=check_stop(params.stop),
        seed=_seed(params.seed),
        return_full_text=check_boolean("return_full_text", params.return_full_text),
        **_without_defaults(params, vocab_size),
    )


def _without_defaults(params: SamplingParams, vocab_size: int) -> dict[str, Any]:
    """What no model has a default for."""
    top = check_integer("top_logprobs", params.top_logprobs, 0, MOST_TOP_LOGPROBS)
    bias, typical, seconds = params.logit_bias, params.typical_p, params.max_time
    return {
        "details": check_boolean("details", params.details) or top > 0,
        "top_logprobs": top,
        "prompt_logprobs": check_boolean("prompt_logprobs", params.prompt_logprobs),
        "ignore_eos": check_boolean("ignore_eos", params.ignore_eos),
        "min_p": _between("min_p", params.min_p, 0.0, 1.0),
        "typical_p": 1.0 if typical is None else check_above("typical_p", typical, 0.0, 1.0),
        "presence_penalty": _between("presence_penalty", params.presence_penalty, -2.0, 2.0),
        "frequency_penalty": _between("frequency_penalty", params.frequency_penalty, -2.0, 2.0),
        "logit_bias": {} if bias is None else check_bias(bias, vocab_size),
        "max_time": None if seconds is None else check_above("max_time", seconds, 0.0),
    }


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
        return check_boolean(field, self._value(field))

    def above(self, field: str, above: float, up_to: float = math.inf) -> float:
        return check_above(field, self._value(field), above, up_to)


def _between(field: str, value: object, low: float, high: float) -> float:
    return 0.0 if value is None else check_between(field, value, low, high)


def _cut(truncate: int | None, prompt_tokens: int) -> int:
    """Tokens to leave out at the prompt's beginning."""
    if truncate is None:
        return 0
    return max(0, prompt_tokens - check_integer("truncate", truncate, 1))


def _seed(seed: int | None) -> int:
    # 53 bits, so that a drawn seed survives a client that reads numbers as doubles.
    return secrets.randbits(53) if seed is None else check_integer("seed", seed, 0, MAX_SEED)
