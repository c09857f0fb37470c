"""When a server has nothing left to do, seen from outside: by the processor time that it takes.

A measurement cuts off what is still under way at its end. What a server goes on computing for
clients that are gone would slow the measurement that comes next.
"""

from __future__ import annotations

import time

from benchmarks.common.machine import family, process_seconds

_WATCH_SECONDS = 0.25
#: A server that takes less of one core than that is idle.
_IDLE_SHARE = 0.1
_PATIENCE = 20.0


class NeverIdle(Exception):
    """The server does not come to an end with what nobody waits for any more."""


def wait(process: int, patience: float = _PATIENCE) -> None:
    """Returns when the server is idle, or at once where the system does not tell.

    process: its id. Raises `NeverIdle` after `patience` seconds.
    """
    deadline = time.monotonic() + patience
    while _busy(process):
        if time.monotonic() > deadline:
            raise NeverIdle(f"It still computed {patience:g} s after its last client had left.")


def _busy(process: int) -> bool:
    before = _seconds(process)
    time.sleep(_WATCH_SECONDS)
    return _seconds(process) - before > _IDLE_SHARE * _WATCH_SECONDS  # not so with NaN


def _seconds(process: int) -> float:
    return sum(map(process_seconds, family(process)))
