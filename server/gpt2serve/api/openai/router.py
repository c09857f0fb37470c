"""The routes of OpenAI's API, below `/v1`, with errors in its shape."""

from __future__ import annotations

from litestar import HttpMethod, Router, route
from litestar.exceptions import NotFoundException
from litestar.params import FromPath

from gpt2serve.api.openai.completions import create_completion
from gpt2serve.api.openai.errors import openai_errors
from gpt2serve.api.openai.models import list_model_objects, retrieve_model_object

OPENAI_PATH = "/v1"


@route(
    "/{path:path}",
    http_method=[HttpMethod.GET, HttpMethod.POST, HttpMethod.DELETE],
    include_in_schema=False,
)
async def nothing_here(path: FromPath[str]) -> None:
    """Clients of OpenAI find errors of its shape here too."""
    raise NotFoundException(f"There is nothing at {path}.")


def openai_router() -> Router:
    return Router(
        path=OPENAI_PATH,
        route_handlers=[create_completion, list_model_objects, retrieve_model_object, nothing_here],
        exception_handlers={Exception: openai_errors},
        tags=["OpenAI"],
    )
