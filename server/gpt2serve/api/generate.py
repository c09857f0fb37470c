"""`POST /generate`: a request struct in, the engine's events out, as one JSON or as a stream."""

from __future__ import annotations

from typing import Any

import msgspec
from litestar import Request, Response, post
from litestar.di import NamedDependency
from litestar.openapi.datastructures import ResponseSpec
from litestar.params import JSONBody

from gpt2serve.api.bodies import strict_body
from gpt2serve.api.exchange import Exchange
from gpt2serve.api.generation import GENERATION, Ask, begin
from gpt2serve.api.openapi import StreamingOperation, problem_specs
from gpt2serve.api.problems import Problem
from gpt2serve.api.schemas import GenerateRequest, GenerateResponse, SequenceEnd
from gpt2serve.api.service import Service
from gpt2serve.api.streaming import LAST_FRAME, frame
from gpt2serve.engine.events import Event, Generation

_ENCODER = msgspec.json.Encoder()

_PROBLEMS = problem_specs(
    {
        400: "The body is not a JSON object",
        404: "There is no such model",
        413: "The body is too large",
        422: "A value is wrong; `field` names it",
        429: "Too many requests; `Retry-After` says when to try again",
        500: "The generation failed",
        503: "Shutting down, or the model cannot be loaded",
    }
)


@post(
    "/generate",
    status_code=200,
    operation_class=StreamingOperation,
    opt=GENERATION,
    before_request=strict_body(GenerateRequest),
    summary="Continue a prompt",
    description=(
        "With `stream: true` the answer is `text/event-stream`: one `data:` event per token "
        "(`index`, `token`), one as each sequence ends (`index`, `finish_reason`, `text`), one "
        "with `model_version`, `usage` and `timing`, then `data: [DONE]`. An error after the "
        "first byte is a `data:` event with `error`, and the stream ends without `[DONE]`."
    ),
    responses={
        200: ResponseSpec(
            GenerateResponse, description="The generated texts", generate_examples=False
        ),
        **_PROBLEMS,
    },
)
async def generate(
    request: Request[Any, Any, Any],
    data: JSONBody[GenerateRequest],
    service: NamedDependency[Service],
    exchange: NamedDependency[Exchange],
) -> Response[Any]:
    ask = Ask(data.prompt, data.params())
    running = await begin(request, service, exchange, data.model, [ask], stream=data.stream)
    if data.stream:
        return await running.respond(GenerateFrames())
    (result,) = await running.results()
    return Response(_ENCODER.encode(GenerateResponse.of(result)), media_type="application/json")


class GenerateFrames:
    """A `data:` event for every event of the engine."""

    def events(self, _ask: int, events: list[Event]) -> bytes:
        chunk = bytearray()
        for event in events:
            # The tokens themselves were streamed already, so `details` are not repeated.
            payload = SequenceEnd.of(event) if isinstance(event, Generation) else event
            chunk += b"data: "
            _ENCODER.encode_into(payload, chunk, -1)
            chunk += b"\n\n"
        return bytes(chunk)

    def end(self) -> bytes:
        return LAST_FRAME

    def error(self, problem: Problem) -> bytes:
        return frame({"error": problem})
