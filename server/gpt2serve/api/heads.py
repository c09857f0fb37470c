"""Heads of requests that are too large, refused before they fill the memory.

Nobody has shown a key yet who sends one.
"""

from __future__ import annotations

import asyncio
from typing import Any, Literal

import msgspec
from litestar.enums import ScopeType
from litestar.types import ASGIApp, Receive, Scope, Send

from gpt2serve.api.problems import PROBLEM_JSON, Problem

#: Bytes of path and query. The router remembers a thousand paths.
MOST_TARGET = 8 * 1024
#: Bytes of a head that is not complete yet; h11 stops at 64 KiB by itself. A part that arrives may
#: begin with the body of the request before, so this is more than two parts, of 256 KiB each.
MOST_HEAD = 768 * 1024


def short_targets(app: ASGIApp) -> ASGIApp:
    """`app`, but for requests whose path and query are longer than `MOST_TARGET`: 414."""

    async def checked(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == ScopeType.HTTP and _target(scope) > MOST_TARGET:
            await _refuse(send)
            return
        await app(scope, receive, send)

    return checked


def _target(scope: Scope) -> int:
    return len(scope.get("raw_path", b"")) + len(scope["query_string"])


async def _refuse(send: Send) -> None:
    body = msgspec.json.encode(
        Problem(
            type="urn:gpt2serve:error:address_too_long",
            title="The address is too long",
            status=414,
            detail=f"Path and query may have {MOST_TARGET} bytes.",
            code="address_too_long",
        )
    )
    headers = [
        (b"content-type", PROBLEM_JSON.encode()),
        (b"content-length", str(len(body)).encode()),
    ]
    await send({"type": "http.response.start", "status": 414, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": False})


def protocol() -> type[asyncio.Protocol] | Literal["h11"]:
    """What uvicorn is to read HTTP with: httptools if it is there, as uvicorn's own choice is."""
    try:
        from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
    except ImportError:
        return "h11"

    class BoundedHttpTools(HttpToolsProtocol):
        """httptools keeps a head until it is complete, however large it is."""

        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            self._in_head = True
            self._head_bytes = 0

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self._in_head and not self.transport.is_closing():
                self._head_bytes += len(data)
                if self._head_bytes > MOST_HEAD:
                    self.logger.warning("The head of a request is too large.")
                    self.send_400_response("The head of the request is too large.")

        def on_message_begin(self) -> None:
            super().on_message_begin()
            self._in_head, self._head_bytes = True, 0

        def on_headers_complete(self) -> None:
            self._in_head = False
            super().on_headers_complete()

    return BoundedHttpTools
