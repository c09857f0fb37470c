"""CORS: which pages of other origins may read the answers of the public routes.

Around the routes and not around the app (litestar's `CORSConfig`), so that it holds in any app
that the router is mounted in, and nowhere beyond it: not for `/metrics`, not for `/admin`.
"""

from __future__ import annotations

from collections.abc import Sequence

from litestar.datastructures import Headers
from litestar.enums import ScopeType
from litestar.middleware import ASGIMiddleware
from litestar.types import ASGIApp, Message, Receive, Scope, Send

from gpt2serve.origins import ANY_ORIGIN, check_origins

_Headers = list[tuple[bytes, bytes]]

#: Browsers keep the answer to a preflight for this long, or less.
PREFLIGHT_SECONDS = 7200

# Nothing here goes with cookies, so `*` means every header, but for Authorization, which must be
# named: clients in a browser send headers of their own, such as the openai package's.
_ALLOWED: _Headers = [
    (b"access-control-allow-methods", b"GET, POST"),
    (b"access-control-allow-headers", b"*, Authorization"),
    (b"access-control-max-age", str(PREFLIGHT_SECONDS).encode()),
]
_READABLE: _Headers = [(b"access-control-expose-headers", b"*")]
_VARY = (b"vary", b"Origin")


class CorsMiddleware(ASGIMiddleware):
    """Adds the headers to whatever a route answers, errors too.

    A preflight is an OPTIONS request, for which litestar has a handler on every route; its empty
    answer becomes the preflight's.
    """

    scopes = (ScopeType.HTTP,)

    def __init__(self, origins: Sequence[str]) -> None:
        check_origins(origins)
        self._origins = frozenset(origins)

    async def handle(self, scope: Scope, receive: Receive, send: Send, next_app: ASGIApp) -> None:
        added = self._headers(scope)

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), *added]
            await send(message)

        await next_app(scope, receive, send_with_headers)

    def _headers(self, scope: Scope) -> _Headers:
        headers = Headers.from_scope(scope)
        allowed = self._allowed(headers.get("Origin"))
        # A cache must not give one origin what was answered to another, or to none.
        vary = [] if allowed == ANY_ORIGIN else [_VARY]
        if allowed is None:
            return vary
        value = allowed.encode()
        origin = [(b"access-control-allow-origin", value), *vary]
        if scope.get("method") == "OPTIONS" and "Access-Control-Request-Method" in headers:
            return [*origin, *_ALLOWED]
        # Whoever may read the answer may see its Server-Timing in the browser's tools too.
        return [*origin, *_READABLE, (b"timing-allow-origin", value)]

    def _allowed(self, origin: str | None) -> str | None:
        if ANY_ORIGIN in self._origins:
            return ANY_ORIGIN
        return origin if origin in self._origins else None
