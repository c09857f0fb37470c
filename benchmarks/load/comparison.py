"""This server beside others, on one machine, one model: how much load each one sustains.

In each round each server in turn gets a closed loop of clients, which shows what it can do; a
burst; and Poisson arrivals at rates that `search` chooses, until the highest sustained one is
found. The first round begins far below what the closed loop reached, so that its points make the
curve; later rounds begin at the rate that the round before found.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.common import measuring, model
from benchmarks.common.measuring import say
from benchmarks.common.servers import Server, ServerFailed
from benchmarks.common.worker import Worker, WorkerFailed
from benchmarks.load import idle
from benchmarks.load.idle import NeverIdle
from benchmarks.load.outcome import UNFINISHED
from benchmarks.load.search import Search, is_sustained, rate_of, step_of
from benchmarks.load.systems import System

#: The first rate is this share of the rate that the closed loop reached.
_FIRST_SHARE = 1 / 4
#: The first round doubles the rate: that many steps of the grid.
_DOUBLE = 8
#: A rate at which fewer requests come while it is measured tells nothing.
_LEAST_REQUESTS = 4
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
    "wall_seconds",
    "others",
)


@dataclass(frozen=True)
class Plan:
    """How much is measured. A point lasts until `requests` are due, but `least` to `most` s.

    What is under way after `grace` seconds more is cut off.
    """

    rounds: int = 3
    first_points: int = 7
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


class Unusable(Exception):
    """A server's answers are such that its figures would mean nothing."""


#: What takes one server out of the comparison, and not the others.
_FAILURES = (ServerFailed, WorkerFailed, Unusable, NeverIdle, OSError, RuntimeError)


def run(
    results: dict[str, Any],
    systems: Sequence[System],
    plan: Plan,
    *,
    threads: int,
    cache: Path,
) -> None:
    """Fills `results`, so that it has what was measured whenever this is interrupted."""
    comparison = _Comparison(results, systems, plan)
    with contextlib.ExitStack() as stack:
        for system in systems:
            with comparison.failing(system.name):
                comparison.start(system, threads, cache, stack)
        for number in range(plan.rounds):
            for name in list(comparison.drivers):
                with comparison.failing(name):
                    comparison.measure(name, number)


class _Comparison:
    """The servers that run, and what was measured of them."""

    def __init__(self, results: dict[str, Any], systems: Sequence[System], plan: Plan) -> None:
        self.drivers: dict[str, _Driver] = {}
        self._plan = plan
        self._failed: dict[str, str] = {}
        self._entries: list[dict[str, Any]] = []
        results["plan"] = asdict(plan)
        results["systems"] = [system.name for system in systems]
        results["failed"] = self._failed
        results["load"] = self._entries

    def start(self, system: System, threads: int, cache: Path, stack: contextlib.ExitStack) -> None:
        """With clients of its own: what breaks them breaks nobody else's."""
        say(f"starting {system.name}")
        assets = model.prepare(cache, [system.format] if system.format else [])
        log = cache / "logs" / f"load-{system.format or 'transformers'}.log"
        server = stack.enter_context(system.start(assets, threads, log))
        clients = stack.enter_context(Worker("benchmarks.load.worker:Clients", {}))
        driver = _Driver(system, server, clients, assets.model, self._plan)
        self.drivers[system.name] = driver

    def measure(self, name: str, number: int) -> None:
        for entry in self.drivers[name].measure(number):
            self._entries.append(entry | {"round": number})

    @contextlib.contextmanager
    def failing(self, name: str) -> Iterator[None]:
        """What fails inside takes the server out, with all that was measured of it."""
        try:
            yield
        except _FAILURES as error:
            measuring.note_failure(self._failed, name, error)
            self._entries[:] = [entry for entry in self._entries if entry["system"] != name]
            driver = self.drivers.pop(name, None)
            if driver is not None:
                driver.server.kill()


class _Driver:
    """Measures one running server; remembers what the round before found."""

    def __init__(
        self, system: System, server: Server, clients: Worker, model_id: str, plan: Plan
    ) -> None:
        self.server = server
        self._name = system.name
        self._clients = clients
        self._plan = plan
        # All servers make texts of the same lengths: no model may end one early.
        self._target = {"server": server.url, "api": system.api, "exact": True}
        self._model = model_id
        self._best: int | None = None

    def measure(self, number: int) -> Iterator[dict[str, Any]]:
        """All of one round. number: counts rounds, and decides which requests are drawn."""
        plan = self._plan
        closed = self._closed(number)
        yield closed
        yield self._burst(number)
        lowest = step_of(_LEAST_REQUESTS / plan.most)
        if self._best is None:
            start = step_of(_FIRST_SHARE * (closed["requests_per_second"] or 1.0))
            search = Search(start, stride=_DOUBLE, most=plan.first_points, lowest=lowest)
        else:
            search = Search(self._best, stride=1, most=plan.later_points, lowest=lowest)
        while (step := search.next) is not None:
            entry = self._open(step, number)
            search.tell(sustained=entry["sustained"])
            yield entry
        self._best = search.best

    def _closed(self, number: int) -> dict[str, Any]:
        plan = self._plan
        load = {"clients": float(plan.clients)}
        what = f"{plan.clients} clients in a closed loop"
        return {"kind": "closed"} | self._figures(what, load, plan.closed_seconds, number)

    def _burst(self, number: int) -> dict[str, Any]:
        plan = self._plan
        load = {"burst": float(plan.burst), "every": 1.0}
        what = f"{plan.burst} requests at once"
        figures = self._figures(what, load, 1.0, number, grace=plan.burst_grace, warm_up=0.0)
        return {"kind": "burst"} | figures

    def _open(self, step: int, number: int) -> dict[str, Any]:
        plan, rate = self._plan, rate_of(step)
        seconds = min(plan.most, max(plan.least, plan.requests / rate))
        what = f"{rate:.2f} requests/s offered"
        figures = self._figures(what, {"rate": rate}, seconds, number, grace=plan.grace)
        sustained = is_sustained(figures)
        done = f"{figures['requests_per_second']:.2f} done"
        say(f"{self._name}: {what}, {done}, {'sustained' if sustained else 'too much'}")
        return {"kind": "open", "step": step, "rate": rate, "sustained": sustained} | figures

    def _figures(
        self,
        what: str,
        load: dict[str, float],
        seconds: float,
        number: int,
        *,
        grace: float = 0.0,
        warm_up: float | None = None,
    ) -> dict[str, Any]:
        """what: is shown meanwhile."""
        say(f"{self._name}: {what}")
        arguments = {
            "target": self._target,
            "mix": {"models": [self._model], "seed": number},
            "load": load,
            "seconds": seconds,
            "warm_up": self._plan.warm_up if warm_up is None else warm_up,
            "grace": grace,
            "live": True,
        }
        work = partial(self._checked, arguments)
        processes = [self.server.pid, self._clients.pid]
        figures = measuring.undisturbed(work, processes, tries=_TRIES)
        return {"system": self._name} | {name: figures[name] for name in _KEPT}

    def _checked(self, arguments: dict[str, Any]) -> dict[str, Any]:
        figures: dict[str, Any] = self._clients.call("run", **arguments)
        check(figures)
        idle.wait(self.server.pid)
        return figures


def check(figures: dict[str, Any]) -> None:
    """Raises `Unusable` unless something was answered, and all that was has its exact length."""
    codes = figures["codes"]
    if figures["requests"] and not {"ok", UNFINISHED} & set(codes):
        listed = ", ".join(f"{count} x {code}" for code, count in codes.items())
        raise Unusable(f"No request went well: {listed}.")
    wrong = figures["wrong_lengths"]
    if wrong:
        (asked, got), *_ = wrong
        raise Unusable(
            f"{len(wrong)} texts were not as long as asked, one of them {got} tokens instead of "
            f"{asked}."
        )
