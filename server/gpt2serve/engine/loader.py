"""Loading models without ever stopping the engine thread, in two threads.

One opens models: it checks the files and maps the weights, which takes milliseconds, so a model's
first token never waits for another model. The other packs them (see `runner`), which takes a
hundred times as long and speeds up each step from then on, and frees them. So loads never
compute in more than one thread at a time, apart from the check.
"""

from __future__ import annotations

import contextlib
import os
import queue
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from gpt2serve.engine.allocator import give_back, heap_in_use, keep_freed_memory
from gpt2serve.engine.runner import Form, Runner, Shapes
from gpt2serve.engine.store import ModelStore, Package

#: Models that decode come first: packing beside them gets what they leave of the cores.
PACKING_NICENESS = 10
#: Memory of models that were freed is kept for the next ones for this long.
IDLE_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class LoadResult:
    """A model that can work: `runner` and its size in bytes; or `error`."""

    package: Package
    seconds: float
    runner: Runner | None = None
    size: int = 0
    error: Exception | None = None


@dataclass(frozen=True, slots=True)
class PackResult:
    """What the model is to use from now on, and its size in bytes; or `error`."""

    key: str
    seconds: float
    form: Form | None = None
    size: int = 0
    error: Exception | None = None


class Loader:
    """Each result goes to `report`, in one of the loader's threads."""

    def __init__(
        self,
        store: ModelStore,
        *,
        device: str,
        threads: int,
        report: Callable[[LoadResult | PackResult], None],
        clock: Callable[[], float],
    ) -> None:
        self._store = store
        self._device = device
        self._threads = threads
        self._report = report
        self._clock = clock
        self._shapes = Shapes()
        self._opener = _Worker("gpt2serve-open")
        self._packer = _Worker("gpt2serve-pack", PACKING_NICENESS, give_back)

    def start(self) -> None:
        keep_freed_memory()
        self._opener.start()
        self._packer.start()

    def load(self, package: Package) -> None:
        self._opener.do(partial(self._load, package))

    def pack(self, key: str, runner: Runner) -> None:
        """Pack a model that is loaded; it can go on working meanwhile."""
        self._packer.do(partial(self._pack, key, runner))

    def rest(self, runner: Runner) -> None:
        """Let an idle model take no more memory than it must."""
        self._packer.do(runner.drop_pages)

    def free(self, runner: Runner) -> None:
        """Give up a model; returning its memory takes milliseconds that nobody waits for here."""
        self._packer.do(partial(_forget, runner))

    def close(self) -> None:
        self._opener.close()
        self._packer.close()

    def _load(self, package: Package) -> None:
        started, before = self._clock(), heap_in_use()
        predicted = package.manifest.bytes_needed
        try:
            self._store.verify(package)
            runner = Runner.load(
                package.path,
                package.manifest,
                device=self._device,
                threads=self._threads,
                shapes=self._shapes,
            )
            # Costs nothing unless the files were replaced since they were checked.
            self._store.verify(package)
        except Exception as error:
            result = LoadResult(package, self._clock() - started, error=error)
        else:
            # Room for the packed form is taken from the beginning.
            size = counted(heap_in_use() - before, predicted) if runner.packed else predicted
            result = LoadResult(package, self._clock() - started, runner, size)
        self._report(result)

    def _pack(self, key: str, runner: Runner) -> None:
        started, before = self._clock(), heap_in_use()
        try:
            form = runner.pack()
        except Exception as error:
            result = PackResult(key, self._clock() - started, error=error)
        else:
            size = counted(heap_in_use() - before, runner.manifest.bytes_needed)
            result = PackResult(key, self._clock() - started, form, size)
        self._report(result)


class _Worker:
    """A thread that does one thing after the other, and `when_idle` if nothing came for long."""

    def __init__(
        self, name: str, niceness: int = 0, when_idle: Callable[[], None] | None = None
    ) -> None:
        self._niceness = niceness
        self._when_idle = when_idle
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def do(self, job: Callable[[], None]) -> None:
        self._jobs.put(job)

    def close(self) -> None:
        self._jobs.put(None)
        self._thread.join()

    def _work(self) -> None:
        if self._niceness and sys.platform == "linux":  # elsewhere it is the whole process's
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), self._niceness)
        while (job := self._next()) is not None:
            job()
            del job  # it may hold the last reference to a model

    def _next(self) -> Callable[[], None] | None:
        if self._when_idle is not None:
            with contextlib.suppress(queue.Empty):
                return self._jobs.get(timeout=IDLE_SECONDS)
            self._when_idle()
        return self._jobs.get()


def _forget(_: object) -> None:
    """What the job that calls this holds is freed after it, in this thread."""


def counted(measured: int, predicted: int) -> int:
    """What a model counts for in the cache, in bytes: what was measured, within reason.

    Others allocate at the same time, for a KV cache or a tokenizer, or give back. So the
    exporter's own figure is the least that counts, and twice of it the most.
    """
    return min(max(measured, predicted), predicted * 2)
