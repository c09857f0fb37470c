"""Reading request bodies strictly."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
from litestar import Request
from litestar.exceptions import InternalServerException

from gpt2serve.api.problems import ClientDisconnected, body_error


def strict_body(kind: type[msgspec.Struct]) -> Callable[[Request[Any, Any, Any]], Awaitable[None]]:
    """A `before_request` hook that refuses what is no exact JSON of `kind`.

    Litestar's own conversion is lenient ("5" passes for an integer, "off" for a boolean) and
    does not tell malformed JSON from a wrong value. The handler still declares `data: kind`,
    which documents it; decoding a body of this size twice costs microseconds.
    """
    decoder = msgspec.json.Decoder(kind)

    async def check(request: Request[Any, Any, Any]) -> None:
        try:
            body = await request.body()
        except InternalServerException as error:  # what litestar makes of a client that left
            raise ClientDisconnected("The client left while it sent the body.") from error
        try:
            decoder.decode(body)
        except msgspec.ValidationError as error:
            if not _fits(body, kind):
                raise body_error(error) from None
        except (ValueError, RecursionError) as error:
            raise body_error(error) from None

    return check


def _fits(body: bytes, kind: type[msgspec.Struct]) -> bool:
    """Whether the only thing wrong was 5.0 for an integer: in JSON it is one."""
    try:
        msgspec.convert(_with_integers(msgspec.json.decode(body)), kind)
    except (ValueError, RecursionError):
        return False
    return True


def _with_integers(value: Any) -> Any:
    match value:
        case float() if value.is_integer():
            return int(value)
        case dict():
            return {key: _with_integers(item) for key, item in value.items()}
        case list():
            return [_with_integers(item) for item in value]
    return value
