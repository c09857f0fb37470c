"""The ASGI app: one engine behind HTTP.

create_app("models/")               owns its engine: starts, drains and closes it
create_app(engine=engine)           serves an engine that the caller owns
create_app()                        reads GPT2SERVE_STORE and the other variables
create_router(engine)               the same routes, for an app of yours in Litestar
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

from litestar import Litestar, Router
from litestar.datastructures import State
from litestar.openapi.spec import SecurityScheme

from gpt2serve.api.admin import SECURITY_SCHEME
from gpt2serve.api.keys import API_KEY_SCHEME
from gpt2serve.api.middleware import ExchangeMiddleware
from gpt2serve.api.openapi import openapi_config
from gpt2serve.api.router import build_router, unrouted_error
from gpt2serve.api.service import Service
from gpt2serve.engine.engine import Engine
from gpt2serve.errors import SettingsError
from gpt2serve.logs import create_logger
from gpt2serve.metrics import Metrics
from gpt2serve.settings import (
    EngineSettings,
    ServerSettings,
    engine_settings,
    settings_from_environment,
)

_Lifespan = Callable[[Litestar], AbstractAsyncContextManager[None]]


def create_app(
    store: str | Path | None = None,
    *,
    settings: EngineSettings | None = None,
    engine: Engine | None = None,
    server_settings: ServerSettings | None = None,
    metrics: Metrics | None = None,
    log: Any = None,
) -> Litestar:
    """A Litestar app for one store, or one set of settings, or one engine.

    Without any of them the environment decides. An engine that is handed in is started, but
    neither drained nor closed at the end; make it with `Engine(..., observer=metrics)` and hand
    the same `metrics` in, and `/metrics` shows what happens inside it too.

    As the ASGI lifespan has it, a server accepts requests once the models to be loaded at start
    are there, and does not start if one of them cannot be loaded. Starlette and FastAPI do not run
    the lifespan of an app that is mounted in them: do it in theirs, `async with app.lifespan():`.
    The engine is `app.state.engine`, for whatever else wants to use it.
    """
    if sum(given is not None for given in (store, settings, engine)) > 1:
        raise SettingsError("Give create_app a store, or settings, or an engine: one of them.")
    if store is not None:
        settings = engine_settings(store)
    if settings is None and engine is None:
        settings, from_environment = settings_from_environment()
        server_settings = server_settings or from_environment
    server_settings = server_settings or ServerSettings()
    metrics = metrics or Metrics(model_labels=server_settings.model_metrics)
    owned = engine is None
    engine = engine or Engine(settings=settings, observer=metrics)
    service = _service(engine, server_settings, metrics, log)
    return Litestar(
        route_handlers=[build_router(service)],
        lifespan=[_engine_lifespan(service, owned=owned)],
        exception_handlers={Exception: unrouted_error},
        openapi_config=openapi_config(_security(service), [ExchangeMiddleware(service)]),
        # Litestar would log on its own, globally; the exchange's line is the log.
        logging_config=None,
        state=State({_STATE_KEY: service, "engine": engine}),
    )


def create_router(
    engine: Engine,
    *,
    path: str = "/",
    server_settings: ServerSettings | None = None,
    metrics: Metrics | None = None,
    log: Any = None,
) -> Router:
    """The routes for a Litestar app of yours. The engine is yours too: start and close it."""
    server_settings = server_settings or ServerSettings()
    metrics = metrics or Metrics(model_labels=server_settings.model_metrics)
    return build_router(_service(engine, server_settings, metrics, log), path)


def service_of(app: Litestar) -> Service:
    """The service behind an app that `create_app` made."""
    service = app.state[_STATE_KEY]
    assert isinstance(service, Service)  # noqa: S101
    return service


_STATE_KEY = "gpt2serve"


def _service(engine: Engine, settings: ServerSettings, metrics: Metrics, log: Any) -> Service:
    return Service(engine, settings, metrics, log or create_logger(settings.log_format))


def _engine_lifespan(service: Service, *, owned: bool) -> _Lifespan:
    @asynccontextmanager
    async def lifespan(_app: Litestar) -> AsyncIterator[None]:
        try:
            service.begin()
            if not service.opens_at_once:
                await service.started()
            try:
                yield
            finally:
                if owned:
                    await service.shut_down()
        finally:
            await service.flush()

    return lifespan


def _security(service: Service) -> dict[str, SecurityScheme]:
    wanted = {SECURITY_SCHEME: service.admin_key, API_KEY_SCHEME: service.keys}
    return {
        name: SecurityScheme(type="http", scheme="bearer")
        for name, keys in wanted.items()
        if keys is not None
    }
