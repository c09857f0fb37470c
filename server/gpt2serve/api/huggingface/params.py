"""From what Hugging Face's clients wish to the engine's terms.

The address decides which defaults apply, and nothing else does: see
docs/decisions/0021-hugging-face-surface.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from gpt2serve.api.huggingface.schemas import PipelineParameters, TextGenerationParameters
from gpt2serve.engine.params import SamplingParams
from gpt2serve.errors import InvalidRequest

#: The Inference API's; all others are the model's own.
_INFERENCE_DEFAULTS = {"do_sample": True, "return_full_text": True}
#: Text Generation Inference's, which reads no defaults of a model. It has its lengths from its
#: command line; here the most tokens are the model's own, and there is no least.
_TGI_DEFAULTS = {
    "do_sample": False,
    "return_full_text": False,
    "temperature": 1.0,
    "top_k": 0,
    "top_p": 1.0,
    "repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "min_length": 0,
}
#: What shapes a draw, and the value that shapes nothing. Any of them makes Text Generation
#: Inference draw.
_DRAWS = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "typical_p": 1.0}
#: Fields whose name and meaning are the engine's.
_SHARED = tuple(
    name
    for name in PipelineParameters.__struct_fields__
    if name in SamplingParams.__struct_fields__
    and name not in ("stop", "details", "num_return_sequences")
)
_UNSUPPORTED = ("grammar", "adapter_id")


@dataclass(frozen=True, slots=True)
class Wish:
    """What is asked of the engine, and what concerns only the answer."""

    params: SamplingParams
    #: Texts to return, and to draw at least.
    texts: int
    best_of: int
    details: bool


def inference_wish(given: PipelineParameters | None) -> Wish:
    """Of `POST /models/{id}`. Raises `InvalidRequest`."""
    given = given or PipelineParameters()
    return _wish(given, _INFERENCE_DEFAULTS, given.num_return_sequences or 1)


def tgi_wish(given: TextGenerationParameters | None) -> Wish:
    """Of `/generate` and `/generate_stream`. Raises `InvalidRequest`."""
    draws = given is None or any(getattr(given, name) is not None for name in _DRAWS)
    given = given or TextGenerationParameters()
    return _wish(given, _TGI_DEFAULTS | {"do_sample": draws}, 1)


def one_prompt(inputs: str | list[str], wish: Wish) -> str:
    """What a stream, which is one text token by token, continues. Raises `InvalidRequest`."""
    if not isinstance(inputs, str):
        raise InvalidRequest("inputs", "must be one text in a stream")
    if wish.texts > 1:
        raise InvalidRequest("num_return_sequences", "must be 1 in a stream")
    if wish.best_of > 1:
        raise InvalidRequest("best_of", "must be 1 in a stream: the best is known at the end")
    if wish.params.prompt_logprobs:
        raise InvalidRequest("decoder_input_details", "has no place in a stream")
    return inputs


def in_their_terms(error: InvalidRequest, wish: Wish) -> InvalidRequest:
    """What the engine refuses, with the name that the client knows."""
    names = {"prompt": "inputs", "top_logprobs": "top_n_tokens"}
    if wish.best_of > wish.texts:
        names["num_return_sequences"] = "best_of"
    return InvalidRequest(names.get(error.field, error.field), error.message)


def _wish(given: TextGenerationParameters, defaults: dict[str, Any], texts: int) -> Wish:
    _check_support(given)
    values = defaults | {
        name: value for name in _SHARED if (value := getattr(given, name, None)) is not None
    }
    best_of = given.best_of or 1
    details = bool(given.details or given.decoder_input_details)
    if _draws_anyway(given):
        values["do_sample"] = True
    params = SamplingParams(
        **values,
        num_return_sequences=max(best_of, texts),
        stop=_stops(given),
        # The best is found by its tokens' probabilities.
        details=details or best_of > 1,
        top_logprobs=given.top_n_tokens or 0,
        prompt_logprobs=bool(given.decoder_input_details),
    )
    return Wish(params, texts, best_of, details)


def _draws_anyway(given: TextGenerationParameters) -> bool:
    """Whether something is asked for that only a draw can honour.

    `do_sample: false` does not speak against it: many clients say so unless they are told
    otherwise, and Text Generation Inference does not listen to it either.
    """
    return any(getattr(given, name) not in (None, neutral) for name, neutral in _DRAWS.items())


def _stops(given: TextGenerationParameters) -> tuple[str, ...]:
    """Of `stop` or its other name; langchain sends both."""
    if given.stop and given.stop_sequences and given.stop != given.stop_sequences:
        raise InvalidRequest("stop_sequences", "is another name of stop, which says otherwise")
    return tuple(given.stop or given.stop_sequences or ())


def _check_support(given: TextGenerationParameters) -> None:
    for name in _UNSUPPORTED:
        if getattr(given, name) is not None:
            raise InvalidRequest(name, "is not supported")
    if given.watermark:
        raise InvalidRequest("watermark", "is not supported")


__all__ = ["Wish", "in_their_terms", "inference_wish", "one_prompt", "tgi_wish"]
