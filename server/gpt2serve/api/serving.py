"""uvicorn with a start that can be watched and a shutdown that cuts no stream.

The port opens at once; `/readyz` says when the models are there that are loaded at start.

First signal: `/readyz` answers 503; after `drain_delay`, in which balancers notice, the engine
refuses new requests (503) while the socket stays open, so that probes and late clients get an
answer; running requests end; then uvicorn closes.
Second signal: what still runs is aborted. Third: the process dies at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import resource
import signal
import socket
import time
from collections.abc import Iterator
from typing import Any

import uvicorn
from litestar import Litestar

from gpt2serve.api.heads import protocol, short_targets
from gpt2serve.api.service import Service
from gpt2serve.logs import ForwardHandler
from gpt2serve.settings import is_url

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
#: After the last token: time for slow clients to take what is still in the socket's buffers.
_FLUSH_SECONDS = 5
#: How long a connection without a request stays open. Longer than proxies keep theirs (Envoy's
#: is set to 60 s here, most others' default is that too): whoever closes first does so without
#: a race against the next request.
_KEEP_ALIVE_SECONDS = 75
#: A connection whose client takes nothing of what it is sent, or does not acknowledge it, is closed
#: after that long: what is made for it would stay in memory as long as it likes.
_TAKES_NOTHING_SECONDS = 60


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; raises `OSError`."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.create_server((host, port), family=family, backlog=2048)
    # Connections inherit it. asyncio sets it only on sockets that it has made itself, and without
    # it each part of an answer waits until the client has acknowledged the part before: 40 ms
    # where the client waits with that, as proxies on a kept connection do.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux
        milliseconds = _TAKES_NOTHING_SECONDS * 1000
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)
    return listener


def allow_open_files() -> None:
    """Raise this process's limit of open files to what the system allows it.

    Each client is one, and each model of a store at a URL; the usual limit is 1024.
    """
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):  # macOS has another limit besides
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


async def serve(app: Litestar, service: Service, listener: socket.socket) -> None:
    """Serve until a signal comes and everything that ran has ended.

    Raises what the engine's start raised, if that failed.
    """
    service.opens_at_once = True
    _forward_logs(service.log)
    config = uvicorn.Config(
        short_targets(app),
        http=protocol(),
        access_log=False,
        log_config=None,
        lifespan="on",
        server_header=False,
        timeout_graceful_shutdown=_FLUSH_SECONDS,
        timeout_keep_alive=_KEEP_ALIVE_SECONDS,
    )
    server = DrainingServer(config, service)
    await server.serve(sockets=[listener])
    if server.start_error is not None:
        raise server.start_error


class DrainingServer(uvicorn.Server):
    """Ends if the engine cannot start; drains before it stops listening."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self._service = service
        self._log = service.log
        self._starting: asyncio.Task[None] | None = None
        self._draining: asyncio.Task[None] | None = None
        self.start_error: Exception | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started and sockets:
            url = _url(sockets[0])
            self._log.info(f"listening on {url}", url=url)
            self._warn_if_open(sockets[0].getsockname()[0])
            self._warn_of_small_disk()
            self._starting = asyncio.create_task(self._wait_for_start())

    def _warn_if_open(self, host: str) -> None:
        if self._service.keys is None and not ipaddress.ip_address(host).is_loopback:
            self._log.warning(
                "open to everybody who can reach it: --api-key-file lets in only who has a key",
                host=host,
            )

    def _warn_of_small_disk(self) -> None:
        settings = self._service.engine.settings
        if is_url(settings.store) and settings.disk_cache_bytes < settings.model_cache_bytes:
            self._log.warning(
                "the disk cache is smaller than the model cache: models in memory keep their "
                "packages on the disk, so others may find no room there",
                disk_cache_bytes=settings.disk_cache_bytes,
                model_cache_bytes=settings.model_cache_bytes,
            )

    async def _wait_for_start(self) -> None:
        begin = time.perf_counter()
        try:
            await self._service.started()
        except Exception as error:
            if self._draining is None:  # else it is only that the engine was closed
                self.start_error = error
                self.should_exit = True
        else:
            self._log.info("ready", seconds=round(time.perf_counter() - begin, 3))

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        # uvicorn's own version raises the signal again at the end, and the process would die
        # of it although everything went well.
        loop = asyncio.get_running_loop()
        for number in _SIGNALS:
            loop.add_signal_handler(number, self._on_signal, number)
        try:
            yield
        finally:
            _release_signals()

    def _on_signal(self, number: signal.Signals) -> None:
        if self._draining is None:
            self._log.info("draining", signal=number.name)
            self._draining = asyncio.get_running_loop().create_task(self._drain())
        else:
            self._log.warning("aborting running requests", signal=number.name)
            _release_signals()
            self._draining.cancel()

    async def _drain(self) -> None:
        try:
            await self._service.leave()
            if not await self._service.drain():
                self._log.warning("requests did not end in time and are aborted")
        finally:
            try:
                # Ends the streams that are left with an error event; uvicorn waits for them.
                await self._service.close()
            finally:
                self.should_exit = True


def _release_signals() -> None:
    loop = asyncio.get_running_loop()
    for number in _SIGNALS:
        loop.remove_signal_handler(number)


def _url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _forward_logs(log: Any) -> None:
    """Into the one log, from libraries that have something to tell while they work."""
    for name in ("uvicorn", "asyncio", "opentelemetry"):
        logger = logging.getLogger(name)
        logger.handlers = [ForwardHandler(log)]
        logger.propagate = False
