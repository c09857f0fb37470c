"""Errors in the shape that Hugging Face's clients read: `{"error", "error_type"}`.

`huggingface_hub` makes an exception of its own of each type that Text Generation Inference has;
what has none becomes its `HfHubHTTPError`, with the status.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from gpt2serve.api.problems import Problem, error_handler
from gpt2serve.errors import ModelUnavailable

ErrorType = Literal["validation", "generation", "overloaded", "incomplete_generation"]


class ModelLoading(ModelUnavailable):
    """The client did not want to wait for the model, which is loaded meanwhile."""

    code = "model_loading"

    def __init__(self, model: str, estimated_time: float) -> None:
        super().__init__(f"Model {model} is currently loading", retry_after=estimated_time)
        self.estimated_time = estimated_time


class HuggingFaceError(msgspec.Struct, frozen=True, kw_only=True):
    """An error, as Text Generation Inference and the Inference API tell it."""

    error: Annotated[str, Meta(description="A sentence about this very occurrence.")]
    error_type: Annotated[
        ErrorType | UnsetType,
        Meta(description="As Text Generation Inference has it; left out where it has none."),
    ] = UNSET
    estimated_time: Annotated[
        float | UnsetType,
        Meta(description="Seconds until the model is loaded, if the error is that it is not."),
    ] = UNSET


#: Clients of Hugging Face may look for other tasks, and for the rest of its API.
_NOT_FOUND = (
    "There is nothing at this address. There are POST /models/{id}, /models/{id}/generate and "
    "/models/{id}/generate_stream; these models continue texts and do not chat."
)
#: By code: Text Generation Inference's status and type, where it has one.
_KINDS: dict[str, tuple[int, ErrorType]] = {
    "malformed_body": (400, "validation"),
    "invalid_value": (422, "validation"),
    "invalid_model_id": (422, "validation"),
    "overloaded": (429, "overloaded"),
    "rate_limited": (429, "overloaded"),
    "generation_failed": (424, "generation"),
    "aborted": (500, "incomplete_generation"),
}


def error_of(problem: Problem, otherwise: ErrorType | UnsetType = UNSET) -> HuggingFaceError:
    """The body that tells about `problem`; `otherwise` is the type of what has none."""
    kind = _KINDS.get(problem.code)
    return HuggingFaceError(error=_sentence(problem), error_type=kind[1] if kind else otherwise)


def _render(problem: Problem, error: Exception) -> tuple[int, HuggingFaceError]:
    status, _ = _KINDS.get(problem.code, (problem.status, None))
    body = error_of(problem)
    if isinstance(error, ModelLoading):
        body = msgspec.structs.replace(body, estimated_time=error.estimated_time)
    return status, body


def _sentence(problem: Problem) -> str:
    """What is wrong; a field without what it is in, as Text Generation Inference names it."""
    if problem.code == "not_found":
        return _NOT_FOUND
    return problem.detail.removeprefix("parameters.").removeprefix("options.")


hugging_face_response = error_handler(_render)
