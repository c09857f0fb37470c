"""Loading models without ever stopping the engine thread, in two threads.

One opens models: it checks the files and maps the weights, which takes milliseconds, so a model's
first token never waits for another model. The other is the packer's. What takes long is done
there, by one thread at a time: packing, and loading what has no unpacked form.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial

from gpt2serve.engine.allocator import heap_in_use
from gpt2serve.engine.forms import Shapes, can_be_unpacked
from gpt2serve.engine.job_thread import JobThread
from gpt2serve.engine.packer import Packer, PackResult, counted
from gpt2serve.engine.runner import Runner
from gpt2serve.engine.sessions import share_thread_pool
from gpt2serve.engine.store import ModelStore, Package


@dataclass(frozen=True, slots=True)
class LoadResult:
    """A model that can work: `runner` and its size in bytes; or `error`."""

    package: Package
    seconds: float
    runner: Runner | None = None
    size: int = 0
    error: Exception | None = None


class Loader:
    """Each result goes to `report`, in a thread of its own. The packer comes with it."""

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
        self._thread = JobThread("gpt2serve-load")
        self.packer = Packer(report=report, clock=clock)

    def start(self) -> None:
        self.packer.start()
        self._thread.start()

    def load(self, package: Package) -> None:
        job = partial(self._load, package)
        if can_be_unpacked(package.manifest, self._device):
            self._thread.do(job)
        else:
            self.packer.do(job)

    def warm(self, package: Package) -> None:
        """Do what happens once in a process, or once for all models of a shape."""
        self._thread.do(partial(self._warm, package))

    def close(self) -> None:
        self._thread.close()
        self.packer.close()

    def _warm(self, package: Package) -> None:
        with suppress(Exception):  # whoever asks for this very model is told
            if can_be_unpacked(package.manifest, self._device):
                share_thread_pool(self._threads)
                shape = self._shapes.of(package.path, package.manifest)
                Runner.unpacked(package.path, package.manifest, shape).warm_up()

    def _load(self, package: Package) -> None:
        started, before = self._clock(), heap_in_use()
        predicted = package.manifest.bytes_needed
        try:
            runner = self._open(package)
        except Exception as error:
            result = LoadResult(package, self._clock() - started, error=error)
        else:
            # Room for the packed form is taken from the beginning.
            size = counted(heap_in_use() - before, predicted) if runner.packed else predicted
            result = LoadResult(package, self._clock() - started, runner, size)
        self._report(result)

    def _open(self, package: Package) -> Runner:
        with ExitStack() as held:
            path = held.enter_context(self._store.hold(package))
            runner = Runner.load(
                path,
                package.manifest,
                device=self._device,
                threads=self._threads,
                shapes=self._shapes,
            )
            # Costs nothing unless the files were replaced since they were checked.
            self._store.verify(package)
            # The files are mapped as long as the model is in memory.
            runner.when_freed = held.pop_all()
        return runner
