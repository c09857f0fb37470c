"""Whose turn it is to compute. Pure policy.

Of models that have work, one in which the owner works who has had the least computing time; of
these, the one that has had the least itself, for each of its sequences. But models that were just
loaded compute slowly until they are packed, and many may come at once: so for each second of
theirs, the packed ones get two, as long as they have work.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar


class Worker(Protocol):
    """`virtual_time`: seconds of computing so far, each divided by the sequences in it."""

    virtual_time: float

    @property
    def packed(self) -> bool: ...


_W = TypeVar("_W", bound=Worker)

#: Seconds of packed models for each of unpacked ones. With it, a storm of loads slows what
#: decodes by half; docs/decisions/0011-cold-start.md has the measurement.
PACKED_SHARE = 2.0


class Turns:
    def __init__(self) -> None:
        #: Seconds that packed models are owed; below 0 it is they who have had too much.
        self._owed = 0.0

    def order(
        self, working: Sequence[_W], seconds: Callable[[_W], float] = lambda _: 0.0
    ) -> list[_W]:
        """Who is to be asked first, second, ... for a step.

        `seconds`: of computing, that the model's owner has had who has had the least.
        """
        by_time = sorted(working, key=lambda worker: (seconds(worker), worker.virtual_time))
        packed = [worker for worker in by_time if worker.packed]
        unpacked = [worker for worker in by_time if not worker.packed]
        if not packed or not unpacked:
            self._owed = 0.0
        return packed + unpacked if self._owed > 0 else unpacked + packed

    def spent(self, *, packed: bool, seconds: float) -> None:
        """A step was made, by a model that was packed or not."""
        self._owed += -seconds if packed else PACKED_SHARE * seconds
