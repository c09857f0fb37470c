"""Clients that leave in the middle of an answer: the connection is cut, nothing is said."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from dataclasses import replace

import aiohttp

from benchmarks.load.apis import Api
from benchmarks.load.outcome import Outcome
from benchmarks.load.traffic import Ask

_TIMEOUT_SECONDS = 60.0
#: In each event with a token, in none of the others.
_TOKEN = b'"token":'


async def leave(
    api: Api, asks: Iterator[Ask], *, rate: float, seconds: float, after: int
) -> list[Outcome]:
    """`rate` clients a second, each of which leaves when it has `after` tokens.

    Those who left have the code "left"; "ended" if the answer was over before.
    """
    start = time.perf_counter()
    outcomes: list[Outcome] = []
    connector = aiohttp.TCPConnector(limit=0, force_close=True)
    async with aiohttp.ClientSession(connector=connector) as session, asyncio.TaskGroup() as tasks:
        for number in range(round(rate * seconds)):
            due = number / rate
            await asyncio.sleep(start + due - time.perf_counter())
            ask = replace(next(asks), at=due)
            tasks.create_task(_one(session, api, ask, after, start, outcomes))
    return outcomes


async def _one(
    session: aiohttp.ClientSession,
    api: Api,
    ask: Ask,
    after: int,
    start: float,
    outcomes: list[Outcome],
) -> None:
    sent = time.perf_counter() - start
    tokens, first, code = 0, None, "ended"
    try:
        async with (
            asyncio.timeout(_TIMEOUT_SECONDS),
            session.post(api.url, json=api.body(ask), headers=api.headers(ask)) as response,
        ):
            if response.status != 200:
                code = str(response.status)
            async for chunk in response.content.iter_any():
                tokens += chunk.count(_TOKEN)
                if tokens and first is None:
                    first = time.perf_counter() - start
                if tokens >= after:
                    code = "left"
                    response.close()
                    break
    except TimeoutError:
        code = "timeout"
    except (aiohttp.ClientError, OSError) as error:
        code = type(error).__name__
    ended = time.perf_counter() - start
    outcomes.append(Outcome(ask, ask.at, sent, first, ended, tokens, code))
