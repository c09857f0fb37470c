"""uvicorn for real over a fake engine: what a server does while its engine is still starting."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import io
import json
import logging
import os
import signal
import socket
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from gpt2serve.api import serving
from gpt2serve.api.serving import listen, serve
from gpt2serve.app import create_app, service_of
from gpt2serve.engine.stream import Delivery
from gpt2serve.errors import EngineClosed, ModelNotFound
from gpt2serve.logs import create_logger
from gpt2serve.settings import engine_settings
from tests.unit.api_support import GOOD, STEPS, FakeEngine, assert_problem, token


class SlowEngine(FakeEngine):
    """Starts when it is told to, or fails, or is closed before."""

    def __init__(self, start_error: Exception | None = None) -> None:
        super().__init__(may_start=threading.Event())
        self._start_error = start_error

    def start(self) -> None:
        super().start()
        if self.closed:
            raise EngineClosed
        if self._start_error is not None:
            raise self._start_error

    def let_start(self) -> None:
        assert self.may_start is not None
        self.may_start.set()

    def close(self) -> None:
        super().close()
        self.let_start()


class Running:
    def __init__(self, engine: Any) -> None:
        self.engine = engine
        self.output = io.StringIO()
        self.app = create_app(engine=engine, log=create_logger("json", self.output))
        self.listener = listen("127.0.0.1", 0)
        self.task = asyncio.create_task(serve(self.app, service_of(self.app), self.listener))
        port = self.listener.getsockname()[1]
        self.client = httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=10)

    @property
    def events(self) -> list[str]:
        return [json.loads(line)["event"] for line in self.output.getvalue().splitlines()]

    async def status(self, path: str) -> int:
        return (await self.client.get(path)).status_code

    async def until_ready(self) -> None:
        async with asyncio.timeout(10):
            while await self.status("/readyz") != 200:
                pass

    async def ends(self) -> None:
        await asyncio.wait_for(self.task, 15)

    async def stops(self) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        await self.ends()


@asynccontextmanager
async def running(engine: FakeEngine) -> AsyncIterator[Running]:
    server = Running(engine)
    with server.listener:
        async with server.client:
            yield server


def test_port_is_open_while_models_are_loaded() -> None:
    async def main() -> None:
        async with running(SlowEngine()) as server:
            answer = await server.client.get("/readyz")
            assert (answer.status_code, answer.json()["code"]) == (503, "not_ready")
            assert int(answer.headers["retry-after"]) >= 1
            assert await server.status("/healthz") == 200
            answer = await server.client.post("/generate", json=GOOD)
            assert answer.status_code == 200  # the engine runs
            assert "ready" not in server.events
            server.engine.let_start()
            await server.until_ready()
            assert server.events.count("ready") == 1
            await server.stops()
            assert server.engine.closed >= 1

    asyncio.run(main())


def test_start_that_fails_ends_the_server_with_the_error() -> None:
    async def main() -> None:
        async with running(SlowEngine(ModelNotFound("nobody"))) as server:
            assert await server.status("/healthz") == 200
            server.engine.let_start()
            with pytest.raises(ModelNotFound, match="nobody"):
                await server.ends()
            assert server.engine.closed >= 1
            assert "ready" not in server.events

    asyncio.run(main())


def test_signal_while_starting_is_no_failure() -> None:
    async def main() -> None:
        async with running(SlowEngine()) as server:
            assert await server.status("/readyz") == 503
            await server.stops()
            assert "draining" in server.events
            assert "ready" not in server.events

    asyncio.run(main())


def test_engine_that_cannot_be_closed_keeps_no_server_from_ending() -> None:
    class Stuck(FakeEngine):
        def close(self) -> None:
            raise RuntimeError("it cannot be closed")

    async def main() -> io.StringIO:
        async with running(Stuck()) as server:
            await server.until_ready()
            await server.stops()
            return server.output

    output = asyncio.run(main())
    gc.collect()
    assert "it cannot be closed" in output.getvalue()


def test_other_servers_wait_for_the_start() -> None:
    """The ASGI lifespan is not over before the models are there, and fails if they fail."""

    async def main() -> None:
        engine: Any = SlowEngine()
        app = create_app(engine=engine)
        entered = asyncio.Event()

        async def live() -> None:
            async with app.lifespan():
                entered.set()

        task = asyncio.create_task(live())
        await asyncio.sleep(0.05)
        assert not entered.is_set()
        engine.let_start()
        await asyncio.wait_for(task, 10)
        assert entered.is_set()

        failing: Any = SlowEngine(ModelNotFound("nobody"))
        failing.let_start()
        with pytest.RaisesGroup(ModelNotFound, flatten_subgroups=True):
            async with create_app(engine=failing).lifespan():
                raise AssertionError("it must not come to that")

    asyncio.run(main())


@pytest.mark.parametrize(
    ("store", "disk", "warns"),
    [
        ("s3://bucket", "1GiB", True),
        ("s3://bucket", "2GiB", False),
        ("models/", "1GiB", False),  # its packages are where they are
    ],
)
def test_disk_cache_that_is_smaller_than_the_model_cache_is_told(
    store: str, disk: str, warns: bool
) -> None:
    async def main() -> None:
        engine = FakeEngine()
        engine.settings = engine_settings(store, model_cache_bytes="2GiB", disk_cache_bytes=disk)
        async with running(engine) as server:
            await server.until_ready()
            assert any("disk cache is smaller" in event for event in server.events) == warns
            await server.stops()

    asyncio.run(main())


def test_a_port_that_is_taken_is_an_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(OSError, match="in use"):
        listen("127.0.0.1", taken.getsockname()[1])


def test_no_answer_waits_for_the_acknowledgement_of_its_first_part() -> None:
    with listen("127.0.0.1", 0) as listener, socket.create_connection(listener.getsockname()):
        accepted, _ = listener.accept()
        with accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="Linux has it")
def test_a_client_that_takes_nothing_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or what is made for it stays in memory for ever."""
    monkeypatch.setattr(serving, "_TAKES_NOTHING_SECONDS", 1)
    large = [Delivery([token(0, "x" * 1_000_000)]) for _ in range(40)]

    async def main() -> None:
        async with running(FakeEngine(steps=[*large, *STEPS])) as server:
            await server.until_ready()
            with socket.create_connection(server.listener.getsockname()) as client:
                body = json.dumps(GOOD | {"stream": True}).encode()
                head = f"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
                client.sendall(head.encode() + body)
                async with asyncio.timeout(20):
                    while "generate" not in server.events:
                        assert await server.status("/healthz") == 200
            await server.stops()

    asyncio.run(main())


@pytest.mark.parametrize("kind", ["httptools", "h11"])
@pytest.mark.parametrize("part", [b"x" * 65_536, b"a: b\r\n" * 10_000])
def test_a_head_without_an_end_is_not_kept(
    monkeypatch: pytest.MonkeyPatch, kind: str, part: bytes
) -> None:
    """Whoever sent one, without a key, had filled the memory."""
    if kind == "httptools":
        pytest.importorskip("httptools")
    else:
        monkeypatch.setattr(serving, "protocol", lambda: "h11")

    async def main() -> None:
        async with running(FakeEngine()) as server:
            await server.until_ready()
            reader, writer = await asyncio.open_connection(*server.listener.getsockname())
            writer.write(b"GET /healthz HTTP/1.1\r\nHost: x\r\na: b")
            with contextlib.suppress(ConnectionError):
                for _ in range(100):
                    writer.write(part)
                    await writer.drain()
            with contextlib.suppress(ConnectionError):
                answer = await asyncio.wait_for(reader.read(), 10)
                assert answer[:12] in (b"HTTP/1.1 400", b"")
            writer.close()
            assert await server.status("/healthz") == 200
            # What a body has behind its head is not counted, and heads of usual size pass.
            large = {"X-Large": "x" * 60_000}
            for _ in range(3):
                await server.client.post("/generate", content=b"x" * 900_000, headers=large)
            assert (await server.client.get("/healthz", headers=large)).status_code == 200
            await server.stops()

    asyncio.run(main())


def test_a_long_address_is_refused_and_not_remembered() -> None:
    async def main() -> None:
        async with running(FakeEngine()) as server:
            await server.until_ready()
            assert await server.status("/models/me/model/info?" + "x" * 8_000) == 200
            answer = await server.client.get("/models/" + "x" * 8_192 + "/info")
            assert assert_problem(answer, 414, "address_too_long")
            await server.stops()

    asyncio.run(main())


def test_what_asyncio_has_to_tell_is_in_the_log() -> None:
    """uvicorn leaves to it what a client does wrong while it is being answered."""

    async def main() -> None:
        async with running(FakeEngine()) as server:
            await server.until_ready()
            logging.getLogger("asyncio").error("Fatal error")
            assert "Fatal error" in server.events
            await server.stops()

    asyncio.run(main())
