"""Around every route: request id, one log line, HTTP metrics, a trace if traces are wanted."""

from __future__ import annotations

from typing import Any

from litestar.datastructures import Headers
from litestar.enums import ScopeType
from litestar.middleware import ASGIMiddleware
from litestar.types import ASGIApp, Message, Receive, Scope, Send

from gpt2serve.api.exchange import REQUEST_ID_HEADER, Exchange, open_exchange
from gpt2serve.api.generation import GENERATION
from gpt2serve.api.service import Service


class ExchangeMiddleware(ASGIMiddleware):
    """Opens the exchange, and closes it when the last byte is sent or the client is gone."""

    scopes = (ScopeType.HTTP,)

    def __init__(self, service: Service) -> None:
        self._service = service

    async def handle(self, scope: Scope, receive: Receive, send: Send, next_app: ASGIApp) -> None:
        given = Headers.from_scope(scope).get(REQUEST_ID_HEADER)
        exchange = open_exchange(scope, given)
        id_header = (REQUEST_ID_HEADER.lower().encode(), exchange.request_id.encode())

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                exchange.status = message["status"]
                limits = exchange.caller.headers() if _generates(scope) else {}
                message["headers"] = [
                    *message.get("headers", ()),
                    id_header,
                    *((name.encode(), value.encode()) for name, value in limits.items()),
                    *_server_timing(exchange),
                ]
            await send(message)

        try:
            await next_app(scope, receive, send_with_headers)
        except BaseException as error:
            exchange.failed("internal_error", error if isinstance(error, Exception) else None)
            raise
        finally:
            self._close(scope, exchange)

    def _close(self, scope: Scope, exchange: Exchange) -> None:
        route = _route(scope, exchange)
        self._service.metrics.on_http_request(
            route=route, status=exchange.status, code=exchange.code, seconds=exchange.seconds
        )
        generates = _generates(scope)
        if self._service.traces is not None:
            exchange.trace_id = self._service.traces.record(
                scope, exchange, route, generates=generates
            )
        if exchange.action is not None:
            self._service.log_admin(exchange)
        elif generates:
            self._service.log_generate(exchange)
        elif exchange.error is not None:
            self._service.log_failure(exchange)


def _server_timing(exchange: Exchange) -> list[tuple[bytes, bytes]]:
    """What is known of the times by now, for a browser's developer tools: W3C Server Timing."""
    times = [f"{name};dur={milliseconds}" for name, milliseconds in exchange.times().items()]
    return [(b"server-timing", ", ".join(times).encode())] if times else []


def _generates(scope: Scope) -> bool:
    handler: Any = scope.get("route_handler")
    return handler is not None and GENERATION.items() <= handler.opt.items()


def _route(scope: Scope, exchange: Exchange) -> str:
    """The route's template, not the path: what a client writes must not become a label."""
    template = str(scope.get("path_template", ""))
    if not exchange.action:
        return template
    # The template leaves open what is done, and differs between ids of one part and of two.
    prefix, _, _ = template.rpartition("/admin/models/")
    return f"{prefix}/admin/models/{{id}}/{exchange.action}"
