"""All routes of one engine, as a Litestar router that needs nothing of the app around it."""

from __future__ import annotations

from typing import Any

from litestar import Request, Response, Router
from litestar.di import Provide
from litestar.types import ControllerRouterHandler

from gpt2serve.api.admin import admin_router
from gpt2serve.api.cors import CorsMiddleware
from gpt2serve.api.exchange import Exchange, exchange_of, open_exchange
from gpt2serve.api.generate import generate
from gpt2serve.api.health import health, healthz, metrics, readyz
from gpt2serve.api.huggingface.errors import hugging_face_response
from gpt2serve.api.huggingface.router import HUGGING_FACE_PATH, hugging_face_router
from gpt2serve.api.keys import API_KEY_SCHEME, key_guard
from gpt2serve.api.middleware import ExchangeMiddleware
from gpt2serve.api.models import describe_model, list_models
from gpt2serve.api.openai.errors import openai_errors
from gpt2serve.api.openai.router import OPENAI_PATH, openai_router
from gpt2serve.api.pages import index, page_file
from gpt2serve.api.problems import problem_response
from gpt2serve.api.service import Service


def build_router(service: Service, path: str = "/") -> Router:
    """The routes, bound to `service`."""

    def provide_service() -> Service:
        return service

    handlers: list[ControllerRouterHandler] = [
        _public_router(service),
        *(index, page_file, healthz, readyz, health, metrics),
    ]
    if service.admin_key is not None:
        handlers.append(admin_router(service.admin_key))
    return Router(
        path=path,
        route_handlers=handlers,
        dependencies={
            "service": Provide(provide_service, sync_to_thread=False),
            "exchange": Provide(_provide_exchange, sync_to_thread=False),
        },
        middleware=[ExchangeMiddleware(service)],
        exception_handlers={Exception: problem_response},
        request_max_body_size=service.settings.max_body_bytes,
    )


def unrouted_error(request: Request[Any, Any, Any], error: Exception) -> Response[bytes]:
    """For an app's own errors: no route has the address, or none of this method.

    In the shape of the surface that the address would belong to.
    """
    path = str(request.scope["path"]).removeprefix(str(request.scope.get("root_path", "")))
    if f"{path}/".startswith(f"{OPENAI_PATH}/"):
        return openai_errors(request, error)
    if path.startswith(f"{HUGGING_FACE_PATH}/"):
        return hugging_face_response(request, error)
    return problem_response(request, error)


def _public_router(service: Service) -> Router:
    """What generates or tells of models. Takes an API key, where there are keys; pages of other
    origins may call it, if `cors_origins` lets them."""
    origins, keys = service.settings.cors_origins, service.keys
    return Router(
        path="/",
        route_handlers=[
            *(generate, list_models, describe_model),
            *(openai_router(), hugging_face_router()),
        ],
        middleware=[CorsMiddleware(origins)] if origins else [],
        guards=[] if keys is None else [key_guard(keys)],
        security=[] if keys is None else [{API_KEY_SCHEME: []}],
    )


def _provide_exchange(request: Request[Any, Any, Any]) -> Exchange:
    return exchange_of(request.scope) or open_exchange(request.scope, None)
