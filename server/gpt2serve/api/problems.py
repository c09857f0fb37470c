"""The one place where errors become HTTP: RFC 9457 problem documents.

The compatible surfaces say the same in their own shapes, made from these (`error_handler`).
`_RULES` is the whole mapping. The first class that an error is an instance of decides.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Annotated, Any, NamedTuple

import msgspec
from litestar import MediaType, Request, Response
from litestar.exceptions import (
    HTTPException,
    MethodNotAllowedException,
    NotFoundException,
    ValidationException,
)
from msgspec import UNSET, Meta, UnsetType

from gpt2serve import errors
from gpt2serve.api.callers import ModelNotAllowed, RateLimited
from gpt2serve.api.exchange import (
    CLIENT_DISCONNECTED,
    REQUEST_ID_HEADER,
    exchange_of,
    open_exchange,
)

#: Envoy sends nothing more to a host that answers with it, until a health check passes again; a
#: proxy also sees from it that another replica may take the request. k8s/envoy/envoy.yaml
#: does both.
LEAVING_HEADER = "X-Envoy-Immediate-Health-Check-Fail"
PROBLEM_JSON = "application/problem+json"
CLIENT_CLOSED_REQUEST = 499
_TYPE_PREFIX = "urn:gpt2serve:error:"


class MalformedBody(errors.Gpt2ServeError):
    """The body is no JSON object."""

    code = "malformed_body"


class ClientDisconnected(errors.Gpt2ServeError):
    """Nobody is there to read the answer; the status goes to log and metrics only."""

    code = CLIENT_DISCONNECTED


class NotReady(errors.Gpt2ServeError):
    code = "not_ready"
    retry_after = 1.0


class Unauthorized(errors.Gpt2ServeError):
    """The same whatever is wrong, so that nobody learns which models there are."""

    code = "unauthorized"

    def __init__(self, wanted: str = "the server's admin key") -> None:
        super().__init__(f"Send {wanted} as `Authorization: Bearer KEY`.")


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    """An error, as RFC 9457 describes it."""

    type: Annotated[str, Meta(description="Stable; names the kind of problem.")]
    title: str
    status: int
    detail: Annotated[str, Meta(description="A sentence about this very occurrence.")]
    code: Annotated[str, Meta(description="Stable; the last part of `type`.")]
    field: Annotated[
        str | UnsetType, Meta(description="The request's field that is wrong, where one is.")
    ] = UNSET


class _Rule(NamedTuple):
    status: int
    title: str
    #: Shown instead of the error's own words where these speak of the server's inside.
    detail: str | None = None
    #: Has its own code if None.
    code: str | None = None


_SEE_LOG = "The server's log has the reason, under this answer's X-Request-Id."

_RULES: tuple[tuple[type[Exception], _Rule], ...] = (
    (MalformedBody, _Rule(400, "The body cannot be read")),
    (Unauthorized, _Rule(401, "The key is missing or wrong")),
    (ModelNotAllowed, _Rule(403, "The key may not use this model")),
    (errors.ModelNotFound, _Rule(404, "Unknown model")),
    (errors.InvalidRequest, _Rule(422, "A value is wrong")),
    (errors.InvalidModelId, _Rule(422, "A value is wrong")),
    (errors.Overloaded, _Rule(429, "Too many requests")),
    (RateLimited, _Rule(429, "Too many tokens")),
    (ClientDisconnected, _Rule(CLIENT_CLOSED_REQUEST, "The client has left")),
    (errors.StepFailed, _Rule(500, "The generation failed", _SEE_LOG)),
    (errors.EngineClosed, _Rule(503, "The server is shutting down")),
    (errors.RequestAborted, _Rule(503, "The request was aborted")),
    (NotReady, _Rule(503, "The server is not ready")),
    (errors.EngineNotStarted, _Rule(503, "The server is not ready")),
    (
        errors.StoreUnavailable,
        _Rule(
            503,
            "The model store does not answer",
            "Models that the server has already are served. Try again later. " + _SEE_LOG,
        ),
    ),
    # Its cause may be anything, and speak of paths.
    (
        errors.ModelLoadFailed,
        _Rule(503, "The model cannot be loaded", "The last try to load it failed. " + _SEE_LOG),
    ),
    (errors.ModelUnavailable, _Rule(503, "The model cannot be loaded")),
    (
        errors.PackageError,
        _Rule(503, "The model cannot be loaded", "Its package cannot be used. " + _SEE_LOG),
    ),
    (
        ValidationException,
        _Rule(422, "A value is wrong", code=errors.InvalidRequest.code),
    ),
    (NotFoundException, _Rule(404, "Not found", "There is nothing at this address.", "not_found")),
    (
        MethodNotAllowedException,
        _Rule(405, "Method not allowed", "This address takes other methods.", "method_not_allowed"),
    ),
)
_INTERNAL_CODE = errors.Gpt2ServeError.code
_INTERNAL = _Rule(500, "Internal error", _SEE_LOG, _INTERNAL_CODE)

_HTTP_RULES = {
    400: _Rule(400, "The body cannot be read", code=MalformedBody.code),
    413: _Rule(
        413,
        "The body is too large",
        "The body is larger than the server takes (its --max-body-bytes).",
        "body_too_large",
    ),
}


def problem_of(error: Exception) -> Problem:
    """The document that tells a client about `error`, without the server's inside."""
    rule = _rule_of(error)
    code = rule.code or str(getattr(error, "code", _INTERNAL_CODE))
    return Problem(
        type=_TYPE_PREFIX + code,
        title=rule.title,
        status=rule.status,
        detail=rule.detail or _detail_of(error),
        code=code,
        field=_field_of(error),
    )


def _rule_of(error: Exception) -> _Rule:
    for kind, rule in _RULES:
        if isinstance(error, kind):
            return rule
    if isinstance(error, HTTPException) and error.status_code < 500:
        other = _Rule(error.status_code, error.detail, code="http_error")
        return _HTTP_RULES.get(error.status_code, other)
    return _INTERNAL


def _detail_of(error: Exception) -> str:
    if isinstance(error, ValidationException) and isinstance(error.extra, list) and error.extra:
        wrong = error.extra[0]  # litestar's own sentence names the address only
        message = str(wrong.get("message", "")).replace("`", "")
        return f"{wrong.get('key', '')}: {message[:1].lower()}{message[1:]}"
    return str(getattr(error, "detail", error))


def _field_of(error: Exception) -> str | UnsetType:
    if isinstance(error, errors.InvalidRequest):
        return error.field
    if isinstance(error, errors.InvalidModelId | errors.ModelNotFound | ModelNotAllowed):
        return "model"
    if isinstance(error, ValidationException) and isinstance(error.extra, list) and error.extra:
        return str(error.extra[0].get("key", "")) or UNSET
    return UNSET


def retry_headers(error: Exception) -> dict[str, str]:
    """`Retry-After` in whole seconds, at least 1, where waiting can help."""
    seconds = getattr(error, "retry_after", None)
    return {} if seconds is None else {"Retry-After": str(max(1, math.ceil(seconds)))}


#: The status and the body that a surface answers an error with.
Render = Callable[[Problem, Exception], tuple[int, Any]]
ErrorHandler = Callable[[Request[Any, Any, Any], Exception], Response[bytes]]


def error_handler(render: Render, media_type: str = MediaType.JSON) -> ErrorHandler:
    """Litestar's exception handler, for every exception below a surface's router."""

    def respond(request: Request[Any, Any, Any], error: Exception) -> Response[bytes]:
        problem = problem_of(error)
        exchange = exchange_of(request.scope)
        headers = retry_headers(error)
        if isinstance(error, Unauthorized):
            headers["WWW-Authenticate"] = "Bearer"
        if isinstance(error, errors.EngineClosed):
            headers[LEAVING_HEADER] = "true"
        if exchange is not None:
            exchange.failed(problem.code, error if problem.status >= 500 else None)
        else:  # no route matched, so no middleware ran
            given = request.headers.get(REQUEST_ID_HEADER)
            headers[REQUEST_ID_HEADER] = open_exchange(request.scope, given).request_id
        if isinstance(error, HTTPException):
            headers.update(error.headers or {})
        status, body = render(problem, error)
        return Response(
            content=msgspec.json.encode(body),
            status_code=status,
            media_type=media_type,
            headers=headers,
        )

    return respond


problem_response = error_handler(lambda problem, _: (problem.status, problem), PROBLEM_JSON)


#: Where in the body: `parameters.top_p` of `$.parameters.top_p`, `stop` of `$.stop[0]`.
_FIELD_PATH = re.compile(r" - at (?:`(key)` in )?`\$\.?([^`\[]*)[^`]*`$")
_NAMED_FIELD = re.compile(
    r"Object (?:missing required|contains unknown) field `(.*?)`(?: - at `\$\.?([^`\[]*)[^`]*`)?",
    re.DOTALL,
)
_LONGEST_FIELD_NAME = 100


def body_error(error: Exception) -> errors.Gpt2ServeError:
    """What msgspec says about a body, in our terms: `InvalidRequest` if it names a field."""
    text = str(error)
    if isinstance(error, msgspec.ValidationError):
        if named := _NAMED_FIELD.fullmatch(text):
            missing = "missing required" in text[:32]
            message = "is required" if missing else "is not a field of this request"
            field = ".".join(filter(None, (named[2], named[1][:_LONGEST_FIELD_NAME])))
            return errors.InvalidRequest(field, message)
        if (path := _FIELD_PATH.search(text)) and path[2]:
            message = text[: path.start()].replace("`", "")
            message = message[:1].lower() + message[1:]
            return errors.InvalidRequest(path[2], f"a key: {message}" if path[1] else message)
        return MalformedBody(f"The body must be a JSON object. {text.replace('`', '')}.")
    if isinstance(error, UnicodeDecodeError):
        return MalformedBody("The body is not UTF-8.")
    return MalformedBody(f"The body is not JSON: {text}.")


__all__ = [
    "CLIENT_CLOSED_REQUEST",
    "PROBLEM_JSON",
    "ClientDisconnected",
    "MalformedBody",
    "ModelNotAllowed",
    "NotReady",
    "Problem",
    "RateLimited",
    "Unauthorized",
    "body_error",
    "error_handler",
    "problem_of",
    "problem_response",
    "retry_headers",
]
