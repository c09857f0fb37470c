"""This server beside others, on one machine, one model: how much load each one sustains.

In each round each server in turn gets a closed loop of clients, which shows what it can do; a
burst; and Poisson arrivals at rates that `search` chooses, until the highest sustained one is
found. The first round begins far below what the closed loop reached, so that its points make the
curve; later rounds begin at the rate that the round before found.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.common import measuring, model
from benchmarks.common.measuring import say
from benchmarks.common.servers import Server
from benchmarks.common.worker import Worker
from benchmarks.load.search import Search, is_sustained, rate_of, step_of
from benchmarks.load.systems import System

#: The first rate is this share of the rate that the closed loop reached.
_FIRST_SHARE = 1 / 4
#: The first round doubles the rate: that many steps of the grid.
_DOUBLE = 8
#: A rate at which fewer requests come while it is measured tells nothing.
_LEAST_REQUESTS = 4
#: For a server to become idle after what was cut off.
_SETTLE_SECONDS = 0.3
#: A disturbed measurement is made that many times.
_TRIES = 2
_KEPT = (
    "seconds",
    "requests",
    "ok",
    "codes",
    "offered_per_second",
    "requests_per_second",
    "tokens_per_second",
    "prompt_tokens",
    "output_tokens",
    "ttft_ms",
    "per_token_ms",
    "end_to_end_ms",
    "lag_ms",
    "cpu_seconds",
    "others",
)


@dataclass(frozen=True)
class Plan:
    """How much is measured. A point lasts until `requests` are due, but `least` to `most` s.

    What is under way after `grace` seconds more is cut off.
    """

    rounds: int = 3
    first_points: int = 5
    later_points: int = 2
    requests: int = 60
    least: float = 4.0
    most: float = 8.0
    warm_up: float = 1.5
    grace: float = 3.0
    clients: int = 16
    closed_seconds: float = 4.0
    burst: int = 16
    burst_grace: float = 6.0


QUICK = Plan(
    rounds=1,
    first_points=4,
    requests=40,
    least=2.0,
    most=4.0,
    warm_up=1.0,
    grace=1.0,
    closed_seconds=3.0,
    burst=8,
    burst_grace=4.0,
)


def run(systems: Sequence[System], plan: Plan, *, threads: int, cache: Path) -> dict[str, Any]:
    """The raw results, less the header."""
    formats = [system.format for system in systems if system.format]
    assets = model.prepare(cache, formats)
    entries: list[dict[str, Any]] = []
    with contextlib.ExitStack() as stack:
        clients = stack.enter_context(Worker("benchmarks.load.worker:Clients", {}))
        drivers = []
        for system in systems:
            say(f"starting {system.name}")
            log = cache / "logs" / f"load-{system.format or 'transformers'}.log"
            server = stack.enter_context(system.start(assets, threads, log))
            drivers.append(_Driver(system, server, clients, assets.model, plan))
        for number in range(plan.rounds):
            for driver in drivers:
                entries += [entry | {"round": number} for entry in driver.measure(number)]
    return {"plan": asdict(plan), "systems": [system.name for system in systems], "load": entries}


class _Driver:
    """Measures one running server; remembers what the round before found."""

    def __init__(
        self, system: System, server: Server, clients: Worker, model_id: str, plan: Plan
    ) -> None:
        self._name = system.name
        self._clients = clients
        self._plan = plan
        self._processes = [server.pid, clients.pid]
        # All servers make texts of the same lengths: no model may end one early.
        self._target = {"server": server.url, "api": system.api, "exact": True}
        self._model = model_id
        self._best: int | None = None

    def measure(self, number: int) -> list[dict[str, Any]]:
        """All of one round. number: counts rounds, and decides which requests are drawn."""
        plan = self._plan
        closed = self._closed(number)
        entries = [closed, self._burst(number)]
        lowest = step_of(_LEAST_REQUESTS / plan.most)
        if self._best is None:
            start = step_of(_FIRST_SHARE * (closed["requests_per_second"] or 1.0))
            search = Search(start, stride=_DOUBLE, most=plan.first_points, lowest=lowest)
        else:
            search = Search(self._best, stride=1, most=plan.later_points, lowest=lowest)
        while (step := search.next) is not None:
            entry = self._open(step, number)
            search.tell(sustained=entry["sustained"])
            entries.append(entry)
        self._best = search.best
        return entries

    def _closed(self, number: int) -> dict[str, Any]:
        say(f"{self._name}: {self._plan.clients} clients in a closed loop")
        load = {"clients": float(self._plan.clients)}
        figures = self._figures(load, self._plan.closed_seconds, number, grace=0.0)
        return {"kind": "closed"} | figures

    def _burst(self, number: int) -> dict[str, Any]:
        plan = self._plan
        say(f"{self._name}: {plan.burst} requests at once")
        load = {"burst": float(plan.burst), "every": 1.0}
        figures = self._figures(load, 1.0, number, grace=plan.burst_grace, warm_up=0.0)
        return {"kind": "burst"} | figures

    def _open(self, step: int, number: int) -> dict[str, Any]:
        plan, rate = self._plan, rate_of(step)
        seconds = min(plan.most, max(plan.least, plan.requests / rate))
        figures = self._figures({"rate": rate}, seconds, number, grace=plan.grace)
        sustained = is_sustained(figures)
        say(
            f"{self._name}: {rate:.2f} requests/s offered, "
            f"{figures['requests_per_second']:.2f} done, {'sustained' if sustained else 'too much'}"
        )
        return {"kind": "open", "step": step, "rate": rate, "sustained": sustained} | figures

    def _figures(
        self,
        load: dict[str, float],
        seconds: float,
        number: int,
        *,
        grace: float,
        warm_up: float | None = None,
    ) -> dict[str, Any]:
        arguments = {
            "target": self._target,
            "mix": {"models": [self._model], "seed": number},
            "load": load,
            "seconds": seconds,
            "warm_up": self._plan.warm_up if warm_up is None else warm_up,
            "grace": grace,
        }
        work = partial(self._clients.call, "run", **arguments)
        figures = measuring.undisturbed(work, self._processes, tries=_TRIES)
        time.sleep(_SETTLE_SECONDS)
        return {"system": self._name} | {name: figures[name] for name in _KEPT}
