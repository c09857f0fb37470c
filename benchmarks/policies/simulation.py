"""Requests of a trace meet a cache. Pure.

A request holds a lease from its arrival to its last token. If its model is not there it waits for
it: for room, for the loads before it, since one is made at a time, and for the load itself. Then
it runs for as long as it does, whatever else happens.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import numpy.typing as npt

from benchmarks.policies.cache import Cache
from benchmarks.policies.traces import Trace
from gpt2serve.engine.model_cache import State


class Met(IntEnum):
    """How a request found its model."""

    HIT = 0
    #: Not there, but another request had already asked for it.
    JOINED = 1
    MISS = 2


@dataclass(frozen=True)
class Outcome:
    """One entry a request. waits: seconds from its arrival until its model is there."""

    met: npt.NDArray[np.int64]
    waits: npt.NDArray[np.float64]


def simulate(cache: Cache, trace: Trace, load_seconds: Callable[[int], float]) -> Outcome:
    """load_seconds: of a model, by its bytes."""
    return _Run(cache, trace, load_seconds).outcome()


class _Run:
    def __init__(self, cache: Cache, trace: Trace, load_seconds: Callable[[int], float]) -> None:
        self._cache, self._load_seconds = cache, load_seconds
        self._keys, self._sizes = trace.keys, trace.sizes_of_keys
        self._times: list[float] = trace.times.tolist()
        self._durations: list[float] = trace.durations.tolist()
        self._met: list[int] = []
        self._waits = [0.0] * len(self._keys)
        #: By key, requests that wait for it.
        self._waiting: dict[str, list[int]] = {}
        self._to_load: deque[str] = deque()
        self._loading: str | None = None
        #: (time, number of the event, key, whether its load has ended or else a request's run)
        self._events: list[tuple[float, int, str, bool]] = []
        self._scheduled = 0

    def outcome(self) -> Outcome:
        for request, now in enumerate(self._times):
            self._until(now)
            self._arrive(request, now)
        self._until(float("inf"))
        assert not self._waiting, "requests wait for ever"
        return Outcome(np.array(self._met, dtype=np.int64), np.array(self._waits))

    def _until(self, time: float) -> None:
        while self._events and self._events[0][0] <= time:
            now, _, key, load_ended = heapq.heappop(self._events)
            if load_ended:
                self._loaded(key, now)
            else:
                self._cache.release(key, now)
            if self._waiting:
                self._start_loads(now)

    def _arrive(self, request: int, now: float) -> None:
        key = self._keys[request]
        state = self._cache.acquire(key, self._sizes[key], now)
        if state is State.RESIDENT:
            self._met.append(Met.HIT)
            self._run(request, key, now)
            return
        joined = key in self._waiting
        self._met.append(Met.JOINED if joined else Met.MISS)
        self._waiting.setdefault(key, []).append(request)
        if not joined:
            self._start_loads(now)

    def _start_loads(self, now: float) -> None:
        self._to_load += self._cache.start_loads(now)
        if self._loading is None and self._to_load:
            key = self._loading = self._to_load.popleft()
            self._schedule(now + self._load_seconds(self._sizes[key]), key, load_ended=True)

    def _loaded(self, key: str, now: float) -> None:
        self._loading = None
        self._cache.loaded(key, self._sizes[key], now)
        for request in self._waiting.pop(key):
            self._waits[request] = now - self._times[request]
            self._run(request, key, now)
        if self._to_load:
            self._start_loads(now)

    def _run(self, request: int, key: str, now: float) -> None:
        self._schedule(now + self._durations[request], key, load_ended=False)

    def _schedule(self, time: float, key: str, *, load_ended: bool) -> None:
        heapq.heappush(self._events, (time, self._scheduled, key, load_ended))
        self._scheduled += 1
