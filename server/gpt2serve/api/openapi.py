"""What the server says about itself at `/schema`.

Litestar writes the document from the routes; `complete` adds what it leaves out: the ranges of
fields that may be null (msgspec knows them), headers, and where the app is mounted. It is valid
OpenAPI 3.1, and generators of clients understand it.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, get_args

import msgspec
from litestar import Litestar, MediaType, Request, Router
from litestar.handlers import HTTPRouteHandler
from litestar.openapi import OpenAPIConfig
from litestar.openapi.datastructures import ResponseSpec
from litestar.openapi.plugins import JsonRenderPlugin, OpenAPIRenderPlugin
from litestar.openapi.spec import (
    Components,
    License,
    OpenAPIMediaType,
    OpenAPIResponse,
    Operation,
    Reference,
    Schema,
    SecurityScheme,
)
from litestar.openapi.spec.enums import OpenAPIType
from litestar.types import Method, Middleware

from gpt2serve.api.exchange import REQUEST_ID_HEADER
from gpt2serve.api.keys import API_KEY_SCHEME
from gpt2serve.api.problems import PROBLEM_JSON, Problem
from gpt2serve.api.reference import page
from gpt2serve.api.streaming import EVENT_STREAM
from gpt2serve.api.version import version

_COMPONENTS = "#/components/schemas/{name}"
_KEY_PROBLEMS = {
    "401": "The API key is missing or wrong",
    "403": "The API key may not use this model",
}
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}


def _header(description: str, **schema: Any) -> dict[str, Any]:
    return {"description": description, "schema": {"type": "string", **schema}}


_ALWAYS = {
    REQUEST_ID_HEADER: _header("Names the request in the log; the client's own if it sent one.")
}
_RETRY_AFTER = {"Retry-After": _header("Seconds, if waiting can help.", type="integer", minimum=1)}
_SERVER_TIMING = {
    "Server-Timing": _header("Milliseconds of queue, load, prefill; and decode if it has ended.")
}
_RATES = {
    "x-ratelimit-limit-tokens": _header("Tokens a minute, if the API key has a rate."),
    "x-ratelimit-remaining-tokens": _header("Of these, what is left now."),
    "x-ratelimit-reset-tokens": _header("The time until all are there again, such as 1m30s."),
}
_RETRY_STATUSES = {"429", "503"}


def problem_specs(
    texts: Mapping[int, str], body: type = Problem, media_type: str = PROBLEM_JSON
) -> dict[int, ResponseSpec]:
    """What a route may answer besides success: a sentence for each status."""
    return {
        status: ResponseSpec(body, description=text, media_type=media_type, generate_examples=False)
        for status, text in texts.items()
    }


@dataclass
class StreamingOperation(Operation):
    """For `operation_class`: the route may answer, or always answers, with server-sent events."""

    def __post_init__(self) -> None:
        answer = (self.responses or {}).get("200")
        if isinstance(answer, OpenAPIResponse):
            content = answer.content = dict(answer.content or {})
            told = content.get(EVENT_STREAM)
            content[EVENT_STREAM] = OpenAPIMediaType(schema=_event(told.schema if told else None))


def _event(payload: Schema | Reference | None) -> Schema:
    """One of the events that come. `payload` is what its data hold, if that is told."""
    data = Schema(
        type=OpenAPIType.STRING,
        description="JSON, or [DONE].",
        content_media_type="application/json",
        content_schema=payload,
    )
    return Schema(type=OpenAPIType.OBJECT, properties={"data": data}, required=["data"])


def openapi_config(
    security: Mapping[str, SecurityScheme], middleware: Sequence[Middleware] = ()
) -> OpenAPIConfig:
    """`middleware` is around `/schema`, too."""
    return OpenAPIConfig(
        title="gpt2serve",
        version=version(),
        description="Many fine-tuned GPT-2 models, served from one process.",
        license=License(name="Apache 2.0", identifier="Apache-2.0"),
        openapi_router=Router(
            "/schema",
            route_handlers=[],
            include_in_schema=False,
            response_headers=_HEADERS,
            middleware=middleware,
        ),
        operation_id_creator=_operation_id,
        components=Components(security_schemes=dict(security) or None),
        # The pages that litestar could show load their scripts from a CDN.
        render_plugins=[
            _Json(path=["/", "/openapi.json"], media_type=MediaType.JSON),
            _Page(path="/docs", media_type=MediaType.HTML),
        ],
    )


class _Json(JsonRenderPlugin):
    def render(self, request: Request[Any, Any, Any], openapi_schema: dict[str, Any]) -> bytes:
        root_path = str(request.scope.get("root_path", ""))
        return msgspec.json.encode(complete(request.app, openapi_schema, root_path))


class _Page(OpenAPIRenderPlugin):
    def render(self, request: Request[Any, Any, Any], openapi_schema: dict[str, Any]) -> bytes:
        depth = 2 if (request.scope.get("raw_path") or b"").endswith(b"/") else 1
        return page(complete(request.app, openapi_schema), "../" * depth).encode()


def complete(app: Litestar, schema: Mapping[str, Any], root_path: str = "") -> dict[str, Any]:
    """The whole document, for an app that is mounted at `root_path`."""
    document = copy.deepcopy(dict(schema))
    document["servers"] = [{"url": root_path or "/"}]
    document["security"] = []  # an operation that takes a key says so
    document["components"]["schemas"].update(_schemas(app))
    for operations in document["paths"].values():
        for operation in operations.values():
            # Litestar's own shape of a 400, which `problems` never lets out.
            if "Validation Exception" in str(operation["responses"].get("400")):
                del operation["responses"]["400"]
            _add_key_problems(operation)
            for parameter in _path_parameters(operation):
                parameter["schema"].pop("default", None)  # of `owner`, where there is none
            for answer in operation["responses"].values():
                if answer["description"] == HTTPStatus.OK.description:
                    answer["description"] = "Success"
            _add_headers(operation["responses"], generates="429" in operation["responses"])
    return document


def _schemas(app: Litestar) -> dict[str, dict[str, Any]]:
    """Of all bodies, in and out, and what they are made of."""
    kinds: dict[str, type[msgspec.Struct]] = {}
    for route in app.routes:
        for handler in route.route_handlers if hasattr(route, "route_handlers") else ():
            if isinstance(handler, HTTPRouteHandler) and handler.include_in_schema:
                _collect(_bodies(handler), kinds)
    _, schemas = msgspec.json.schema_components(kinds.values(), ref_template=_COMPONENTS)
    for name, kind in kinds.items():
        _tell_defaults(kind, schemas[name])
    return schemas


def _collect(annotations: Iterable[Any], kinds: dict[str, type[msgspec.Struct]]) -> None:
    """Put every struct that occurs in `annotations` into `kinds`, by its name."""
    for kind in annotations:
        if not (isinstance(kind, type) and issubclass(kind, msgspec.Struct)):
            _collect(get_args(kind), kinds)
        elif kind.__name__ not in kinds:
            kinds[kind.__name__] = kind
            _collect((field.type for field in msgspec.structs.fields(kind)), kinds)


def _tell_defaults(kind: type[msgspec.Struct], schema: dict[str, Any]) -> None:
    """Of a request, what a field is if left out; of an answer, which fields are always there."""
    config, fields = kind.__struct_config__, schema["properties"]
    if config.forbid_unknown_fields:  # a request: null is as good as left out
        for field in fields.values():
            if field.get("default", ...) is None:
                del field["default"]
            _tell_only_boolean(field)
        return
    always = {*schema["required"]}
    always |= {name for name, field in fields.items() if "default" in field}
    if not config.omit_defaults:
        schema["required"] = [name for name in fields if name in always]
    for field in fields.values():
        field.pop("default", None)


def _tell_only_boolean(schema: dict[str, Any]) -> None:
    """`const` for an `enum` of a boolean, which generators of clients do not know."""
    values = schema.pop("enum", ()) if None in schema.get("enum", ()) else ()
    for one in schema.get("anyOf", ()):
        for value in values or one.get("enum", ()):
            if isinstance(value, bool) and one.get("type") != "null":
                one.pop("enum", None)
                one |= {"type": "boolean", "const": value}


def _bodies(handler: HTTPRouteHandler) -> Iterator[Any]:
    if handler.parsed_data_field is not None:
        yield handler.parsed_data_field.annotation
    yield handler.parsed_return_field.annotation
    for spec in (handler.responses or {}).values():
        yield spec.data_container


def _add_key_problems(operation: dict[str, Any]) -> None:
    """What a route that takes an API key may answer, in the shape of its surface."""
    responses = operation["responses"]
    if {API_KEY_SCHEME: []} in operation.get("security", ()):
        about_a_model = "requestBody" in operation or any(_path_parameters(operation))
        for status, text in _KEY_PROBLEMS.items():
            if status == "401" or about_a_model:
                answer = {"description": text, "content": responses["503"]["content"]}
                responses.setdefault(status, answer)


def _path_parameters(operation: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    return (one for one in operation.get("parameters", ()) if one["in"] == "path")


def _add_headers(responses: dict[str, Any], *, generates: bool) -> None:
    for status, response in responses.items():
        headers = response.setdefault("headers", {})
        headers |= _ALWAYS
        if status in _RETRY_STATUSES:
            headers |= _RETRY_AFTER
        if generates and status == "200":
            headers |= _SERVER_TIMING
        if generates and status in {"200", "429"}:
            headers |= _RATES


def _operation_id(handler: HTTPRouteHandler, _method: Method, path: list[Any]) -> str:
    """The handler's name; of an id with two parts, told apart."""
    owner = any(getattr(part, "name", None) == "owner" for part in path)
    return handler.handler_name + ("_of_owner" if owner else "")
