"""What the tests of HTTP share: a fake engine, an app over it, and clients."""

from __future__ import annotations

import asyncio
import io
import json
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import Future
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
import msgspec

from gpt2serve import errors
from gpt2serve.app import create_app
from gpt2serve.engine.events import Done, Generation, Timing, Token, TokenEvent, Usage
from gpt2serve.engine.observer import EngineStats
from gpt2serve.engine.status import ModelStatus
from gpt2serve.engine.stream import Delivery, TokenStream
from gpt2serve.logs import create_logger
from gpt2serve.package import (
    WEIGHTS_FILE,
    Dimensions,
    FileEntry,
    GenerationDefaults,
    KVLayout,
    Manifest,
    ModelCard,
    Source,
)
from gpt2serve.settings import EngineSettings, engine_settings, server_settings

PROMPT, TEXT = "a secret prompt", "a secret answer"
GOOD = {"model": "me/model", "prompt": PROMPT}

MANIFEST = Manifest(
    format_revision=1,
    id="me/model",
    target="cpu",
    precision="int8",
    source=Source(name="/home/somebody/checkpoint", sha256="0" * 64, exporter_version="0"),
    dimensions=Dimensions(
        vocab_size=10, context_length=8, layers=1, heads=1, head_size=4, inner_size=16
    ),
    bos_token_id=0,
    eos_token_ids=(0,),
    inputs=(),
    outputs=(),
    kv=KVLayout(),
    generation_defaults=GenerationDefaults(),
    card=ModelCard(title="Me"),
    bytes_needed=10,
    files={WEIGHTS_FILE: FileEntry(bytes=1, sha256="ab" * 32)},
)


def token(index: int, text: str) -> TokenEvent:
    return TokenEvent(index, Token(7, text, -0.5))


def ending(index: int, details: tuple[Token, ...] | None = None) -> Generation:
    return Generation(
        index=index, text=TEXT, finish_reason="eos", tokens=2, seed=9 + index, details=details
    )


DONE = Done(
    model_version="ab" * 8,
    usage=Usage(prompt_tokens=4, completion_tokens=4),
    timing=Timing(queue_ms=1.0, load_ms=2.0, prefill_ms=3.0, decode_ms=4.0),
)
STEPS = [
    Delivery([token(0, "a "), token(1, "a ")]),
    Delivery([token(0, "x"), ending(0)]),
    Delivery([token(1, "y"), ending(1), DONE]),
]


def model_status(model: str, **fields: Any) -> ModelStatus:
    return ModelStatus(**{"id": model, "state": "cold", "bytes": 5, **fields})


@dataclass
class FakeEngine:
    """Plays `steps` to every request. With `wait`, holds back what comes after the first."""

    steps: list[Delivery] = field(default_factory=lambda: list(STEPS))
    fails: Exception | None = None
    refuses: Exception | None = None
    held_from: int | None = None
    alive: bool = True
    unresponsive: float = 0.0
    device: str = "cpu"
    cancelled: int = 0
    #: What each stream says.
    tokens_used: int = 0
    closed: int = 0
    given: list[Any] = field(default_factory=list)
    settings: EngineSettings = field(
        default_factory=lambda: engine_settings("store", max_batch_size=8, max_queue=4)
    )
    #: What `status` says, by id.
    models: dict[str, ModelStatus] = field(
        default_factory=lambda: {name: model_status(name) for name in ("a", "b/c", "d")}
    )
    #: What `start_load` and `start_unload` return; done if None.
    work: Future[None] | None = None
    #: Held until set: what `start` takes.
    may_start: threading.Event | None = None

    def start(self) -> None:
        if self.may_start is not None:
            assert self.may_start.wait(10)

    def close(self) -> None:
        self.closed += 1

    def prepare(self, model: str, prompt: str, params: Any) -> Any:
        if self.fails is not None:
            raise self.fails
        self.given.append((model, prompt, params))
        return model

    def submit(self, request: Any, *, wants_tokens: bool, owner: str = "") -> TokenStream:
        if self.refuses is not None:
            raise self.refuses
        self.given.append(wants_tokens)
        stream = TokenStream(
            request, self._cancelled, lambda: DONE.timing, lambda: self.tokens_used
        )
        for delivery in self.steps[: self.held_from]:
            asyncio.get_running_loop().call_soon(stream.receive, delivery)
        return stream

    def _cancelled(self) -> None:
        self.cancelled += 1

    def list_models(
        self,
        *,
        after: str = "",
        limit: int = 100,
        search: str = "",
        state: str | None = None,
        allowed: Callable[[str], bool] | None = None,
    ) -> list[ModelStatus]:
        found = [
            status
            for name, status in sorted(self.models.items())
            if name > after and search in name and state in (None, status.state)
            if allowed is None or allowed(name)
        ]
        return found[:limit]

    def list_ids(self, **options: Any) -> list[str]:
        return [status.id for status in self.list_models(**options)]

    def status(self, model: str) -> ModelStatus:
        if model not in self.models:
            raise errors.ModelNotFound(model)
        return self.models[model]

    def becomes(self, model: str, **changes: Any) -> None:
        self.models[model] = msgspec.structs.replace(self.models[model], **changes)

    def start_load(self, model: str, *, pin: bool = False) -> Future[None]:
        return self._begin(model, "pin" if pin else "load", state="resident", pinned=pin)

    def start_unload(self, model: str) -> Future[None]:
        return self._begin(model, "unload", state="cold")

    def unpin(self, model: str) -> None:
        self._begin(model, "unpin", pinned=False)

    def _begin(self, model: str, action: str, **outcome: Any) -> Future[None]:
        if self.fails is not None:
            raise self.fails
        self.status(model)
        self.given.append((action, model))
        if self.work is not None:
            return self.work
        self.becomes(model, **outcome)
        done: Future[None] = Future()
        done.set_result(None)
        return done

    def describe(self, model: str) -> Manifest:
        if model != "me/model":
            raise errors.ModelNotFound(model)
        return MANIFEST

    async def ping(self, timeout: float) -> bool:
        return self.alive

    async def drain(self, timeout: float) -> bool:
        return True

    @property
    def takes_requests(self) -> bool:
        return self.alive

    def stats(self) -> EngineStats:
        return EngineStats(requests_running=3, unresponsive=self.unresponsive)


class Served:
    """An app over a fake engine, with its log."""

    def __init__(self, engine: FakeEngine | None = None, **settings: Any) -> None:
        self.engine: Any = engine or FakeEngine()
        self.output = io.StringIO()
        self.app = create_app(
            engine=self.engine,
            server_settings=server_settings(**settings),
            log=create_logger("json", self.output),
        )

    @property
    def log(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.output.getvalue().splitlines()]

    def request(self, method: str, path: str, **options: Any) -> httpx.Response:
        async def main() -> httpx.Response:
            async with asyncio.timeout(20):
                return await send(self.app, method, path, **options)

        return asyncio.run(main())

    def generate(self, **fields: Any) -> httpx.Response:
        return self.request("POST", "/generate", json=GOOD | fields)


async def send(app: Any, method: str, path: str, **options: Any) -> httpx.Response:
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
        return await client.request(method, path, **options)


def assert_problem(answer: httpx.Response, status: int, code: str) -> dict[str, Any]:
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    problem: dict[str, Any] = answer.json()
    assert problem["status"] == status
    assert problem["code"] == code
    assert problem["type"] == f"urn:gpt2serve:error:{code}"
    assert problem["title"]
    assert problem["detail"]
    return problem


def frames(text: str) -> list[Any]:
    assert text.endswith("\n\n")
    datas = [frame.removeprefix("data: ") for frame in text[:-2].split("\n\n")]
    return [data if data == "[DONE]" else json.loads(data) for data in datas]


class RawClient:
    """An ASGI client that sees each chunk as it is sent, and can leave."""

    def __init__(
        self,
        app: Any,
        body: dict[str, Any],
        path: str = "/generate",
        headers: dict[str, str] | None = None,
    ) -> None:
        self.sent: list[Any] = []
        self._news = asyncio.Event()
        self._gone = asyncio.Event()
        self._body: list[bytes] = [json.dumps(body).encode()]
        self.blocks = False
        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": "POST",
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "root_path": "",
            "headers": [
                (name.encode(), value.encode())
                for name, value in {"content-type": "application/json", **(headers or {})}.items()
            ],
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 80),
        }
        self.task = asyncio.create_task(app(scope, self._receive, self._send))

    async def _receive(self) -> dict[str, Any]:
        if self._body:
            return {"type": "http.request", "body": self._body.pop(), "more_body": False}
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Any) -> None:
        self.sent.append(message)
        self._news.set()
        if message["type"] == "http.response.body":
            if not message.get("more_body"):
                self._gone.set()
            elif self.blocks:
                await asyncio.Event().wait()

    @property
    def chunks(self) -> list[bytes]:
        return [m["body"] for m in self.sent if m["type"] == "http.response.body" and m["body"]]

    async def leave(self) -> None:
        self._gone.set()
        await asyncio.wait_for(self.task, 5)

    async def until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            self._news.clear()
            await asyncio.wait_for(self._news.wait(), 5)


def with_client(
    served: Served, work: Callable[[RawClient], Awaitable[None]], **fields: Any
) -> None:
    async def main() -> None:
        client = RawClient(served.app, GOOD | fields)
        await work(client)

    asyncio.run(main())


@asynccontextmanager
async def lifespan(app: Any) -> AsyncIterator[None]:
    async with app.lifespan():
        yield
