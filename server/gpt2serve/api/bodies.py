"""Reading request bodies strictly.

Bodies are read in the event loop, so what takes long to read would hold up everybody.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
from litestar import Request
from litestar.exceptions import InternalServerException

from gpt2serve.api.problems import ClientDisconnected, MalformedBody, body_error

#: Lists and objects that a body may have: these are what takes long, half a second for a megabyte.
MOST_PARTS = 10_000
#: A larger body must have its integers as integers.
LARGEST_WITH_FLOATS = 64 * 1024
#: Up to here a float is exact, and no integer has hundreds of digits.
_EXACT = 2.0**53
#: With or without an end, so that none is gone through again from each quote in it.
_STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+"?', re.DOTALL)


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
        if _has_many_parts(body):
            raise MalformedBody(f"The body has more than {MOST_PARTS:,} lists and objects.")
        try:
            decoder.decode(body)
        except msgspec.ValidationError as error:
            if "got `float`" not in str(error) or not _fits(body, kind):
                raise body_error(error) from None
        except (ValueError, RecursionError) as error:
            raise body_error(error) from None

    return check


def _has_many_parts(body: bytes) -> bool:
    if _parts(body) <= MOST_PARTS:
        return False
    return _parts(_STRING.sub(b"", body)) > MOST_PARTS  # brackets in texts are none


def _parts(text: bytes) -> int:
    return text.count(b"[") + text.count(b"{")


def _fits(body: bytes, kind: type[msgspec.Struct]) -> bool:
    """Whether the only thing wrong was 5.0 for an integer: in JSON it is one."""
    if len(body) > LARGEST_WITH_FLOATS:
        return False
    try:
        msgspec.convert(_with_integers(msgspec.json.decode(body)), kind)
    except (ValueError, RecursionError):
        return False
    return True


def _with_integers(value: Any) -> Any:
    match value:
        case float() if abs(value) <= _EXACT and value.is_integer():
            return int(value)
        case dict():
            return {key: _with_integers(item) for key, item in value.items()}
        case list():
            return [_with_integers(item) for item in value]
    return value
