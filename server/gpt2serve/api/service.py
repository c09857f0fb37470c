"""What the routes of one app share. Nothing of it is global: many apps fit in a process."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from gpt2serve.api.exchange import Exchange
from gpt2serve.errors import Gpt2ServeError, StepFailed
from gpt2serve.metrics import Metrics
from gpt2serve.settings import ServerSettings

if TYPE_CHECKING:
    from gpt2serve.engine.engine import Engine


class Service:
    def __init__(
        self, engine: Engine, settings: ServerSettings, metrics: Metrics, log: Any
    ) -> None:
        self.engine = engine
        self.settings = settings
        self.metrics = metrics
        self.log = log
        self.draining = False
        self._closed = False
        metrics.watch(engine.stats)

    def __deepcopy__(self, _memo: object) -> Service:
        # Litestar copies routers when they are registered; the copies share one engine.
        return self

    async def start(self) -> None:
        """Start the engine and wait for what it loads at start. Raises what went wrong."""
        try:
            await asyncio.to_thread(self.engine.start)
        except BaseException:
            await self.close()
            raise

    async def drain(self) -> bool:
        """Refuse new generations and wait for the running ones. True if all have ended."""
        self.draining = True
        return await self.engine.drain(self.settings.drain_seconds)

    async def close(self) -> None:
        """Abort what still runs and stop the engine."""
        self.draining = self._closed = True
        await asyncio.to_thread(self.engine.close)

    async def shut_down(self) -> None:
        """Drain and close, unless that has happened."""
        if not self._closed:
            await self.drain()
            await self.close()

    def log_generate(self, exchange: Exchange) -> None:
        """The one line of a finished `POST /generate`: numbers and names, never words."""
        log = self.log.bind(
            request_id=exchange.request_id,
            model=exchange.model,
            status=exchange.status,
            code=exchange.code,
            stream=exchange.stream,
            client_gone=exchange.client_gone,
            finish_reasons=exchange.finish_reasons,
            duration_ms=round(exchange.seconds * 1e3, 3),
            **exchange.numbers,
        )
        _finish(log, "generate", exchange)

    def log_failure(self, exchange: Exchange) -> None:
        log = self.log.bind(
            request_id=exchange.request_id, status=exchange.status, code=exchange.code
        )
        _finish(log, "request failed", exchange)


def _finish(log: Any, event: str, exchange: Exchange) -> None:
    error = exchange.error
    if error is None:
        log.info(event)
    elif isinstance(error, Gpt2ServeError) and not isinstance(error, StepFailed):
        # Raised on purpose: its sentence says it all, the traceback would say where we raise.
        log.warning(event, error=str(error))
    else:
        log.error(event, exc_info=error)
