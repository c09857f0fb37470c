"""The clients, in a process of their own: those who stream, and those who disturb."""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from collections.abc import Callable, Coroutine, Iterator
from functools import partial
from typing import Any

from benchmarks.isolation.gaps import disturber_figures, hot_figures
from benchmarks.isolation.leaving import leave
from benchmarks.isolation.plan import LEAVING, LONG_OTHER, LONG_SAME, QUIET, STORM, Plan
from benchmarks.load.apis import Generate
from benchmarks.load.client import closed_loop, open_loop
from benchmarks.load.outcome import Outcome
from benchmarks.load.traffic import Ask, burst_times

TIMEOUT_SECONDS = 60.0
#: Seconds in which clients and disturbance begin; they do not count.
SETTLE_SECONDS = 0.5

Disturbance = Callable[[Plan], Coroutine[Any, Any, list[Outcome]]]


class Clients:
    """For `common.worker.Worker`: arguments and results are JSON.

    url: the server. hot, neighbour: models that are always in memory. cold: models that are not;
    each is asked for only once, and when there are none left a storm is over. prompts: short
    ones. long_prompts: as long as the context allows.
    """

    def __init__(
        self,
        url: str,
        hot: str,
        neighbour: str,
        cold: list[str],
        prompts: list[str],
        long_prompts: list[str],
    ) -> None:
        self._api = Generate(url, exact=True)
        self._hot, self._neighbour = hot, neighbour
        self._cold = deque(cold)
        self._prompts = itertools.cycle(prompts)
        self._long_prompts = itertools.cycle(long_prompts)
        self._seeds = itertools.count()

    def run(self, *, situation: str, plan: dict[str, Any]) -> dict[str, Any]:
        """The hot model's clients stream, and meanwhile happens what the situation says.

        plan: the fields of `Plan`.
        """
        return asyncio.run(self._together(self._disturbances()[situation], Plan(**plan)))

    def _disturbances(self) -> dict[str, Disturbance]:
        return {
            QUIET: self._nothing,
            STORM: self._storm,
            LONG_SAME: partial(self._long, self._hot),
            LONG_OTHER: partial(self._long, self._neighbour),
            LEAVING: self._leaving,
        }

    async def _together(self, disturb: Disturbance, plan: Plan) -> dict[str, Any]:
        hot, others = await asyncio.gather(
            closed_loop(
                self._api,
                self._asks(self._hot, plan.tokens),
                clients=plan.streams,
                seconds=plan.seconds,
                timeout=TIMEOUT_SECONDS,
            ),
            disturb(plan),
        )
        figures = hot_figures(hot, SETTLE_SECONDS, plan.seconds)
        beside = disturber_figures(others) | {"cold_left": len(self._cold)}
        return figures | {"beside": beside}

    # -- what disturbs --------------------------------------------------------------------

    async def _nothing(self, plan: Plan) -> list[Outcome]:  # noqa: ARG002
        return []

    async def _storm(self, plan: Plan) -> list[Outcome]:
        """Clients that always ask for one token of a model that is not there."""
        asks = (self._ask(self._cold.popleft(), 1) for _ in range(len(self._cold)))
        return await closed_loop(
            self._api,
            asks,
            clients=plan.storm_clients,
            seconds=plan.seconds,
            timeout=TIMEOUT_SECONDS,
        )

    async def _long(self, model: str, plan: Plan) -> list[Outcome]:
        """A long prompt every few seconds, for one token."""
        asks = [
            Ask(at, model, next(self._long_prompts), 1, next(self._seeds))
            for at in burst_times(1, plan.long_every, plan.seconds).tolist()
        ]
        return await open_loop(self._api, asks, timeout=TIMEOUT_SECONDS)

    async def _leaving(self, plan: Plan) -> list[Outcome]:
        """Clients of the hot model that leave after some of many tokens."""
        return await leave(
            self._api,
            self._asks(self._hot, plan.tokens),
            rate=plan.leave_rate,
            seconds=plan.seconds,
            after=plan.leave_after,
        )

    def _asks(self, model: str, tokens: int) -> Iterator[Ask]:
        while True:
            yield self._ask(model, tokens)

    def _ask(self, model: str, tokens: int) -> Ask:
        return Ask(0.0, model, next(self._prompts), tokens, next(self._seeds))
