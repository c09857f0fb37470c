"""What the routes of one app share. Nothing of it is global: many apps fit in a process."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from gpt2serve.api.exchange import Exchange
from gpt2serve.api.keys import Keyring
from gpt2serve.api.version import version
from gpt2serve.errors import EngineClosed, Gpt2ServeError, SettingsError, StepFailed
from gpt2serve.metrics import Metrics, ServerStats
from gpt2serve.settings import ServerSettings, read_admin_key

if TYPE_CHECKING:
    from gpt2serve.api.traces import Traces
    from gpt2serve.engine.engine import Engine


#: An engine thread that does not come back within this many seconds is stuck.
PING_SECONDS = 2.0


class Service:
    def __init__(
        self, engine: Engine, settings: ServerSettings, metrics: Metrics, log: Any
    ) -> None:
        self.engine = engine
        self.settings = settings
        self.metrics = metrics
        self.log = log
        #: Raises `SettingsError`. There are no admin routes without it.
        self.admin_key = read_admin_key(settings)
        file = settings.api_key_file
        #: Raises `SettingsError`. Without it everybody may in.
        self.keys = None if file is None else Keyring(file, log)
        #: None if no traces are wanted; then OpenTelemetry's SDK is not even imported.
        self.traces = _open_traces(settings)
        #: Whether models that are to be there from the start are still being loaded.
        self.starting = False
        #: Requests may come before they are; then whoever serves waits for `started`.
        self.opens_at_once = False
        self._start: asyncio.Task[None] | None = None
        #: Whether `/readyz` tells balancers to send nothing more.
        self.leaving = False
        #: Whether new generations are refused.
        self.draining = False
        self._closed = False
        metrics.watch(engine.stats, self.stats, version=version(), device=engine.device)

    def __deepcopy__(self, _memo: object) -> Service:
        # Litestar copies routers when they are registered; the copies share one engine.
        return self

    def begin(self) -> None:
        """Start the engine in the background. Raises `EngineClosed` after its end."""
        if self._closed:
            raise EngineClosed("The engine was closed.")
        if self._start is None:
            self.starting = True
            self._start = asyncio.create_task(self._start_engine())

    async def started(self) -> None:
        """Wait for what the engine loads at start. Raises what went wrong; it is closed then."""
        if self._start is not None:
            await self._start

    async def _start_engine(self) -> None:
        try:
            await asyncio.to_thread(self.engine.start)
        except BaseException:
            await self.close()
            raise
        self.starting = False

    def stats(self) -> ServerStats:
        return ServerStats(
            ready=self.ready, api_keys_current=None if self.keys is None else self.keys.current
        )

    @property
    def ready(self) -> bool:
        """What `/readyz` would answer, told without waiting for the engine thread."""
        if self.leaving or self.starting or not self.engine.takes_requests:
            return False
        return self.engine.stats().unresponsive < PING_SECONDS

    async def leave(self) -> None:
        """Say that no more work is wanted, and take it still, while balancers notice."""
        self.leaving = True
        await asyncio.sleep(self.settings.drain_delay)

    async def drain(self) -> bool:
        """Refuse new generations and wait for the running ones. True if all have ended."""
        self.leaving = self.draining = True
        return await self.engine.drain(self.settings.drain_seconds)

    async def close(self) -> None:
        """Abort what still runs and stop the engine."""
        self.leaving = self.draining = self._closed = True
        await asyncio.to_thread(self.engine.close)

    async def flush(self) -> None:
        """Send what is left of the traces, when all requests have ended."""
        if self.traces is not None:
            await asyncio.to_thread(self.traces.close)

    async def shut_down(self) -> None:
        """Drain and close, unless that has happened."""
        if not self._closed:
            await self.drain()
            await self.close()

    def log_generate(self, exchange: Exchange) -> None:
        """The one line of a generation: numbers and names, never words."""
        log = self.log.bind(
            request_id=exchange.request_id,
            **_key(exchange),
            model=exchange.model,
            model_version=exchange.model_version,
            status=exchange.status,
            code=exchange.code,
            stream=exchange.stream,
            client_gone=exchange.client_gone,
            finish_reasons=exchange.finish_reasons,
            duration_ms=round(exchange.seconds * 1e3, 3),
            **exchange.numbers,
        )
        _finish(log, "generate", exchange)

    def log_admin(self, exchange: Exchange) -> None:
        """The one line of a request to `/admin`. Who sent it cannot be told: all have one key."""
        log = self.log.bind(
            request_id=exchange.request_id,
            action=exchange.action,
            model=exchange.model,
            status=exchange.status,
            code=exchange.code,
            client_gone=exchange.client_gone,
            duration_ms=round(exchange.seconds * 1e3, 3),
        )
        _finish(log, "admin", exchange)

    def log_failure(self, exchange: Exchange) -> None:
        log = self.log.bind(
            request_id=exchange.request_id,
            **_key(exchange),
            status=exchange.status,
            code=exchange.code,
        )
        _finish(log, "request failed", exchange)


def _key(exchange: Exchange) -> dict[str, str]:
    """Whose key it was, where there are keys. The key itself is nowhere."""
    return {"key": exchange.caller.name} if exchange.caller.name else {}


def _open_traces(settings: ServerSettings) -> Traces | None:
    if settings.traces == "none":
        return None
    try:
        from gpt2serve.api.traces import Traces
    except ModuleNotFoundError as error:
        raise SettingsError(
            f"traces {settings.traces} needs OpenTelemetry: pip install 'gpt2serve[otel]'."
        ) from error
    try:
        return Traces(settings.traces)
    except ValueError as error:
        raise SettingsError(f"traces {settings.traces}: {error}") from error


def _finish(log: Any, event: str, exchange: Exchange) -> None:
    error = exchange.error
    if exchange.trace_id is not None:
        log = log.bind(trace_id=exchange.trace_id)
    if error is None:
        log.info(event)
    elif isinstance(error, Gpt2ServeError) and not isinstance(error, StepFailed):
        # Raised on purpose: its sentence says it all, the traceback would say where we raise.
        log.warning(event, error=str(error))
    else:
        log.error(event, exc_info=error)
