"""All questions at once, on all cores."""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import signal
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

from benchmarks.common.measuring import say
from benchmarks.fleet import questions
from benchmarks.fleet.questions import Case, LossPlan
from benchmarks.fleet.routing import ROUTINGS
from benchmarks.fleet.times import ServerTimes

#: What is varied around the wishes, with that many models.
SWEEP_MODELS = 100_000
RATE_FACTORS = (0.2, 1.0, 4.0)
CACHE_FACTORS = (0.5, 1, 2, 8)
BALANCES = (1.1, 1.25, 1.5, 2.0, None)


@dataclass(frozen=True)
class Wishes:
    """rate: requests a second. bound: seconds, p99 of the time to the first token.

    uptime_hours: for how long each replica has run.
    """

    rate: float
    bound: float
    cache_bytes: int
    zipf: float
    uptime_hours: float


@dataclass(frozen=True)
class Effort:
    """requests: of each simulation. seeds: of the answers by models; sweeps have one."""

    requests: int
    seeds: int


class Answers:
    def __init__(self, times: ServerTimes, wishes: Wishes, effort: Effort, processes: int) -> None:
        self._times, self._wishes = times, wishes
        self._effort, self._processes = effort, processes

    def all(
        self, told: dict[str, Any], models: Iterable[int], plan: LossPlan, *, sweeps: bool
    ) -> None:
        """Put lists of figures by question into `told`, as they are made.

        `plan.models` must be one of `models`.
        """
        asked = {"models": self._by_models(models)}
        if sweeps:
            asked |= self._sweeps()
        cases = dict.fromkeys(itertools.chain(*asked.values()))
        with processes(self._processes) as pool:
            seeds = dict.fromkeys(cases, 1) | dict.fromkeys(asked["models"], self._effort.seeds)
            needed = {
                case: pool.submit(_needed, case, self._times, self._wishes.bound, seeds[case])
                for case in cases
            }
            for question in asked:
                _fill(told, question, [needed[case] for case in asked[question]])
            lost = [self._case(plan.models, routing) for routing in ROUTINGS]
            losses = [
                pool.submit(_loss, case, needed[case].result(), self._times, plan) for case in lost
            ]
            _fill(told, "loss", losses)

    def _case(self, models: int, routing: str = "hash", **changes: Any) -> Case:
        wishes = self._wishes
        usual = Case(
            models,
            wishes.rate,
            routing,
            wishes.cache_bytes,
            wishes.zipf,
            self._effort.requests,
            uptime=3600 * wishes.uptime_hours,
        )
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


@contextlib.contextmanager
def processes(count: int) -> Iterator[ProcessPoolExecutor]:
    """If what is inside ends early, by Ctrl-C too, they end at once and nobody waits for them."""
    # Not forked: threads may be running here.
    pool = ProcessPoolExecutor(
        count,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=signal.signal,
        initargs=(signal.SIGINT, signal.SIG_IGN),
    )
    others = multiprocessing.active_children()
    try:
        yield pool
    except BaseException:
        for process in multiprocessing.active_children():
            if process not in others:
                process.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _fill(told: dict[str, Any], question: str, futures: Iterable[Future[dict[str, Any]]]) -> None:
    told[question] = []
    for future in futures:
        told[question].append(future.result())


def _needed(case: Case, times: ServerTimes, bound: float, seeds: int) -> dict[str, Any]:
    told = questions.replicas_needed(case, times, bound, seeds)
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
