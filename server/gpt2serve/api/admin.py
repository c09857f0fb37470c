"""`/admin`: load, unload, pin and unpin models, for those who have the admin key.

A load or an unload belongs to the server: it goes on if the client that asked for it leaves.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future
from typing import TYPE_CHECKING, Annotated, Any

from litestar import MediaType, Request, Response, Router, get, post
from litestar.background_tasks import BackgroundTask
from litestar.connection import ASGIConnection
from litestar.di import NamedDependency
from litestar.exceptions import NotFoundException
from litestar.handlers import BaseRouteHandler
from litestar.openapi.datastructures import ResponseSpec
from litestar.params import PathParameter, QueryParameter
from litestar.response import Stream

from gpt2serve.api.exchange import Exchange, exchange_of
from gpt2serve.api.models import AdminEntry, ModelName, ModelOwner, model_id
from gpt2serve.api.openapi import StreamingOperation, problem_specs
from gpt2serve.api.problems import Unauthorized, problem_of
from gpt2serve.api.service import Service
from gpt2serve.api.streaming import EVENT_STREAM, LAST_FRAME, STREAM_HEADERS, frame, unless_gone
from gpt2serve.errors import EngineClosed
from gpt2serve.settings import Secret

if TYPE_CHECKING:
    from gpt2serve.engine.engine import Engine

SECURITY_SCHEME = "AdminKey"

#: How often progress is looked at. What fails sooner is answered with a status code.
POLL_SECONDS = 0.2
#: A comment after that long without news keeps proxies from closing the connection.
QUIET_SECONDS = 15.0

_PROBLEMS = problem_specs(
    {
        401: "The admin key is missing or wrong",
        404: "There is no such model",
        422: "This is no model id",
        503: "Shutting down, the model cannot be loaded, or the store does not answer",
    }
)


def admin_router(key: Secret) -> Router:
    """The routes below `/admin`, for those who send `key`."""

    def check_key(
        connection: ASGIConnection[Any, Any, Any, Any], _handler: BaseRouteHandler
    ) -> None:
        exchange = exchange_of(connection.scope)
        if exchange is not None:
            exchange.action = ""
        scheme, _, given = connection.headers.get("Authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not key.matches(given.strip()):
            raise Unauthorized

    return Router(
        path="/admin",
        route_handlers=[info, act],
        guards=[check_key],
        security=[{SECURITY_SCHEME: []}],
        tags=["admin"],
    )


def _load(engine: Engine, model: str) -> Future[None]:
    return engine.start_load(model)


def _unload(engine: Engine, model: str) -> Future[None]:
    return engine.start_unload(model)


def _pin(engine: Engine, model: str) -> Future[None]:
    return engine.start_load(model, pin=True)


def _unpin(engine: Engine, model: str) -> Future[None]:
    done: Future[None] = Future()
    engine.unpin(model)
    done.set_result(None)
    return done


_ACTIONS: dict[str, Callable[[Engine, str], Future[None]]] = {
    "load": _load,
    "unload": _unload,
    "pin": _pin,
    "unpin": _unpin,
}


@get(
    ["/models/{name:str}/info", "/models/{owner:str}/{name:str}/info"],
    summary="How the server has a model",
    responses=_PROBLEMS,
)
async def info(
    service: NamedDependency[Service],
    exchange: NamedDependency[Exchange],
    name: ModelName,
    owner: ModelOwner = "",
) -> AdminEntry:
    exchange.action = "info"
    exchange.model = model_id(owner, name)
    return await _entry(service, exchange.model)


# The action is a parameter, as the fixed part of a path would hide models of that name.
@post(
    ["/models/{name:str}/{action:str}", "/models/{owner:str}/{name:str}/{action:str}"],
    status_code=200,
    operation_class=StreamingOperation,
    summary="Load, unload, pin or unpin a model",
    description=(
        "The answer is the model's entry and comes when it is done: when the model is in memory "
        "(`load`, `pin`), or when its last request has ended and it is out of memory (`unload`). "
        "With `Accept: text/event-stream` a `data:` event with the entry comes whenever it "
        "changes, then `data: [DONE]`; a failure is a `data:` event with `error`, without "
        "`[DONE]`. A client that leaves cancels nothing."
    ),
    responses={
        200: ResponseSpec(AdminEntry, description="It is done", generate_examples=False),
        202: ResponseSpec(
            AdminEntry, description="With `wait=false`: it has begun", generate_examples=False
        ),
        **_PROBLEMS,
    },
)
async def act(
    request: Request[Any, Any, Any],
    service: NamedDependency[Service],
    exchange: NamedDependency[Exchange],
    name: ModelName,
    action: Annotated[
        str, PathParameter(description="What to do.", schema_extra={"enum": list(_ACTIONS)})
    ],
    owner: ModelOwner = "",
    *,
    wait: Annotated[
        bool, QueryParameter(description="false answers 202 as soon as it has begun.")
    ] = True,
) -> Response[Any]:
    if action not in _ACTIONS:
        raise NotFoundException
    exchange.action = action
    model = exchange.model = model_id(owner, name)
    if service.draining:
        raise EngineClosed
    work = Work(await asyncio.to_thread(_ACTIONS[action], service.engine, model))
    if await work.ended(POLL_SECONDS):
        work.check()
    if not wait:
        return _json(await _entry(service, model), 202)
    if request.accept.best_match([MediaType.JSON, EVENT_STREAM]) == EVENT_STREAM:
        return Stream(
            _progress(service, model, work, exchange),
            media_type=EVENT_STREAM,
            headers=STREAM_HEADERS,
            background=BackgroundTask(_note_if_gone, work, exchange),
        )
    await unless_gone(request, work.ended())
    work.check()
    return _json(await _entry(service, model), 200)


class Work:
    """Something that the engine does, whoever waits for it.

    Never cancels the future: the engine will want to set its result.
    """

    def __init__(self, future: Future[None]) -> None:
        self._future = future
        self._ended = asyncio.Event()
        #: Whether the client has been sent the outcome.
        self.told = False
        loop = asyncio.get_running_loop()

        def tell(_: Future[None]) -> None:
            # Who asked may have given up, and its loop may be closed.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(self._ended.set)

        future.add_done_callback(tell)

    async def ended(self, timeout: float | None = None) -> bool:
        """Wait for the end; False if that takes longer than `timeout` seconds."""
        try:
            await asyncio.wait_for(self._ended.wait(), timeout)
        except TimeoutError:
            return False
        return True

    def check(self) -> None:
        """Raise what went wrong with what has ended."""
        self._future.result()


async def _progress(
    service: Service, model: str, work: Work, exchange: Exchange
) -> AsyncIterator[bytes]:
    shown: AdminEntry | None = None
    shown_at = 0.0
    try:
        ended = await work.ended(0)
        while True:
            entry = await _entry(service, model)
            if entry != shown:
                yield frame(entry)
                shown, shown_at = entry, time.monotonic()
            elif time.monotonic() - shown_at > QUIET_SECONDS:
                yield b": still at it\n\n"
                shown_at = time.monotonic()
            if ended:
                break
            ended = await work.ended(POLL_SECONDS)
        work.check()
        work.told = True
        yield LAST_FRAME
    except Exception as error:
        problem = problem_of(error)
        exchange.failed(problem.code, error if problem.status >= 500 else None)
        yield frame({"error": problem})


async def _note_if_gone(work: Work, exchange: Exchange) -> None:
    if exchange.code == "ok" and not work.told:
        exchange.gone()


async def _entry(service: Service, model: str) -> AdminEntry:
    return AdminEntry.of(await asyncio.to_thread(service.engine.status, model))


def _json(entry: AdminEntry, status: int) -> Response[AdminEntry]:
    return Response(entry, status_code=status, media_type=MediaType.JSON)
