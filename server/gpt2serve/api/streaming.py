"""What routes with `text/event-stream` share, and how to notice that a client has left."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any, TypeVar

import msgspec
from litestar import Request

from gpt2serve.api.problems import ClientDisconnected

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
