"""The headers in which Text Generation Inference tells what an answer took."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from litestar.openapi.spec import OpenAPIHeader, OpenAPIResponse, Operation, Reference, Schema
from litestar.openapi.spec.enums import OpenAPIType

from gpt2serve.api.generation import Running
from gpt2serve.api.openapi import StreamingOperation
from gpt2serve.engine.events import GenerationResult

_ALWAYS = {
    "x-compute-type": "What computed: cpu or cuda.",
    "x-compute-characters": "Characters of inputs.",
}
_AT_THE_END = {
    "x-compute-time": "Seconds, in all.",
    "x-total-time": "Milliseconds, in all.",
    "x-validation-time": "Milliseconds until the request was checked and accepted.",
    "x-queue-time": "Milliseconds that it waited, for the model or for a place in the batch.",
    "x-inference-time": "Milliseconds that it was computed.",
    "x-time-per-token": "Milliseconds of computing for each token of the longest text.",
    "x-prompt-tokens": "Tokens that the model read.",
    "x-generated-tokens": "Tokens that it generated, of all texts.",
}


def first_headers(running: Running, prompts: Sequence[str]) -> dict[str, str]:
    """What is known before there is a token."""
    return {
        "x-compute-type": running.prepared[0].package.manifest.target,
        "x-compute-characters": str(sum(map(len, prompts))),
    }


def last_headers(
    results: Sequence[GenerationResult], *, validated: float, total: float
) -> dict[str, str]:
    """What is known at the end. `validated` and `total` are seconds since the request came."""
    timings = [result.timing for result in results]
    inference = max(timing.prefill_ms + timing.decode_ms for timing in timings)
    longest = max(one.tokens for result in results for one in result.generations)
    return {
        "x-compute-time": f"{total:.6f}",
        "x-total-time": _milliseconds(1e3 * total),
        "x-validation-time": _milliseconds(1e3 * validated),
        "x-queue-time": _milliseconds(max(time.queue_ms + time.load_ms for time in timings)),
        "x-inference-time": _milliseconds(inference),
        "x-time-per-token": _milliseconds(inference / max(1, longest)),
        "x-prompt-tokens": str(sum(result.usage.prompt_tokens for result in results)),
        "x-generated-tokens": str(sum(result.usage.completion_tokens for result in results)),
    }


def _milliseconds(value: float) -> str:
    # Whole ones, since that is what clients of Text Generation Inference parse.
    return str(round(value))


def _describe(operation: Operation, names: Mapping[str, str]) -> None:
    answer = (operation.responses or {}).get("200")
    if isinstance(answer, OpenAPIResponse):
        described: dict[str, OpenAPIHeader | Reference] = {
            name: OpenAPIHeader(
                description=text, schema=Schema(type=OpenAPIType.STRING), required=False
            )
            for name, text in names.items()
        }
        answer.headers = {**(answer.headers or {}), **described}


@dataclass
class GenerateOperation(Operation):
    """For `operation_class`: a whole answer."""

    def __post_init__(self) -> None:
        _describe(self, _ALWAYS | _AT_THE_END)


@dataclass
class GenerateStreamOperation(StreamingOperation):
    """For `operation_class`: a stream."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _describe(self, _ALWAYS)


@dataclass
class InferenceOperation(StreamingOperation):
    """For `operation_class`: a whole answer or a stream."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _describe(self, _ALWAYS | _AT_THE_END)
