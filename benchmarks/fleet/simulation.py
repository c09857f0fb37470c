"""The fleet: requests come, a router chooses replicas, replicas work. Discrete events. Pure."""

from __future__ import annotations

import copy
import heapq
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt

from benchmarks.fleet.figures import Requests
from benchmarks.fleet.replica import Replica, Settings
from benchmarks.fleet.routing import Router
from benchmarks.fleet.times import ServerTimes
from benchmarks.fleet.trace import Ints, Trace

#: What became of a request.
OK, REFUSED, LOST = 0, 1, 2


@dataclass(frozen=True)
class Loss:
    """A machine that is gone from `at` on without a word, with all that it was working on.

    For `detection` seconds the router sends requests there as before: by default until three of
    Envoy's health checks, one every two seconds, have failed. It then closes its connections:
    answers that had begun are broken; requests without an answer so far go to another replica.
    So do those that came meanwhile, `connect` seconds after each found nobody to connect to.
    """

    replica: int
    at: float
    detection: float = 6.0
    connect: float = 1.0


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
        self.again = [False] * count
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
    """One entry a request in requests, codes, and again: was it sent to a second replica?

    busy: seconds of engine steps of each replica.
    """

    requests: Requests
    codes: Ints
    again: npt.NDArray[np.bool_]
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
        #: What the router sees: requests sent and not answered.
        self.active = [0] * count
        self._total = 0
        self._heap: list[tuple[float, int]] = []
        self._events = 0
        #: What happens at a time that is known before, by (time, number).
        self._planned: list[tuple[float, int, Callable[[float], None]]] = []
        self._numbers = itertools.count()
        #: The replica that is gone, while the router does not know it; the router when it does.
        self._gone: Loss | None = None
        self._without = router
        router.alive(range(count))

    def warm(self, contents: list[list[int]], had: Callable[[int, int], bool] | None) -> None:
        """Fill the caches. had: whether a replica has had a model before; None: all had all."""
        for number, (replica, models) in enumerate(zip(self.replicas, contents, strict=True)):
            replica.warm(models, partial(had, number) if had else _always)

    def run(self, loss: Loss | None = None) -> Outcome:
        """Until every request has ended."""
        if loss is not None:
            self._plan(loss.at, partial(self._lose, loss))
        for request, now in enumerate(self._trace.times.tolist()):
            self._until(now)
            self._send(request, now)
        self._until(float("inf"))
        return self._outcome()

    def _plan(self, at: float, action: Callable[[float], None]) -> None:
        heapq.heappush(self._planned, (at, next(self._numbers), action))

    def _until(self, until: float) -> None:
        """All that is planned, and all that happens on replicas by itself."""
        while self._planned and self._planned[0][0] <= until:
            at, _, action = heapq.heappop(self._planned)
            self._advance(at)
            action(at)
        self._advance(until)

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
            self.active[number] -= len(ended)
            self._total -= len(ended)
            ended.clear()
        upcoming = self.replicas[number].next
        if upcoming != float("inf"):
            heapq.heappush(self._heap, (upcoming, number))

    def _send(self, request: int, now: float) -> None:
        self._events += 1
        number = self._router.choose(self.ledger.models[request], self.active, self._total)
        if self._gone is not None and number == self._gone.replica:
            self._occupy(number, 1)
            self._plan(now + self._gone.connect, partial(self._not_connected, request, number))
        else:
            self._deliver(request, number, now)

    def _deliver(self, request: int, number: int, now: float) -> None:
        replica = self.replicas[number]
        before = replica.next
        if not replica.arrive(request, now):
            self.ledger.codes[request] = REFUSED
            return
        self._occupy(number, 1)
        if replica.next != before:
            self._after(number)

    def _occupy(self, number: int, requests: int) -> None:
        """What the router sees: so many more on a replica."""
        self.active[number] += requests
        self._total += requests

    # -- a replica is lost ----------------------------------------------------------------

    def _lose(self, loss: Loss, now: float) -> None:
        self._gone = loss
        self._without = copy.copy(self._router)
        self._without.alive([n for n in range(len(self.replicas)) if n != loss.replica])
        replica, ledger = self.replicas[loss.replica], self.ledger
        replica.next = float("inf")
        stranded = replica.requests()
        for request in stranded:
            if ledger.first[request] < float("inf"):
                ledger.codes[request] = LOST
                ledger.first[request] = ledger.end[request] = float("inf")
        self._plan(now + loss.detection, partial(self._detect, loss.replica, stranded))

    def _detect(self, lost: int, stranded: list[int], now: float) -> None:
        self._gone = None
        self._router = self._without
        self._occupy(lost, -len(stranded))
        for request in stranded:
            if self.ledger.codes[request] != LOST:
                self._send_again(request, now)

    def _not_connected(self, request: int, lost: int, now: float) -> None:
        self._occupy(lost, -1)
        self._send_again(request, now)

    def _send_again(self, request: int, now: float) -> None:
        """To another replica than the lost one, whether or not the router knows of the loss."""
        self._events += 1
        self.ledger.again[request] = True
        model = self.ledger.models[request]
        self._deliver(request, self._without.choose(model, self.active, self._total), now)

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
            again=np.array(ledger.again, dtype=np.bool_),
            events=self._events,
            busy=[replica.busy_seconds for replica in self.replicas],
        )


def _always(model: int) -> bool:  # noqa: ARG001
    return True
