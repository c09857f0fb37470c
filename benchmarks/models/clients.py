"""The load, from a process of its own: a closed loop over models drawn at random or in turn."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from benchmarks.load.outcome import Outcome
from benchmarks.load.summary import summary
from benchmarks.load.traffic import Ask, Mix, Traffic
from benchmarks.load.worker import TIMEOUT_SECONDS, drive, make_api, make_mix


class Scan(Traffic):
    """The same prompts and lengths, but the models one after the other, again and again.

    It is what LRU is worst at: a model is evicted shortly before it is asked for again.
    """

    def __init__(self, mix: Mix) -> None:
        super().__init__(mix)
        self._models = mix.models

    def endless(self) -> Iterator[Ask]:
        for ask, model in zip(super().endless(), itertools.cycle(self._models), strict=False):
            yield replace(ask, model=model)


class Clients:
    """For `common.worker.Worker`: arguments and results are JSON."""

    def run(
        self,
        *,
        target: Mapping[str, Any],
        mix: Mapping[str, Any],
        scan: bool,
        clients: int,
        seconds: float,
        warm_up: float,
    ) -> dict[str, Any]:
        """One measurement; see `benchmarks.load.worker.measure` for the arguments."""
        traffic = (Scan if scan else Traffic)(make_mix(mix))
        loop = drive(
            make_api(target),
            traffic,
            {"clients": clients},
            warm_up + seconds,
            timeout=TIMEOUT_SECONDS,
        )
        outcomes = [outcome.later_by(warm_up) for outcome in asyncio.run(loop)]
        return summary(outcomes, seconds) | ended_per_second(outcomes, seconds)


def ended_per_second(outcomes: Sequence[Outcome], seconds: float) -> dict[str, float]:
    """Answers that ended between 0 and `seconds`.

    `summary` also counts what is under way at either end, by its share of time, as if tokens came
    evenly. But whole answers behind a lock mostly wait, and with measurements that are shorter
    than the wait this would count twice as much as was done.
    """
    ended = [one for one in outcomes if one.code == "ok" and 0 <= one.ended <= seconds]
    return {
        "requests_per_second": round(len(ended) / seconds, 3),
        "tokens_per_second": round(sum(one.tokens for one in ended) / seconds, 3),
    }
