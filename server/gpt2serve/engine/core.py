"""The engine thread: the one owner of all mutable state.

Everything reaches it as a message in its inbox and leaves it through the outbox, so policy
needs no locks. It never waits for a disk or a load; the loader thread does.
"""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass

from gpt2serve.engine.events import Usage
from gpt2serve.engine.kv_cache import KVPool
from gpt2serve.engine.loader import Loader, LoadResult
from gpt2serve.engine.memory import HostMemory
from gpt2serve.engine.model_cache import ModelCache, State
from gpt2serve.engine.observer import EngineStats, Observer, RequestSummary
from gpt2serve.engine.packer import PackResult
from gpt2serve.engine.request import Request
from gpt2serve.engine.store import ModelStore, Package
from gpt2serve.engine.stream import Outbox
from gpt2serve.engine.worker import ModelWorker
from gpt2serve.errors import EngineClosed, Gpt2ServeError, RequestAborted
from gpt2serve.settings import EngineSettings

#: An idle engine keeps the memory of its last batches for this long.
KEEP_MEMORY_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Submit:
    request: Request
    package: Package


@dataclass(frozen=True, slots=True)
class Cancel:
    request: Request


@dataclass(frozen=True, slots=True)
class Preload:
    """Load a model that nobody asked for yet; `done` gets None or the error."""

    package: Package
    pin: bool
    done: Future[None]


@dataclass(frozen=True, slots=True)
class Call:
    """Run `function` in the engine thread."""

    function: Callable[[], object]


class Stop:
    """End the thread; whatever has not ended is aborted."""


Message = Submit | Cancel | Preload | Call | LoadResult | PackResult | Stop


class EngineCore:
    """Only `inbox`, `stats`, `start` and `join` are for other threads."""

    def __init__(
        self,
        settings: EngineSettings,
        store: ModelStore,
        *,
        device: str,
        threads: int,
        observer: Observer,
        clock: Callable[[], float],
        on_request_ended: Callable[[], None],
        on_stopped: Callable[[], None],
    ) -> None:
        self.inbox: queue.SimpleQueue[Message] = queue.SimpleQueue()
        self.stats = EngineStats()
        self.pool = KVPool(settings.kv_cache_bytes)
        self.memory = HostMemory()
        self.outbox = Outbox()
        self.kv_reserved_for: str | None = None
        self.observer = observer
        self.clock = clock
        self._settings = settings
        self._on_request_ended = on_request_ended
        self._on_stopped = on_stopped
        self._loader = Loader(
            store, device=device, threads=threads, report=self.inbox.put, clock=clock
        )
        self._packer = self._loader.packer
        self.cache = ModelCache(
            settings.model_cache_bytes,
            retry_min=settings.load_retry_min,
            retry_max=settings.load_retry_max,
            on_evict=self._evicted,
        )
        self._workers: dict[str, ModelWorker] = {}
        #: Resident models that can still be packed, and the one that the loader packs now.
        self._unpacked: dict[str, ModelWorker] = {}
        self._packing: str | None = None
        self._packages: dict[str, Package] = {}
        #: Requests and preloads that wait for a model to be loaded.
        self._loading: dict[str, list[Submit | Preload]] = {}
        #: Requests held back while a colder model has waited too long for room.
        self._held_back: deque[Submit] = deque()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="gpt2serve-engine", daemon=True)

    def start(self) -> None:
        self._loader.start()
        self._thread.start()

    def join(self) -> None:
        self._thread.join()
        self._loader.close()

    # -- the loop -------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while not self._stopping:
                self._receive(wait=not self._step())
                self._publish()
        finally:
            # Also after an error of our own: nobody may be left waiting for an answer.
            self._stopping = True
            self._on_stopped()  # nothing comes into the inbox after this
            self._abort_all()
            self.outbox.flush()

    def _step(self) -> bool:
        """One step of the model that has had the least computing time; False if none can."""
        working = sorted(
            (worker for worker in self._workers.values() if worker.has_work),
            key=lambda worker: worker.virtual_time,
        )
        self.kv_reserved_for = self._starved(working)
        if len(working) == 1 and self._should_wait(working[0]):
            return False
        for worker in working:
            if worker.step():
                self._after_step(worker)
                return True
        return False

    def _should_wait(self, worker: ModelWorker) -> bool:
        """Whether the one model that has work is packed sooner if it leaves the cores alone."""
        return self._packing == worker.key and worker.can_wait

    def _after_step(self, worker: ModelWorker) -> None:
        self._start_packing()
        if not worker.has_work:
            self._packer.rest(worker.runner)

    def _starved(self, working: list[ModelWorker]) -> str | None:
        """The model that has waited too long for KV cache; others admit nothing until it has."""
        patience = self.clock() - self._settings.model_max_wait
        starved = [w for w in working if w.starved_since is not None and w.starved_since < patience]
        return min(starved, key=lambda w: w.starved_since or 0.0).key if starved else None

    def _receive(self, *, wait: bool) -> None:
        """Handle what is in the inbox; wait for something if there is nothing else to do."""
        if wait and self.inbox.empty():
            self._idle()
        while not self.inbox.empty() and not self._stopping:
            self._handle(self.inbox.get())

    def _idle(self) -> None:
        """Wait for the next message; give memory back if it takes a while."""
        self._publish()
        self.check_integrity()
        try:
            message = self.inbox.get(timeout=KEEP_MEMORY_SECONDS)
        except queue.Empty:
            self.memory.trim(0)
            message = self.inbox.get()
        self._handle(message)

    def _publish(self) -> None:
        """First the state, then the events: who sees a request's end sees the state after it."""
        self.stats = self._snapshot()
        self.outbox.flush()

    def _handle(self, message: Message) -> None:
        match message:
            case Submit():
                self._submit(message)
            case Cancel(request):
                self._cancel(request)
            case LoadResult():
                self._loaded(message)
            case PackResult():
                self._packed(message)
            case Preload():
                self._acquire(message)
            case Call(function):
                function()
            case Stop():
                self._stopping = True

    # -- requests -------------------------------------------------------------------------

    def _submit(self, submit: Submit) -> None:
        if submit.request.cancelled:
            self._refuse(submit, RequestAborted("The request was cancelled."))
        elif self._must_hold_back(submit.request.key):
            self._held_back.append(submit)
        else:
            self._acquire(submit)

    def _must_hold_back(self, key: str) -> bool:
        """Hot models take no new work while a colder one has waited too long for their room."""
        return key in self._workers and self.cache.blocked_longer_than(
            self._settings.model_max_wait, self.clock()
        )

    def _acquire(self, message: Submit | Preload) -> None:
        package = message.package
        key = package.key
        try:
            state = self.cache.acquire(key, package.manifest.bytes_needed, self.clock())
        except Gpt2ServeError as error:
            self._refuse(message, error)
            return
        if isinstance(message, Submit):
            self.observer.on_model_wanted(hit=state is State.RESIDENT)
        if isinstance(message, Preload) and message.pin:
            self.cache.pin(key)
        if state is State.RESIDENT:
            self._begin(message, waited=False)
        else:
            self._packages[key] = package
            self._loading.setdefault(key, []).append(message)
            self._start_loads()

    def _begin(self, message: Submit | Preload, *, waited: bool) -> None:
        """The model is there."""
        key = message.package.key
        if isinstance(message, Preload):
            self._ready(message)
            return
        times = message.request.times
        times.waited_for_load = waited
        times.model_ready = self.clock()
        worker = self._workers[key]
        if not worker.has_work:
            # A model that was idle has no claim to the time that it did not use.
            busy = [w.virtual_time for w in self._workers.values() if w.has_work]
            worker.virtual_time = max(worker.virtual_time, min(busy, default=0.0))
        worker.add(message.request)
        self._start_packing()

    def _ready(self, preload: Preload) -> None:
        """What is loaded ahead of requests is packed, too, before that counts as done."""
        worker = self._workers[preload.package.key]
        self.cache.release(worker.key)
        worker.when_packed.append(preload.done)
        if worker.runner.packed:
            worker.tell_packed()
        self._start_packing()

    def _cancel(self, request: Request) -> None:
        """Harmless if the request has ended already."""
        request.cancelled = True
        error = RequestAborted("The request was cancelled.")
        worker = self._workers.get(request.key)
        if worker is not None and request in worker.requests():
            worker.cancel(request, error)
            return
        for submit in [s for s in self._held_back if s.request is request]:
            self._held_back.remove(submit)
            self._refuse(submit, error)
        waiting = self._loading.get(request.key, [])
        for message in waiting:
            if isinstance(message, Submit) and message.request is request:
                waiting.remove(message)
                # The load goes on: others may wait for it, or come for it.
                self.cache.release(request.key)
                self._refuse(message, error)
                break
        if not waiting and self.cache.state(request.key, self.clock()) == "cold":
            self._loading.pop(request.key, None)
            self._packages.pop(request.key, None)
            self._start_loads()  # it may have been what others were kept waiting for

    def _refuse(self, message: Submit | Preload, error: Gpt2ServeError) -> None:
        """End a request that holds no lease (any more)."""
        if isinstance(message, Preload):
            message.done.set_exception(error)
            return
        self.outbox.fail(message.request.stream, error)
        self._count_ended(message.request, error)

    def request_ended(self, request: Request, error: Gpt2ServeError | None) -> None:
        """A worker is done with a request."""
        self.cache.release(request.key)
        self._count_ended(request, error)
        self._start_loads()

    def _count_ended(self, request: Request, error: Gpt2ServeError | None) -> None:
        reasons = tuple(s.finish_reason for s in request.sequences if s.finish_reason)
        self.observer.on_request_finished(
            RequestSummary(
                model=request.model,
                error=error.code if error else None,
                finish_reasons=reasons,
                usage=Usage(
                    prompt_tokens=request.prompt_length,
                    completion_tokens=request.completion_tokens,
                ),
                timing=request.times.timing(self.clock()),
            )
        )
        self._on_request_ended()

    # -- models ---------------------------------------------------------------------------

    def _start_loads(self) -> None:
        if self._stopping:
            return
        for key, error in self.cache.take_impossible().items():
            self._packages.pop(key, None)
            for message in self._loading.pop(key, []):
                self._refuse(message, error)
        for key in self.cache.start_loads(self.clock()):
            self._loader.load(self._packages[key])
        while self._held_back and not self._must_hold_back(self._held_back[0].request.key):
            self._acquire(self._held_back.popleft())

    def _loaded(self, result: LoadResult) -> None:
        key = result.package.key
        self.observer.on_load(result.seconds, ok=result.runner is not None)
        waiting = self._loading.pop(key, [])
        self._packages.pop(key, None)
        if result.runner is None:
            self._load_failed(key, waiting, result.error)
        else:
            self._workers[key] = ModelWorker(
                key,
                result.runner,
                self,
                max_batch_size=self._settings.max_batch_size,
                prefill_chunk=self._settings.prefill_chunk,
            )
            if not result.runner.packed:
                self._unpacked[key] = self._workers[key]
            self.cache.loaded(key, result.size)
            for message in waiting:
                self._begin(message, waited=True)
        self._start_loads()

    def _start_packing(self) -> None:
        """Have the loader pack one model at a time; it stays in memory until that is done."""
        if self._packing is not None or self._stopping:
            return
        wanting = [worker for worker in self._unpacked.values() if worker.wants_packing]
        if wanting:
            worker = max(wanting, key=lambda worker: worker.steps_to_gain)
            self._packing = worker.key
            self.cache.hold(worker.key)
            self._packer.pack(worker.key, worker.runner)

    def _packed(self, result: PackResult) -> None:
        self._packing = None
        worker = self._unpacked.pop(result.key)
        if result.form is None:
            # It does all that it did before, and no slower.
            worker.runner.stay_unpacked()
        else:
            worker.runner.use(result.form)
            self.cache.loaded(result.key, result.size)
        worker.tell_packed()
        self.cache.release(result.key)
        if not worker.has_work:
            self._packer.rest(worker.runner)
        self._start_packing()
        self._start_loads()

    def _load_failed(
        self, key: str, waiting: list[Submit | Preload], cause: Exception | None
    ) -> None:
        reason = f"The model could not be loaded: {cause}"
        error = self.cache.failed(key, reason, self.clock())
        error.__cause__ = cause
        for message in waiting:
            self._refuse(message, error)

    def _evicted(self, key: str) -> None:
        worker = self._workers.pop(key, None)
        self._unpacked.pop(key, None)
        if worker is not None:
            self._packer.free(worker.runner)
            self.observer.on_evict("room")

    # -- the end, and what can be seen ----------------------------------------------------

    def _abort_all(self) -> None:
        error = EngineClosed("The engine was closed.")
        for worker in list(self._workers.values()):  # a model may go with its last request
            for request in worker.requests():
                worker.cancel(request, error)
        for messages in self._loading.values():
            for message in messages:
                self._refuse(message, error)
        for submit in self._held_back:
            self._refuse(submit, error)
        while not self.inbox.empty():
            late = self.inbox.get()
            if isinstance(late, Submit | Preload):
                self._refuse(late, error)

    def _snapshot(self) -> EngineStats:
        workers = self._workers.values()
        running = sum(len(worker.scheduler.running) for worker in workers)
        waiting = sum(len(worker.scheduler.waiting) for worker in workers)
        waiting += sum(len(messages) for messages in self._loading.values())
        return EngineStats(
            requests_running=sum(
                len(w.requests()) - len(w.scheduler.waiting) for w in workers if w.has_work
            ),
            requests_waiting=waiting + len(self._held_back),
            sequences_running=running,
            kv_cache_used_bytes=self.pool.used,
            kv_cache_limit_bytes=self.pool.budget,
            model_cache_used_bytes=self.cache.used,
            model_cache_limit_bytes=self.cache.budget,
            models_resident=len(self._workers),
            oldest_load_wait=self.cache.longest_wait(self.clock()),
        )

    def check_integrity(self) -> None:
        self.cache.check_integrity()
        self.pool.check_integrity()
        for worker in self._workers.values():
            worker.scheduler.check_integrity()
