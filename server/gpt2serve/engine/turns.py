"""Whose turn it is to compute. Pure policy.

Of models that have work, one in which the owner works who has had the least computing time; of
these, the one that has had the least itself, in virtual seconds. But models that were just loaded
compute slowly until they are packed, and many may come at once: so for each second of theirs, the
packed ones get two, as long as they have work. And among the packed, and among the others, nobody
is passed over for more than some steps, as a single slow step could put a model back by seconds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar


class Worker(Protocol):
    """`virtual_time`: virtual seconds so far.

    `passed_over`: steps that others in its form made since its last, or since it has work.
    """

    virtual_time: float
    passed_over: int

    @property
    def packed(self) -> bool: ...


_W = TypeVar("_W", bound=Worker)

#: Seconds of packed models for each of unpacked ones. With it, a storm of loads slows what
#: decodes by half; docs/decisions/0011-cold-start.md has the measurement.
PACKED_SHARE = 2.0
#: Steps of others in its form after which a model goes first, for each that has work.
PATIENCE = 8


def virtual_seconds(seconds: float, rows: int) -> float:
    """What a step of `seconds` with so many sequences counts.

    By seconds, each model would get the same, and a sequence in a large batch next to nothing of
    it; by seconds for each sequence, one that is alone in its model would take many times as long
    as those. This is half-way: docs/decisions/0023-turns-between-models.md.
    """
    return seconds / math.sqrt(rows)


class Turns:
    def __init__(self) -> None:
        #: Seconds that packed models are owed; below 0 it is they who have had too much.
        self._owed = 0.0
        #: Virtual time of whoever made the last step, when it began.
        self._now = 0.0

    def begin(self, worker: _W) -> None:
        """`worker`, which had none, has work: it claims no time that it did not use.

        Nor has it an advantage over who used what nobody else wanted: as in start-time fair
        queueing (Goyal, Vin and Cheng, SIGCOMM 1996).
        """
        worker.virtual_time = max(worker.virtual_time, self._now)
        worker.passed_over = 0

    def order(
        self, working: Sequence[_W], seconds: Callable[[_W], float] = lambda _: 0.0
    ) -> list[_W]:
        """Who is to be asked first, second, ... for a step.

        `seconds`: of computing, that the model's owner has had who has had the least.
        """
        by_time = sorted(working, key=lambda worker: (seconds(worker), worker.virtual_time))
        packed = _late_first([worker for worker in by_time if worker.packed])
        unpacked = _late_first([worker for worker in by_time if not worker.packed])
        if not packed or not unpacked:
            self._owed = 0.0
        return packed + unpacked if self._owed > 0 else unpacked + packed

    def spent(
        self, worker: _W, working: Sequence[_W], *, packed: bool, begun: float, seconds: float
    ) -> None:
        """`worker`, one of those with work, has made a step.

        packed: its form then; begun: its virtual time before; seconds: what the step took.
        """
        self._owed += -seconds if packed else PACKED_SHARE * seconds
        self._now = max(self._now, begun)
        for other in working:
            other.passed_over += other.packed == packed
        worker.passed_over = 0


def _late_first(by_time: list[_W]) -> list[_W]:
    patience = PATIENCE * len(by_time)
    late = [worker for worker in by_time if worker.passed_over >= patience]
    if not late:
        return by_time
    in_time = [worker for worker in by_time if worker.passed_over < patience]
    return sorted(late, key=lambda worker: -worker.passed_over) + in_time
