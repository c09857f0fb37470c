"""What operators and probes ask: alive, ready, metrics."""

from __future__ import annotations

from litestar import Response, get
from litestar.di import NamedDependency

from gpt2serve.api.openapi import problem_specs
from gpt2serve.api.problems import NotReady
from gpt2serve.api.service import PING_SECONDS, Service
from gpt2serve.errors import EngineClosed
from gpt2serve.metrics import CONTENT_TYPE


@get("/healthz", summary="Is the process alive?")
async def healthz() -> dict[str, str]:
    return {"status": "alive"}


_NOT_NOW = problem_specs({503: "Not now; try again"})


@get("/readyz", summary="Can it take work?", responses=_NOT_NOW)
async def readyz(service: NamedDependency[Service]) -> dict[str, str]:
    return await _ready(service)


@get("/health", summary="As /readyz, where clients of vLLM and TGI ask for it", responses=_NOT_NOW)
async def health(service: NamedDependency[Service]) -> dict[str, str]:
    return await _ready(service)


async def _ready(service: Service) -> dict[str, str]:
    """Asks through the engine thread: a server whose thread is stuck must not look healthy."""
    if service.leaving:
        raise EngineClosed
    if service.starting:
        raise NotReady("The models that are to be there from the start are still being loaded.")
    if not await service.engine.ping(PING_SECONDS):
        raise NotReady("The engine does not answer.")
    return {"status": "ready"}


@get("/metrics", summary="Metrics in Prometheus' text format", media_type="text/plain")
async def metrics(service: NamedDependency[Service]) -> Response[bytes]:
    return Response(
        service.metrics.render(), media_type=CONTENT_TYPE, headers={"Cache-Control": "no-store"}
    )
