"""Threads for what may wait for a network: fetching packages, and errands."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from gpt2serve.engine.store import ModelStore, Package

#: Packages that are fetched at the same time; more would share one network's rate.
FETCHES = 4


@dataclass(frozen=True, slots=True)
class FetchResult:
    """`package` is on the disk now, unless there is an `error`. size: bytes that came."""

    package: Package
    seconds: float
    size: int
    error: Exception | None = None


@dataclass(slots=True)
class _Flight:
    package: Package
    #: Bytes that are there, and bytes of the whole package.
    progress: tuple[int, int]


class Fetcher:
    """Fetches packages in a few threads, each once however often it is asked for.

    The threads begin when there is work. They are daemons: one that hangs in the network keeps
    no process from ending.
    """

    def __init__(
        self,
        store: ModelStore,
        *,
        report: Callable[[FetchResult], None],
        clock: Callable[[], float],
        threads: int = FETCHES,
    ) -> None:
        """`report` is called in one of the threads."""
        self._store = store
        self._report = report
        self._clock = clock
        self._fetches = DaemonThreads("gpt2serve-fetch", threads)
        # Errands take milliseconds, and must not wait behind fetches that hang.
        self._errands = DaemonThreads("gpt2serve-aside", 1)
        self._lock = threading.Lock()
        self._flights: dict[str, _Flight] = {}

    def fetch(self, package: Package) -> None:
        with self._lock:
            if package.key not in self._flights:
                self._flights[package.key] = _Flight(package, (0, size_of(package)))
                self._fetches.do(package.key, lambda: self._fetch(package))

    def drop(self, key: str) -> None:
        """Nobody waits for it any more; a fetch that has begun goes on."""
        with self._lock:
            if self._fetches.withdraw(key):
                del self._flights[key]

    def progress(self, key: str) -> tuple[int, int] | None:
        """Bytes that are there and bytes in all, of a package on its way."""
        flight = self._flights.get(key)
        return flight.progress if flight is not None else None

    def aside(self, errand: Callable[[], None]) -> None:
        """Have something short done that the engine thread must not wait for."""
        self._errands.do("", errand)

    def close(self) -> None:
        """Nothing begins any more."""
        self._fetches.close()
        self._errands.close()

    def join(self, timeout: float) -> None:
        """Wait for what has begun, at most `timeout` seconds."""
        deadline = time.monotonic() + timeout
        self._fetches.join(deadline)
        self._errands.join(deadline)

    def _fetch(self, package: Package) -> None:
        flight = self._flights[package.key]

        def progress(done: int, total: int) -> None:
            flight.progress = done, total

        started = self._clock()
        error: Exception | None = None
        try:
            package = self._store.fetch(package, progress)
        except Exception as caught:
            error = caught
        with self._lock:
            del self._flights[package.key]
        seconds = self._clock() - started
        self._report(FetchResult(package, seconds, flight.progress[0], error))


def size_of(package: Package) -> int:
    """Bytes of all files that the manifest names."""
    return sum(entry.bytes for entry in package.manifest.files.values())


class DaemonThreads:
    """At most `count` threads, which do one job after the other, first come, first served."""

    def __init__(self, name: str, count: int) -> None:
        self._name = name
        self._count = count
        self._changed = threading.Condition()
        self._jobs: deque[tuple[str, Callable[[], None]]] = deque()
        self._threads: list[threading.Thread] = []
        self._idle = 0
        self._closed = False

    def do(self, name: str, job: Callable[[], None]) -> None:
        with self._changed:
            if self._closed:
                return
            self._jobs.append((name, job))
            if len(self._jobs) > self._idle and len(self._threads) < self._count:
                thread = threading.Thread(target=self._work, name=self._name, daemon=True)
                self._threads.append(thread)
                thread.start()
            self._changed.notify()

    def withdraw(self, name: str) -> bool:
        """Forget the jobs of that name that have not begun; False if there is none."""
        with self._changed:
            left = [job for job in self._jobs if job[0] != name]
            found = len(left) < len(self._jobs)
            self._jobs = deque(left)
        return found

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._jobs.clear()
            self._changed.notify_all()

    def join(self, deadline: float) -> None:
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def _work(self) -> None:
        while (job := self._next()) is not None:
            job()
            del job

    def _next(self) -> Callable[[], None] | None:
        with self._changed:
            self._idle += 1
            while not self._jobs and not self._closed:
                self._changed.wait()
            self._idle -= 1
            return self._jobs.popleft()[1] if self._jobs else None
