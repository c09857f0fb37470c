"""What routes with `text/event-stream` share, and how to notice that a client has left."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
from litestar import Request

from gpt2serve.api.problems import ClientDisconnected
from gpt2serve.engine.events import Event

if TYPE_CHECKING:
    from gpt2serve.engine.stream import TokenStream

_Result = TypeVar("_Result")

EVENT_STREAM = "text/event-stream"
#: Proxies must hand each event on at once.
STREAM_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
LAST_FRAME = b"data: [DONE]\n\n"

_ENCODER = msgspec.json.Encoder()


def frame(payload: Any) -> bytes:
    """One event."""
    return b"data: " + _ENCODER.encode(payload) + b"\n\n"


async def unless_gone(request: Request[Any, Any, Any], work: Awaitable[_Result]) -> _Result:
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


async def merged(streams: Sequence[TokenStream]) -> AsyncIterator[tuple[int, list[Event]]]:
    """The events of all streams as they come, each list with the number of its stream.

    Raises what the first that fails ended with.
    """
    if len(streams) == 1:  # as nearly always, and then without tasks and a queue
        async for events in streams[0].batches():
            yield 0, events
        return
    arrived: asyncio.Queue[tuple[int, list[Event] | Exception | None]] = asyncio.Queue()
    pumps = [asyncio.create_task(_pump(n, stream, arrived)) for n, stream in enumerate(streams)]
    try:
        running = len(streams)
        while running:
            n, events_or_end = await arrived.get()
            if isinstance(events_or_end, Exception):
                raise events_or_end
            if events_or_end is None:
                running -= 1
            else:
                yield n, events_or_end
    finally:
        for pump in pumps:
            pump.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)


async def _pump(
    n: int, stream: TokenStream, arrived: asyncio.Queue[tuple[int, list[Event] | Exception | None]]
) -> None:
    try:
        async for events in stream.batches():
            arrived.put_nowait((n, events))
    except Exception as error:
        arrived.put_nowait((n, error))
    else:
        arrived.put_nowait((n, None))
