"""Which model is packed next. Part of the engine thread; the packer does the work."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from gpt2serve.engine.model_cache import ModelCache
from gpt2serve.engine.packer import Packer, PackResult
from gpt2serve.engine.worker import ModelWorker


class Packing:
    """One model at a time is packed, and stays in memory until that is done."""

    def __init__(
        self,
        packer: Packer,
        cache: ModelCache,
        clock: Callable[[], float],
        workers: Mapping[str, ModelWorker],
    ) -> None:
        """`workers`: all resident models, by key."""
        self._workers = workers
        self._packer = packer
        self._cache = cache
        self._clock = clock
        #: Resident models that can still be packed, and the one that is being packed now.
        self._unpacked: dict[str, ModelWorker] = {}
        self._now: str | None = None
        self._stopped = False

    def add(self, worker: ModelWorker) -> None:
        """A model was loaded."""
        if not worker.runner.packed:
            self._unpacked[worker.key] = worker

    def remove(self, worker: ModelWorker) -> None:
        """A model goes. Who waited for its packed form waits no longer: it was loaded."""
        self._unpacked.pop(worker.key, None)
        worker.tell_packed()
        self._packer.free(worker.runner)

    def start(self) -> None:
        """Have the one packed that gains most, if that is worth it."""
        if self._now is not None or self._stopped:
            return
        wanting = [worker for worker in self._unpacked.values() if worker.wants_packing]
        if wanting:
            worker = max(wanting, key=lambda worker: worker.steps_to_gain)
            if self._cache.hold(worker.key, self._clock()):
                self._now = worker.key
                alone = not any(w.has_work for w in self._workers.values() if w is not worker)
                self._packer.pack(worker.key, worker.runner, alone=alone)

    def packed(self, result: PackResult) -> None:
        self._now = None
        worker = self._unpacked.pop(result.key)
        if result.form is None:
            # It does all that it did before, and no slower.
            worker.runner.stay_unpacked()
        else:
            worker.runner.use(result.form)
            self._packer.drop_pages(worker.runner)
            self._cache.resize(result.key, result.size)
        worker.tell_packed()
        self._cache.release(result.key, self._clock())
        self.rest(worker)
        self.start()

    def is_sooner_without(self, worker: ModelWorker) -> bool:
        """Whether the one model that has work is packed sooner if it leaves the cores alone."""
        return self._now == worker.key and worker.can_wait

    def rest(self, worker: ModelWorker) -> None:
        """Let an idle model take no more memory than it must."""
        if not worker.has_work:
            self._packer.rest(worker.runner)

    def stop(self) -> None:
        """Nothing begins any more."""
        self._stopped = True
