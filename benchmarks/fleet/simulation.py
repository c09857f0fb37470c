"""The fleet: requests come, a router chooses replicas, replicas work. Discrete events. Pure."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from benchmarks.fleet.figures import Requests
from benchmarks.fleet.replica import Replica, Settings
from benchmarks.fleet.routing import Router
from benchmarks.fleet.times import ServerTimes
from benchmarks.fleet.trace import Ints, Trace

#: What became of a request.
OK, REFUSED, LOST = 0, 1, 2


@dataclass(frozen=True)
class Loss:
    """A replica that is gone from `at` on, with all that it was working on."""

    replica: int
    at: float


class Ledger:
    """Notes down what happens to each request. Times are seconds of the simulation."""

    def __init__(self, trace: Trace) -> None:
        count = len(trace.times)
        self.models: list[int] = trace.models.tolist()
        self.prompts: list[int] = trace.prompts.tolist()
        self.outputs: list[int] = trace.outputs.tolist()
        self.first = [float("inf")] * count
        self.end = [float("inf")] * count
        self.hits = [False] * count
        self.codes = [OK] * count
        self.just_ended: list[int] = []

    def wanted(self, request: int, *, hit: bool) -> None:
        self.hits[request] = hit

    def first_token(self, request: int, now: float) -> None:
        self.first[request] = now

    def ended(self, request: int, now: float) -> None:
        self.end[request] = now
        self.just_ended.append(request)


@dataclass(frozen=True)
class Outcome:
    """requests, codes: one entry a request. busy: seconds of engine steps of each replica."""

    requests: Requests
    codes: Ints
    events: int
    busy: list[float]


class Fleet:
    """Replicas with the ids 0, 1, ..., which share nothing but the router."""

    def __init__(
        self, count: int, router: Router, times: ServerTimes, settings: Settings, trace: Trace
    ) -> None:
        self._trace, self._times, self._router = trace, times, router
        self.ledger = Ledger(trace)
        self.replicas = [Replica(times, settings, self.ledger) for _ in range(count)]
        self._alive = list(range(count))
        #: What the router sees: requests sent and not answered.
        self._active = [0] * count
        self._total = 0
        self._heap: list[tuple[float, int]] = []
        self._events = 0
        router.alive(self._alive)

    def warm(self, contents: list[list[int]], homes: Callable[[int], int] | None) -> None:
        """Fill the caches. homes: the only replica that has had a model before; None: all had."""
        for number, (replica, models) in enumerate(zip(self.replicas, contents, strict=True)):
            here = partial(_is_home, homes, number) if homes else _always
            replica.warm(models, here)

    def run(self, loss: Loss | None = None) -> Outcome:
        """Until every request has ended."""
        pending = loss
        for request, now in enumerate(self._trace.times.tolist()):
            if pending is not None and pending.at <= now:
                self._advance(pending.at)
                self._lose(pending)
                pending = None
            self._advance(now)
            self._send(request, now)
        self._advance(float("inf"))
        return self._outcome()

    def _advance(self, until: float) -> None:
        """All that happens before `until`."""
        heap, replicas = self._heap, self.replicas
        while heap and heap[0][0] < until:
            at, number = heapq.heappop(heap)
            replica = replicas[number]
            if replica.next != at:
                continue  # it was planned anew
            self._events += 1
            replica.advance()
            self._after(number)

    def _after(self, number: int) -> None:
        ended = self.ledger.just_ended
        if ended:
            self._active[number] -= len(ended)
            self._total -= len(ended)
            ended.clear()
        upcoming = self.replicas[number].next
        if upcoming != float("inf"):
            heapq.heappush(self._heap, (upcoming, number))

    def _send(self, request: int, now: float) -> None:
        self._events += 1
        number = self._router.choose(self.ledger.models[request], self._active, self._total)
        replica = self.replicas[number]
        before = replica.next
        if not replica.arrive(request, now):
            self.ledger.codes[request] = REFUSED
            return
        self._active[number] += 1
        self._total += 1
        if replica.next != before:
            self._after(number)

    def _lose(self, loss: Loss) -> None:
        replica = self.replicas[loss.replica]
        replica.next = float("inf")
        for request in replica.requests():
            self.ledger.codes[request] = LOST
            self.ledger.first[request] = self.ledger.end[request] = float("inf")
        self._total -= self._active[loss.replica]
        self._active[loss.replica] = 0
        self._alive.remove(loss.replica)
        self._router.alive(self._alive)

    def _outcome(self) -> Outcome:
        ledger, trace = self.ledger, self._trace
        late = self._times.overhead - trace.times
        return Outcome(
            requests=Requests(
                due=trace.times,
                first=np.array(ledger.first) + late,
                total=np.array(ledger.end) + late,
                tokens=trace.outputs,
                hits=np.array(ledger.hits, dtype=np.bool_),
            ),
            codes=np.array(ledger.codes, dtype=np.int64),
            events=self._events,
            busy=[replica.busy_seconds for replica in self.replicas],
        )


def _is_home(homes: Callable[[int], int], replica: int, model: int) -> bool:
    return homes(model) == replica


def _always(model: int) -> bool:  # noqa: ARG001
    return True
