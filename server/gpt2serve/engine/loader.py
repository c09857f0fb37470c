"""The loader thread: loading and freeing models without ever stopping the engine thread."""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from gpt2serve.engine.runner import Runner
from gpt2serve.engine.store import ModelStore, Package


@dataclass(frozen=True, slots=True)
class LoadResult:
    """`runner` and its size in bytes, or `error`."""

    package: Package
    seconds: float
    runner: Runner | None = None
    size: int = 0
    error: Exception | None = None


class Loader:
    """Loads one model after the other; each result goes to `report`, in the loader thread."""

    def __init__(
        self,
        store: ModelStore,
        *,
        device: str,
        threads: int,
        report: Callable[[LoadResult], None],
        clock: Callable[[], float],
    ) -> None:
        self._store = store
        self._device = device
        self._threads = threads
        self._report = report
        self._clock = clock
        self._jobs: queue.SimpleQueue[Package | Runner | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="gpt2serve-loader", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def load(self, package: Package) -> None:
        self._jobs.put(package)

    def free(self, runner: Runner) -> None:
        """Give up a model; returning its memory takes milliseconds that nobody waits for here."""
        self._jobs.put(runner)

    def close(self) -> None:
        self._jobs.put(None)
        self._thread.join()

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            if isinstance(job, Package):
                self._report(self._load(job))
            del job  # the last reference to a runner that is to be freed

    def _load(self, package: Package) -> LoadResult:
        started = self._clock()
        try:
            self._store.verify(package)
            before = resident_bytes()
            runner = Runner.load(
                package.path, package.manifest, device=self._device, threads=self._threads
            )
            size = _plausible(resident_bytes() - before, package.manifest.bytes_needed)
        except Exception as error:
            return LoadResult(package, self._clock() - started, error=error)
        return LoadResult(package, self._clock() - started, runner, size)


def resident_bytes() -> int:
    """Resident memory of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def _plausible(measured: int, predicted: int) -> int:
    """What was measured, unless others' memory must be in it.

    The process grows by less than a model takes where the model finds memory that an evicted one
    has left, and by more if a KV cache grew meanwhile. So the exporter's own figure is the least
    that counts: else a cache for five models would hold eight, and the budget would be broken.
    """
    return min(max(measured, predicted), predicted * 2)
