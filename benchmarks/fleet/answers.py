"""All questions at once, on all cores."""

from __future__ import annotations

import itertools
import multiprocessing
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

from benchmarks.common.measuring import say
from benchmarks.fleet import questions
from benchmarks.fleet.questions import Case, LossPlan
from benchmarks.fleet.routing import ROUTINGS
from benchmarks.fleet.times import ServerTimes

#: What is varied around the wishes, with that many models.
SWEEP_MODELS = 100_000
RATE_FACTORS = (0.2, 0.5, 1.0, 2.0, 4.0)
CACHE_FACTORS = (0.5, 1, 2, 4, 8)
BALANCES = (1.1, 1.25, 1.5, 2.0, None)
#: Those whose loss of a replica is looked at.
LOSS_ROUTINGS = ("hash", "least requests")


@dataclass(frozen=True)
class Wishes:
    """rate: requests a second. bound: seconds, p99 of the time to the first token."""

    rate: float
    bound: float
    cache_bytes: int
    zipf: float


class Answers:
    """requests: of each simulation."""

    def __init__(self, times: ServerTimes, wishes: Wishes, requests: int, processes: int) -> None:
        self._times, self._wishes = times, wishes
        self._requests, self._processes = requests, processes

    def all(self, models: Iterable[int], plan: LossPlan, *, sweeps: bool) -> dict[str, Any]:
        """Lists of figures by question. `plan.models` must be one of `models`."""
        asked = {"models": self._by_models(models)}
        if sweeps:
            asked |= self._sweeps()
        cases = list(dict.fromkeys(itertools.chain(*asked.values())))
        # Not forked: threads may be running here.
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(self._processes, mp_context=context) as pool:
            futures = [
                pool.submit(_needed, case, self._times, self._wishes.bound) for case in cases
            ]
            needed = {case: future.result() for case, future in zip(cases, futures, strict=True)}
            losses = [
                pool.submit(_loss, case, needed[case], self._times, plan)
                for case in (self._case(plan.models, routing) for routing in LOSS_ROUTINGS)
            ]
            told = {question: [needed[case] for case in asked[question]] for question in asked}
            return told | {"loss": [future.result() for future in losses]}

    def _case(self, models: int, routing: str = "hash", **changes: Any) -> Case:
        wishes = self._wishes
        usual = Case(models, wishes.rate, routing, wishes.cache_bytes, wishes.zipf, self._requests)
        return replace(usual, **changes)

    def _by_models(self, models: Iterable[int]) -> list[Case]:
        return [self._case(count, routing) for count in models for routing in ROUTINGS]

    def _sweeps(self) -> dict[str, list[Case]]:
        rate, cache = self._wishes.rate, self._wishes.cache_bytes
        return {
            "rates": [
                self._case(SWEEP_MODELS, routing, rate=factor * rate)
                for factor in RATE_FACTORS
                for routing in ROUTINGS
            ],
            "caches": [
                self._case(SWEEP_MODELS, routing, cache_bytes=round(factor * cache))
                for factor in CACHE_FACTORS
                for routing in ROUTINGS
            ],
            "balances": [self._case(SWEEP_MODELS, balance=balance) for balance in BALANCES],
        }


def _needed(case: Case, times: ServerTimes, bound: float) -> dict[str, Any]:
    told = questions.replicas_needed(case, times, bound)
    say(
        f"{case.models:,} models, {case.rate:g}/s, {case.routing}, "
        f"cache {case.cache_bytes / 2**30:g} GiB: {told['replicas'] or 'no'} replicas"
    )
    return told


def _loss(case: Case, needed: dict[str, Any], times: ServerTimes, plan: LossPlan) -> dict[str, Any]:
    """With as many replicas as are needed while none is lost."""
    told = questions.loss(case, max(2, needed["replicas_shown"]), times, plan)
    say(f"a replica of {told['replicas']} lost, {case.routing}: p99 {told['after']['p99_ms']} ms")
    return told
