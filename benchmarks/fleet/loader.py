"""The loader thread of one simulated server. Pure: times are those of the simulation."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable

from benchmarks.fleet.times import ServerTimes

NEVER = math.inf


class Loader:
    """One load after the other. What is left of one shrinks more slowly beside engine steps."""

    def __init__(self, times: ServerTimes) -> None:
        #: Whether the process had a model before the simulation began; hashes are checked once.
        self.was_here: Callable[[int], bool] = _never
        self.known: set[str] = set()
        #: When the current load ends if nothing changes.
        self.end = NEVER
        self._times = times
        self._jobs: deque[str] = deque()
        self._left = 0.0
        self._since = 0.0
        self._speed = 1.0

    @property
    def busy(self) -> bool:
        return bool(self._jobs)

    def load(self, key: str, now: float) -> None:
        self._jobs.append(key)
        if len(self._jobs) == 1:
            self._begin(now)

    def finish(self, now: float) -> str:
        """The current load is done."""
        key = self._jobs.popleft()
        self.known.add(key)
        self.end = NEVER
        if self._jobs:
            self._begin(now)
        return key

    def pace(self, now: float, *, beside_steps: bool) -> None:
        """The engine computes from now on, or rests."""
        speed = 1 / self._times.load_slowdown if beside_steps else 1.0
        if speed == self._speed:
            return
        self._left -= (now - self._since) * self._speed
        self._speed, self._since = speed, now
        if self._jobs:
            self.end = now + max(0.0, self._left) / speed

    def _begin(self, now: float) -> None:
        key = self._jobs[0]
        known = key in self.known or self.was_here(int(key))
        self._left = self._times.load if known else self._times.first_load
        self._since = now
        self.end = now + self._left / self._speed


def _never(model: int) -> bool:  # noqa: ARG001
    return False
