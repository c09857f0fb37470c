"""Open and closed loops of requests over HTTP, with the times when tokens came.

    outcomes = await open_loop(Generate(url), traffic.at(times), timeout=60)

An open loop sends each request when it is due, whatever happened to the others; its latencies
count from that moment, so a client or a server that falls behind cannot hide it. In a closed
loop each client sends its next request when it has the answer to the last one.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import math
import resource
import time
from collections.abc import AsyncIterator, Iterable, Iterator

import aiohttp

from benchmarks.load.apis import Answer, Api, Completions, Generate
from benchmarks.load.outcome import UNFINISHED, Outcome, Progress
from benchmarks.load.traffic import Ask

__all__ = [
    "Api",
    "Completions",
    "Generate",
    "Outcome",
    "Progress",
    "closed_loop",
    "open_loop",
    "single",
]

#: uvicorn closes idle connections after 5 s; a request that meets the close is lost.
_KEEP_ALIVE_SECONDS = 3.0
_DONE = b"[DONE]"
_DETAIL_CHARACTERS = 300


async def open_loop(
    api: Api,
    asks: Iterable[Ask],
    *,
    timeout: float,
    end: float = math.inf,
    progress: Progress | None = None,
) -> list[Outcome]:
    """Send each request at its time; returns when all are answered. asks: in order of time.

    timeout: seconds that a client waits for a whole answer before it leaves. end: seconds after
    the start when requests that are still under way are cut off.
    """
    run = _Run(api, timeout, end, progress)
    async with _session() as session, asyncio.TaskGroup() as tasks:
        run.begin()
        for ask in asks:
            await asyncio.sleep(ask.at - run.now())
            tasks.create_task(run.send(session, ask, ask.at))
    return run.outcomes


async def closed_loop(
    api: Api,
    asks: Iterator[Ask],
    *,
    clients: int,
    seconds: float,
    timeout: float,
    end: float = math.inf,
    progress: Progress | None = None,
) -> list[Outcome]:
    """`clients` clients, each of which sends until `seconds` are over and then gets its answer."""
    run = _Run(api, timeout, end, progress)

    async def client(session: aiohttp.ClientSession) -> None:
        while (now := run.now()) < seconds and (ask := next(asks, None)) is not None:
            await run.send(session, ask, now)

    async with _session() as session, asyncio.TaskGroup() as tasks:
        run.begin()
        for _ in range(clients):
            tasks.create_task(client(session))
    return run.outcomes


async def single(api: Api, ask: Ask, *, timeout: float) -> Outcome:
    """One request by itself."""
    (outcome,) = await closed_loop(api, iter([ask]), clients=1, seconds=timeout, timeout=timeout)
    return outcome


def _session() -> aiohttp.ClientSession:
    """As many connections as there are requests under way, if the system allows."""
    with contextlib.suppress(OSError, ValueError):
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=_KEEP_ALIVE_SECONDS)
    return aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=None))


class _Run:
    """One loop: its clock, and how each request is sent and noted down."""

    def __init__(self, api: Api, timeout: float, end: float, progress: Progress | None) -> None:
        self._api = api
        self._timeout = timeout
        self._end = end
        self._progress = progress or Progress()

    @property
    def outcomes(self) -> list[Outcome]:
        return self._progress.outcomes

    def begin(self) -> None:
        self._progress.start = time.perf_counter()

    def now(self) -> float:
        return time.perf_counter() - self._progress.start

    async def send(self, session: aiohttp.ClientSession, ask: Ask, due: float) -> None:
        """Never raises for what the server does."""
        self._progress.sent += 1
        sent = self.now()
        answer = Answer()
        code, detail = "ok", ""
        try:
            async with asyncio.timeout(min(self._timeout, self._end - sent)):
                code, detail = await self._exchange(session, ask, answer)
        except TimeoutError:
            code = "timeout" if sent + self._timeout <= self._end else UNFINISHED
        except aiohttp.ClientConnectorError as error:
            code, detail = "connect", str(error)
        except (aiohttp.ClientError, OSError, ValueError, LookupError, TypeError) as error:
            code, detail = "broken", f"{type(error).__name__}: {error}"
        self.outcomes.append(_outcome(ask, due, sent, self.now(), answer, code, detail))

    async def _exchange(
        self, session: aiohttp.ClientSession, ask: Ask, answer: Answer
    ) -> tuple[str, str]:
        """Code and detail. Raises TimeoutError, and what the callers of aiohttp and json get."""
        api = self._api
        async with session.post(api.url, json=api.body(ask), headers=api.headers(ask)) as response:
            if response.status != 200:
                return str(response.status), _said(await response.text())
            if not api.stream:
                api.read_whole(await response.json(content_type=None), answer)
                return "ok", ""
            complete = await self._read_stream(response, answer)
        if answer.error is not None:
            return answer.error, ""
        return ("ok", "") if complete else ("broken", "The stream ended without [DONE].")

    async def _read_stream(self, response: aiohttp.ClientResponse, answer: Answer) -> bool:
        """Whether the stream said that it is complete."""
        complete = False
        async for event in _events(response):
            if event == _DONE:
                complete = True
            else:
                self._api.read_event(json.loads(event), self.now(), answer)
        return complete


def _said(body: str) -> str:
    """The sentence in the body of an error: RFC 9457's, OpenAI's, or the beginning of all."""
    with contextlib.suppress(ValueError, LookupError, TypeError, AttributeError):
        problem = json.loads(body)
        body = problem.get("detail") or problem["error"]["message"]
    return str(body)[:_DETAIL_CHARACTERS]


async def _events(response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    """The data of server-sent events, as soon as they are there."""
    rest = b""
    async for chunk in response.content.iter_any():
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                yield line[5:].strip()


def _outcome(
    ask: Ask, due: float, sent: float, ended: float, answer: Answer, code: str, detail: str
) -> Outcome:
    arrivals = answer.arrivals
    return Outcome(
        ask=ask,
        due=due,
        sent=sent,
        first=arrivals[0] if arrivals else None,
        ended=ended,
        tokens=len(arrivals) if answer.tokens is None else answer.tokens,
        code=code,
        gaps=tuple(after - before for before, after in itertools.pairwise(arrivals)),
        prompt_tokens=answer.prompt_tokens,
        load_ms=answer.load_ms,
        text=answer.text,
        detail=detail,
    )
