"""From a `CompletionRequest` to what the engine is asked."""

from __future__ import annotations

import sys
from typing import cast

from gpt2serve.api.generation import Ask
from gpt2serve.api.openai.schemas import DEFAULT_MAX_TOKENS, CompletionRequest
from gpt2serve.engine.params import SamplingParams
from gpt2serve.errors import InvalidRequest
from gpt2serve.settings import EngineSettings

#: The engine wants more than 0, which keeps the likeliest token only, as so little does.
_LEAST_TOP_P = sys.float_info.min

#: The engine's names for what is called otherwise here.
_FIELDS = {
    "num_return_sequences": "n",
    "max_new_tokens": "max_tokens",
    "min_new_tokens": "min_tokens",
    "top_logprobs": "logprobs",
}


def in_our_terms(error: InvalidRequest) -> InvalidRequest:
    """What the engine refuses, with the name that the client knows."""
    return error.about(_FIELDS.get(error.field, error.field))


def asks_of(request: CompletionRequest, settings: EngineSettings) -> list[Ask]:
    """One for each prompt. Raises `InvalidRequest` for fields that do not go together."""
    _check_choices(request, settings.max_batch_size)
    _check_output(request)
    prompts = prompts_of(request.prompt)
    params = sampling_params(request)
    return [Ask(prompt, params) for prompt in prompts]


def prompts_of(prompt: str | list[str | int | list[int]] | None) -> list[str | list[int]]:
    """A single prompt is a list of one. Raises `InvalidRequest` for a mixture."""
    if prompt is None:  # OpenAI's default is the token that texts begin with
        return [""]
    if isinstance(prompt, str):
        return [prompt]
    kinds = {type(item) for item in prompt}
    if len(kinds) > 1:
        raise InvalidRequest("prompt", "texts, token ids and lists of token ids do not mix")
    if kinds == {int}:
        return [cast(list[int], prompt)]
    return cast(list[str | list[int]], prompt)


def sampling_params(request: CompletionRequest) -> SamplingParams:
    """With OpenAI's defaults. Nothing is left to the model's own, but its prefix."""
    greedy = request.temperature == 0
    wants_logprobs = request.logprobs is not None
    max_tokens = DEFAULT_MAX_TOKENS if request.max_tokens is None else request.max_tokens
    return SamplingParams(
        num_return_sequences=request.candidates,
        max_new_tokens=max_tokens,
        min_new_tokens=request.min_tokens or 0,
        do_sample=not greedy,
        temperature=1.0 if greedy or request.temperature is None else request.temperature,
        top_k=max(request.top_k or 0, 0),
        top_p=1.0 if request.top_p is None else max(request.top_p, _LEAST_TOP_P),
        min_p=request.min_p,
        repetition_penalty=request.repetition_penalty or 1.0,
        presence_penalty=request.presence_penalty,
        frequency_penalty=request.frequency_penalty,
        logit_bias=request.logit_bias,
        no_repeat_ngram_size=0,
        stop=(request.stop,) if isinstance(request.stop, str) else tuple(request.stop or ()),
        seed=request.seed,
        ignore_eos=bool(request.ignore_eos),
        return_full_text=bool(request.echo),
        details=wants_logprobs or request.candidates > request.choices,
        top_logprobs=request.logprobs or 0,
        # To read the prompt and no more is all that a request without new tokens can ask for.
        prompt_logprobs=bool(request.echo) and (wants_logprobs or max_tokens == 0),
    )


def _check_choices(request: CompletionRequest, most: int) -> None:
    field = "n" if request.best_of is None else "best_of"
    if request.candidates < request.choices:
        raise InvalidRequest("best_of", f"must be at least n, which is {request.choices}")
    if request.candidates > most:
        raise InvalidRequest(field, f"must be at most {most}, not {request.candidates}")
    if request.temperature == 0 and request.candidates > 1:
        raise InvalidRequest(field, "with temperature 0 all completions would be equal; ask for 1")


def _check_output(request: CompletionRequest) -> None:
    if request.max_tokens == 0 and not request.echo:
        raise InvalidRequest("max_tokens", "0 would give nothing; it goes with echo only")
    if not request.stream and request.stream_options is not None:
        raise InvalidRequest("stream_options", "goes with stream only")
    if request.stream and request.candidates > request.choices:
        raise InvalidRequest("best_of", "which is best is known at the end: not with stream")
