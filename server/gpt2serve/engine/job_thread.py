"""A thread that does one job after the other."""

from __future__ import annotations

import os
import queue
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

Job = Callable[[], None]
_T = TypeVar("_T")


class JobThread:
    """Jobs must not raise. The last reference to what a job holds goes in this thread."""

    def __init__(
        self, name: str, *, niceness: int = 0, between: Callable[[], float | None] | None = None
    ) -> None:
        """niceness: how much nicer than the rest of the process it is.

        `between` is called when a job is done, or when the seconds that it returned are over.
        """
        self._niceness = niceness
        self._between = between
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def do(self, job: Job) -> None:
        self._jobs.put(job)

    def ask(self, function: Callable[[], _T]) -> Future[_T]:
        """Do `function`, which may raise, and keep what comes of it."""
        outcome: Future[_T] = Future()

        def job() -> None:
            try:
                outcome.set_result(function())
            except BaseException as error:  # whoever asked is to have it
                outcome.set_exception(error)

        self.do(job)
        return outcome

    def close(self) -> None:
        """What was asked for before is done first."""
        self._jobs.put(None)
        self._thread.join()

    def _work(self) -> None:
        if self._niceness and sys.platform == "linux":  # elsewhere it is the whole process's
            me = threading.get_native_id()
            others = os.getpriority(os.PRIO_PROCESS, me)
            os.setpriority(os.PRIO_PROCESS, me, others + self._niceness)
        while True:
            seconds = self._between() if self._between is not None else None
            try:
                job = self._jobs.get(timeout=seconds)
            except queue.Empty:
                continue
            if job is None:
                return
            job()
            del job
