"""Errors in OpenAI's shape."""

from __future__ import annotations

from collections.abc import Mapping

from litestar import MediaType
from litestar.openapi.datastructures import ResponseSpec
from msgspec import UNSET

from gpt2serve import errors
from gpt2serve.api.openai.schemas import ErrorBody, ErrorDetails
from gpt2serve.api.openapi import problem_specs
from gpt2serve.api.problems import Problem, error_handler

_STATUSES = {422: 400}
#: Clients of OpenAI may look for the rest of its API.
_NOT_FOUND = (
    "There is nothing at this address. There are /v1/completions and /v1/models; these models "
    "complete text and do not chat."
)
#: OpenAI's own word, by which clients know that a shorter prompt would do.
_CONTEXT_EXCEEDED = "context_length_exceeded"
_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


def status_of(problem: Problem) -> int:
    """OpenAI has no 422, and a model that cannot exist is unknown like any other."""
    if problem.code == errors.InvalidModelId.code:
        return 404
    return _STATUSES.get(problem.status, problem.status)


def error_body(problem: Problem, error: Exception | None = None) -> ErrorBody:
    status = status_of(problem)
    field = None if problem.field is UNSET else problem.field
    code = problem.code
    if isinstance(error, errors.ContextExceeded):
        code = _CONTEXT_EXCEEDED
    elif status == 404 and field == "model":
        code = errors.ModelNotFound.code
    return ErrorBody(
        error=ErrorDetails(
            message=_NOT_FOUND if problem.code == "not_found" else problem.detail,
            type="server_error" if status >= 500 else _TYPES.get(status, "invalid_request_error"),
            param=field,
            code=code,
        )
    )


openai_errors = error_handler(
    lambda problem, error: (status_of(problem), error_body(problem, error))
)


def openai_problems(texts: Mapping[int, str]) -> dict[int, ResponseSpec]:
    """What a route may answer besides success, for `/schema`."""
    return problem_specs(texts, ErrorBody, MediaType.JSON)
