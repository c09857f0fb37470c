"""What a simulated server does beside its steps: opening models, and packing them.

Pure: times are those of the simulation.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable

from benchmarks.fleet.times import ServerTimes

NEVER = math.inf


class Loader:
    """One load after the other. It takes milliseconds, or waits for a disk: steps go on."""

    def __init__(self, times: ServerTimes) -> None:
        #: Whether the process had a model before the simulation began; hashes are checked once.
        self.was_here: Callable[[int], bool] = _never
        self.known: set[str] = set()
        #: When the current load ends.
        self.end = NEVER
        self._times = times
        self._jobs: deque[str] = deque()

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

    def _begin(self, now: float) -> None:
        key = self._jobs[0]
        known = key in self.known or self.was_here(int(key))
        self.end = now + (self._times.load if known else self._times.first_load)


class Packer:
    """One model at a time. What is left of it shrinks more slowly beside engine steps."""

    def __init__(self, times: ServerTimes) -> None:
        #: When the model is packed if nothing changes.
        self.end = NEVER
        self._times = times
        self._left = 0.0
        self._since = 0.0
        self._speed = 1.0

    @property
    def busy(self) -> bool:
        return self.end < NEVER

    def pack(self, now: float) -> None:
        self._left, self._since = self._times.pack, now
        self.end = now + self._left / self._speed

    def finish(self) -> None:
        self.end = NEVER

    def pace(self, now: float, *, beside_steps: bool) -> None:
        """The engine computes from now on, or rests."""
        speed = 1 / self._times.packing_beside_steps if beside_steps else 1.0
        if speed == self._speed:
            return
        if self.busy:
            self._left = max(0.0, self._left - (now - self._since) * self._speed)
            self._since, self.end = now, now + self._left / speed
        self._speed = speed


def _never(model: int) -> bool:  # noqa: ARG001
    return False
