"""What the simulation is asked. Pure: the same arguments give the same answers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from benchmarks.fleet.figures import Requests, figures
from benchmarks.fleet.replica import Settings
from benchmarks.fleet.routing import BALANCE_FACTOR, Ring, router
from benchmarks.fleet.simulation import LOST, Fleet, Loss, Outcome
from benchmarks.fleet.times import ServerTimes
from benchmarks.fleet.trace import poisson, popularity
from benchmarks.fleet.warm import Past, contents

#: The share of a simulation in which queues fill, and which does not count.
WARM_UP = 0.1
#: Factor between two numbers of replicas that are tried before the exact one is searched.
_STEP = 1.5
_MOST = 16
#: Models whose homes are looked at.
_SAMPLE = 20_000


@dataclass(frozen=True)
class Case:
    """One fleet and its load. rate: requests a second of the whole fleet.

    balance: times the average that a replica may get, None for any; only for routing by hash.
    uptime: seconds for which the replicas have had such requests.
    """

    models: int
    rate: float
    routing: str
    cache_bytes: int
    zipf: float
    requests: int
    seed: int = 0
    balance: float | None = BALANCE_FACTOR
    uptime: float = 24 * 3600.0

    @property
    def seconds(self) -> float:
        return self.requests / self.rate


def simulate(case: Case, replicas: int, times: ServerTimes, loss: Loss | None = None) -> Outcome:
    """Caches are full from the beginning; queues are not."""
    popular = popularity(case.models, case.zipf)
    trace = poisson(popular, case.rate, case.seconds, case.seed)
    routes = router(case.routing, case.seed, case.balance)
    settings = Settings(cache_bytes=case.cache_bytes)
    fleet = Fleet(replicas, routes, times, settings, trace)
    places = case.cache_bytes // times.model_bytes
    homes = Ring(range(replicas)).home if case.routing == "hash" else None
    past = Past(popular, case.rate * case.uptime, replicas, homes)
    fleet.warm(contents(popular, routes, replicas, places, case.seed), past.had)
    return fleet.run(loss)


def steady(case: Case, replicas: int, times: ServerTimes) -> dict[str, Any]:
    """Figures of a fleet in which nothing happens but requests."""
    outcome = simulate(case, replicas, times)
    counted = outcome.requests.between(WARM_UP * case.seconds)
    return figures(counted) | {
        "replicas": replicas,
        "events": outcome.events,
        "busy": round(float(np.mean(outcome.busy)) / case.seconds, 4),
    }


def replicas_needed(case: Case, times: ServerTimes, bound: float, seeds: int = 1) -> dict[str, Any]:
    """The fewest replicas whose p99 of the time to the first token is at most `bound` seconds.

    Returns the case, the figures with that many, and the events of all that were tried. If
    `_MOST` times the work are not enough, "replicas" is None, and the figures are with that many.
    seeds: how often this is asked, with other requests each time. The one in the middle is
    returned, and "by_seed" has the numbers of all.
    """
    # None begins where another ended: that would make them more alike than they are.
    answers = [
        _needed_once(replace(case, seed=case.seed + number), times, bound)
        for number in range(seeds)
    ]
    middle = sorted(answers, key=lambda one: one["replicas"] or math.inf)[len(answers) // 2]
    sums = {name: sum(one[name] for one in answers) for name in ("tried", "all_events")}
    return middle | sums | {"by_seed": [one["replicas"] for one in answers]}


def _needed_once(case: Case, times: ServerTimes, bound: float) -> dict[str, Any]:
    tried: dict[int, dict[str, Any]] = {}

    def holds(replicas: int) -> bool:
        if replicas not in tried:
            tried[replicas] = steady(case, replicas, times)
        p99 = tried[replicas]["first_ms"]["p99"]
        return p99 is not None and p99 <= 1000 * bound

    work = max(1, round(case.rate * seconds_alone(times)))
    needed = fewest(holds, work, _MOST * work)
    shown = tried[max(tried) if needed is None else needed]
    return asdict(case) | {
        "tried": len(tried),
        "all_events": sum(entry["events"] for entry in tried.values()),
        **shown,
        "replicas": needed,
        "replicas_shown": shown["replicas"],
    }


def seconds_alone(times: ServerTimes, tokens: float = 29.0) -> float:
    """Engine time of one request like a tweet that shares its steps with no other."""
    return times.prefill[1][1] + (tokens - 1) * times.decode[0][1]


def fewest(holds: Callable[[int], bool], guess: int, most: int) -> int | None:
    """The least number for which `holds`, which is taken to hold for all that are greater.

    None if there is none up to `most`.
    """
    low, high = 0, guess  # with none it never holds
    while not holds(high):
        if high >= most:
            return None
        low, high = high, min(most, math.ceil(high * _STEP))
    while low == 0 and high > 1:
        lower = math.floor(high / _STEP)
        low, high = (low, lower) if holds(lower) else (lower, high)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high


# -- a replica lost -----------------------------------------------------------------------


@dataclass(frozen=True)
class LossPlan:
    """Seconds, and how many runs are put together: one has too few requests for a p99.

    detection, connect: see `simulation.Loss`.
    """

    models: int = 10_000
    before: float = 60.0
    after: float = 90.0
    window: float = 5.0
    runs: int = 8
    detection: float = 6.0
    connect: float = 1.0

    def windows(self) -> Iterator[tuple[float, float]]:
        for number in range(round((self.before + self.after) / self.window)):
            yield number * self.window, (number + 1) * self.window


def loss(case: Case, replicas: int, times: ServerTimes, plan: LossPlan) -> dict[str, Any]:
    """One of `replicas` is gone. Figures before, until the router knows, a minute after, over time.

    Times count from the loss. "lost": answers that were broken. "again": requests that went to a
    second replica. "p99_by_run": of before and after, to see how far runs are apart.
    """
    outcomes = [
        simulate(
            replace(
                case,
                requests=round(case.rate * (plan.before + plan.after)),
                seed=case.seed + seed,
            ),
            replicas,
            times,
            Loss(seed % replicas, plan.before, plan.detection, plan.connect),
        )
        for seed in range(plan.runs)
    ]
    joined = _joined(outcomes)
    known = plan.before + plan.detection
    parts = {
        "before": (plan.before / 2, plan.before),
        "unnoticed": (plan.before, known),
        "after": (known, known + 60.0),
    }
    return {
        "routing": case.routing,
        "models": case.models,
        "rate": case.rate,
        "replicas": replicas,
        "requests": len(joined.due),
        "lost": sum(int(np.count_nonzero(outcome.codes == LOST)) for outcome in outcomes),
        "again": sum(int(np.count_nonzero(outcome.again)) for outcome in outcomes),
        "runs": plan.runs,
        "detection": plan.detection,
        "connect": plan.connect,
        "moved": moved(replicas, case.models) if case.routing == "hash" else None,
        **{name: _short(joined.between(*part)) for name, part in parts.items()},
        "p99_by_run": {
            name: [_short(_joined([one]).between(*part))["p99_ms"] for one in outcomes]
            for name, part in parts.items()
        },
        "windows": [
            {"from": begin - plan.before, **_short(joined.between(begin, end))}
            for begin, end in plan.windows()
        ],
    }


def moved(replicas: int, models: int) -> dict[str, float]:
    """Share of models that get a new home if one replica is lost: least and most, by who it is."""
    homes = Ring(range(replicas)).homes(np.arange(min(models, _SAMPLE), dtype=np.int64))
    shares = np.bincount(homes, minlength=replicas) / len(homes)
    return {"least": round(float(shares.min()), 4), "most": round(float(shares.max()), 4)}


def _joined(outcomes: list[Outcome]) -> Requests:
    """Of all runs, without those whose answers were broken when their replica was lost."""
    parts = [(outcome.requests, outcome.codes != LOST) for outcome in outcomes]
    return Requests(
        due=np.concatenate([one.due[kept] for one, kept in parts]),
        first=np.concatenate([one.first[kept] for one, kept in parts]),
        total=np.concatenate([one.total[kept] for one, kept in parts]),
        tokens=np.concatenate([one.tokens[kept] for one, kept in parts]),
        hits=np.concatenate([one.hits[kept] for one, kept in parts]),
    )


def _short(requests: Requests) -> dict[str, Any]:
    told = figures(requests)
    return {
        "requests": told["requests"],
        "failed": told["failed"],
        "hit_ratio": told["hit_ratio"],
        "p50_ms": told["first_ms"]["p50"],
        "p99_ms": told["first_ms"]["p99"],
    }
