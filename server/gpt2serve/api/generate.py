"""`POST /generate`: a request struct in, the engine's events out, as one JSON or as a stream."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
from litestar import Request, Response, post
from litestar.background_tasks import BackgroundTask
from litestar.di import NamedDependency
from litestar.openapi.datastructures import ResponseSpec
from litestar.params import JSONBody
from litestar.response import Stream

from gpt2serve.api.bodies import strict_body
from gpt2serve.api.exchange import Exchange
from gpt2serve.api.problems import ClientDisconnected, Problem, problem_of
from gpt2serve.api.schemas import GenerateRequest, GenerateResponse, SequenceEnd
from gpt2serve.api.service import Service
from gpt2serve.engine.events import Done, Event, Generation
from gpt2serve.package import check_model_id

if TYPE_CHECKING:
    from gpt2serve.engine.stream import TokenStream

_Result = TypeVar("_Result")

_ENCODER = msgspec.json.Encoder()
_LAST_FRAME = b"data: [DONE]\n\n"
#: Proxies must hand each event on at once.
_STREAM_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}

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
        "with `usage` and `timing`, then `data: [DONE]`. An error after the first byte is a "
        "`data:` event with `error`, and the stream ends without `[DONE]`."
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
        result = await _unless_gone(request, stream.result())
    finally:
        stream.cancel()
    exchange.finished(generation.finish_reason for generation in result.generations)
    exchange.done(Done(usage=result.usage, timing=result.timing))
    return Response(_ENCODER.encode(GenerateResponse.of(result)), media_type="application/json")


async def _streamed(
    request: Request[Any, Any, Any], stream: TokenStream, exchange: Exchange
) -> Response[Any]:
    try:
        # The status line goes out before the first frame is asked for: whatever can be refused
        # must be refused here.
        await _unless_gone(request, stream.started())
    except BaseException:
        stream.cancel()
        raise
    return Stream(
        _frames(stream, exchange),
        media_type="text/event-stream",
        headers=_STREAM_HEADERS,
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
        yield b"data: " + _ENCODER.encode({"error": problem}) + b"\n\n"
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
            chunk += _LAST_FRAME
    return bytes(chunk)


async def _unless_gone(request: Request[Any, Any, Any], work: Awaitable[_Result]) -> _Result:
    """The outcome of `work`, unless the client leaves first: then `ClientDisconnected`.

    Litestar does not cancel a handler whose client is gone.
    """
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_disconnect(request))
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnected("The client left before the answer was there.")
        return working.result()
    finally:
        for task in (working, leaving):
            task.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _disconnect(request: Request[Any, Any, Any]) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
