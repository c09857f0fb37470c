"""`POST /generate`: a request struct in, the engine's events out, as one JSON or as a stream."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

import msgspec
from litestar import Request, Response, post
from litestar.background_tasks import BackgroundTask
from litestar.di import NamedDependency
from litestar.openapi.datastructures import ResponseSpec
from litestar.params import JSONBody
from litestar.response import Stream

from gpt2serve.api.bodies import strict_body
from gpt2serve.api.exchange import Exchange
from gpt2serve.api.problems import Problem, problem_of
from gpt2serve.api.schemas import GenerateRequest, GenerateResponse, SequenceEnd
from gpt2serve.api.service import Service
from gpt2serve.api.streaming import EVENT_STREAM, LAST_FRAME, STREAM_HEADERS, frame, unless_gone
from gpt2serve.engine.events import Done, Event, Generation
from gpt2serve.package import check_model_id

if TYPE_CHECKING:
    from gpt2serve.engine.stream import TokenStream

_ENCODER = msgspec.json.Encoder()

_PROBLEMS = {
    status: ResponseSpec(Problem, description=text, generate_examples=False)
    for status, text in {
        400: "The body is not a JSON object",
        404: "There is no such model",
        413: "The body is too large",
        422: "A value is wrong; `field` names it",
        429: "Too many requests; `Retry-After` says when to try again",
        503: "Shutting down, or the model cannot be loaded",
    }.items()
}


@post(
    "/generate",
    status_code=200,
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
    exchange.model = check_model_id(data.model)
    exchange.stream = data.stream
    prepared = await asyncio.to_thread(
        service.engine.prepare, data.model, data.prompt, data.params()
    )
    stream = service.engine.submit(prepared, wants_tokens=data.stream)
    if data.stream:
        return await _streamed(request, stream, exchange)
    return await _whole(request, stream, exchange)


async def _whole(
    request: Request[Any, Any, Any], stream: TokenStream, exchange: Exchange
) -> Response[Any]:
    try:
        result = await unless_gone(request, stream.result())
    finally:
        stream.cancel()
    exchange.finished(generation.finish_reason for generation in result.generations)
    exchange.done(
        Done(model_version=result.model_version, usage=result.usage, timing=result.timing)
    )
    return Response(_ENCODER.encode(GenerateResponse.of(result)), media_type="application/json")


async def _streamed(
    request: Request[Any, Any, Any], stream: TokenStream, exchange: Exchange
) -> Response[Any]:
    try:
        # The status line goes out before the first frame is asked for: whatever can be refused
        # must be refused here.
        await unless_gone(request, stream.started())
    except BaseException:
        stream.cancel()
        raise
    return Stream(
        _frames(stream, exchange),
        media_type=EVENT_STREAM,
        headers=STREAM_HEADERS,
        # If the client goes while a send is blocked, the generator's `finally` waits for the
        # garbage collector, but this runs (litestar #3607). Neither covers every case alone.
        background=BackgroundTask(_release, stream, exchange),
    )


async def _frames(stream: TokenStream, exchange: Exchange) -> AsyncIterator[bytes]:
    try:
        async for events in stream.batches():
            yield encode_events(events, exchange)
    except Exception as error:
        problem = problem_of(error)
        exchange.failed(problem.code, error if problem.status >= 500 else None)
        yield frame({"error": problem})
    finally:
        stream.cancel()


async def _release(stream: TokenStream, exchange: Exchange) -> None:
    stream.cancel()
    if exchange.code == "ok" and not exchange.numbers:
        exchange.gone()


def encode_events(events: list[Event], exchange: Exchange) -> bytes:
    """The frames of one engine step, as one chunk: one write to the socket per step."""
    chunk = bytearray()
    for event in events:
        payload: Event | SequenceEnd = event
        if isinstance(event, Generation):
            exchange.finished((event.finish_reason,))
            payload = SequenceEnd.of(event)
        elif isinstance(event, Done):
            exchange.done(event)
        chunk += b"data: "
        _ENCODER.encode_into(payload, chunk, -1)
        chunk += b"\n\n"
        if isinstance(event, Done):
            chunk += LAST_FRAME
    return bytes(chunk)
