"""The engine thread: the one owner of all mutable state.

Everything reaches it as a message in its inbox and leaves it through the outbox, so policy
needs no locks. It never waits for a disk, a network or a load; other threads do.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Any

import msgspec

from gpt2serve.engine.events import Usage
from gpt2serve.engine.fetcher import Fetcher, FetchResult
from gpt2serve.engine.kv_cache import KVPool
from gpt2serve.engine.loader import Loader, LoadResult
from gpt2serve.engine.memory import HostMemory
from gpt2serve.engine.messages import (
    Ask,
    Call,
    Cancel,
    Changed,
    Message,
    Preload,
    Renewed,
    Stop,
    Submit,
    Unload,
    Unpin,
    Waiting,
    settle,
)
from gpt2serve.engine.observer import EngineStats, Observer, RequestSummary
from gpt2serve.engine.packer import PackResult
from gpt2serve.engine.preparation import PreparedRequest
from gpt2serve.engine.request import Request
from gpt2serve.engine.residency import Residency
from gpt2serve.engine.shares import Shares
from gpt2serve.engine.store import ModelStore, Package
from gpt2serve.engine.stream import Outbox
from gpt2serve.engine.turns import Turns
from gpt2serve.engine.versions import Versions
from gpt2serve.engine.worker import ModelWorker
from gpt2serve.errors import EngineClosed, Gpt2ServeError, RequestAborted
from gpt2serve.settings import EngineSettings, is_url

#: An idle engine keeps the memory of its last batches for this long.
KEEP_MEMORY_SECONDS = 10.0


class EngineCore:
    """Only `inbox`, `stats`, `fetcher`, `start` and `join` are for other threads."""

    def __init__(
        self,
        settings: EngineSettings,
        store: ModelStore,
        *,
        device: str,
        threads: int,
        observer: Observer,
        clock: Callable[[], float],
        on_request_ended: Callable[[Request], None],
        on_stopped: Callable[[], None],
        prepare_again: Callable[[PreparedRequest], PreparedRequest],
    ) -> None:
        self.inbox: queue.SimpleQueue[Message] = queue.SimpleQueue()
        #: Since when a model is waited for; since when the thread is on its round from inbox to
        #: inbox. Written by the engine thread, read by any, as `_published` is.
        self._waits_since: float | None = None
        self._round_since: float | None = None
        self.pool = KVPool(settings.kv_cache_bytes)
        self.memory = HostMemory()
        self.outbox = Outbox()
        self.kv_reserved_for: str | None = None
        self.shares = Shares()
        self.observer = observer
        self.clock = clock
        self._settings = settings
        self._on_request_ended = on_request_ended
        self._on_stopped = on_stopped
        self._store = store
        self._disk_cache_limit = settings.disk_cache_bytes if is_url(settings.store) else None
        self._loader = Loader(
            store, device=device, threads=threads, report=self.inbox.put, clock=clock
        )
        self.fetcher = Fetcher(store, report=self.inbox.put, clock=clock)
        versions = Versions(self.fetcher, store, prepare_again=prepare_again, report=self.inbox.put)
        self.models = Residency(settings, self, self._loader, self.fetcher, versions)
        self._handlers: dict[type, Callable[[Any], None]] = {
            PackResult: self.models.packed,
            Submit: self.models.submit,
            Preload: self.models.submit,
            Cancel: self._cancel,
            FetchResult: self.models.fetched,
            LoadResult: self.models.loaded,
            Changed: self.models.changed,
            Renewed: self.models.renewed,
            Unload: self.models.unload,
            Unpin: self.models.unpin,
            Call: Call.run,
            Ask: Ask.run,
            Stop: self._stop,
        }
        self._turns = Turns()
        self._stopping = False
        self._published = self._snapshot()
        self._thread = threading.Thread(target=self._run, name="gpt2serve-engine", daemon=True)

    def start(self) -> None:
        self._loader.start()
        self._thread.start()

    def warm(self, package: Package) -> None:
        """For any thread: have done what happens once in a process, or once for all of a shape."""
        self._loader.warm(package)

    def join(self) -> None:
        self._thread.join()
        self._loader.close()
        self.fetcher.close()

    # -- the loop -------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while not self._stopping:
                self._round_since = self.clock()
                self._receive(wait=not self._step())
                self._expire()
                self._publish()
        finally:
            # Also after an error of our own: nobody may be left waiting for an answer.
            self._stopping = True
            self.models.stop()
            self._on_stopped()  # nothing comes into the inbox after this
            self._abort_all()
            self.outbox.flush()

    def _step(self) -> bool:
        """One step of the model whose turn it is; False if none can."""
        working = self._turns.order(
            [w for w in self.models.workers.values() if w.has_work], self._seconds
        )
        self.kv_reserved_for = self._starved(working)
        packing = self.models.packing
        if len(working) == 1 and packing.is_sooner_without(working[0]):
            return False
        for worker in working:
            time, begun, packed = self.clock(), worker.virtual_time, worker.packed
            if worker.step():
                seconds = self.clock() - time
                self._turns.spent(worker, working, packed=packed, begun=begun, seconds=seconds)
                packing.start()
                packing.rest(worker)
                return True
        return False

    def _seconds(self, worker: ModelWorker) -> float:
        """Of computing, that the owner has had who has had the least of those at work in it."""
        if not self.shares.contended:
            return 0.0
        return min(self.shares.seconds(owner) for owner in worker.scheduler.claimants)

    def _starved(self, working: list[ModelWorker]) -> str | None:
        """The model that has waited too long for KV cache; others admit nothing until it has."""
        starved = [worker for worker in working if worker.starved_since is not None]
        if not starved:
            return None
        patience = self.clock() - self._settings.model_max_wait
        idle = self._owners_without_slots(working)
        late = [
            w
            for w in starved
            if (w.starved_since or 0.0) < patience or not idle.isdisjoint(w.scheduler.claimants)
        ]
        return min(late, key=lambda w: w.starved_since or 0.0).key if late else None

    def _owners_without_slots(self, working: list[ModelWorker]) -> set[str]:
        """Who has work, but nothing that runs: need not be patient with others."""
        if not self.shares.contended:
            return set()
        owners: set[str] = set().union(*(w.scheduler.claimants for w in working))
        return owners.difference(*(w.scheduler.running_owners for w in working))

    def _receive(self, *, wait: bool) -> None:
        """Handle what is in the inbox; wait for something if there is nothing else to do."""
        if wait and self.inbox.empty():
            self._idle()
        while not self.inbox.empty() and not self._stopping:
            self._handle(self.inbox.get())

    def _idle(self) -> None:
        """Wait for the next message; give memory back, and old models up, if it takes a while."""
        self._publish()
        self.check_integrity()
        trim_at: float | None = self.clock() + KEEP_MEMORY_SECONDS
        while True:
            self._expire()
            due = [time for time in (trim_at, self.models.next_expiry()) if time is not None]
            timeout = max(0.001, min(due) - self.clock()) if due else None
            self._round_since = None
            try:
                message = self.inbox.get(timeout=timeout)
            except queue.Empty:
                self._round_since = self.clock()
            else:
                self._round_since = self.clock()
                self._handle(message)
                return
            if trim_at is not None and self.clock() >= trim_at:
                self.memory.trim(0)
                trim_at = None

    def _expire(self) -> None:
        """Put models out of memory that were idle for long."""
        if self.models.expire():
            self._publish()

    def _publish(self) -> None:
        """First the state, then the events: who sees a request's end sees the state after it."""
        self._published = self._snapshot()
        self._waits_since = self.models.cache.waited_for_since
        self.outbox.flush()

    def _handle(self, message: Message) -> None:
        self._handlers[type(message)](message)

    def _stop(self, _: Stop) -> None:
        self._stopping = True
        self._round_since = None

    # -- requests -------------------------------------------------------------------------

    def begin(self, request: Request, *, waited: bool) -> None:
        """The model of `request` is there."""
        request.times.waited_for_load = waited
        request.times.model_ready = self.clock()
        worker = self.models.workers[request.key]
        if not worker.has_work:
            self._turns.begin(worker)
        self.shares.begin(request.owner)
        worker.add(request)
        self.models.packing.start()

    def _cancel(self, message: Cancel) -> None:
        """Harmless if the request has ended already."""
        request = message.request
        request.cancelled = True
        error = RequestAborted("The request was cancelled.")
        worker = self.models.workers.get(request.key)
        if worker is not None and request in worker.requests():
            worker.cancel(request, error)
        else:
            self.models.cancel(request, error)

    def refuse(self, message: Waiting, error: Gpt2ServeError) -> None:
        """End a request or preload that holds no lease (any more)."""
        if isinstance(message, Preload):
            settle(message.done, error)
            return
        self.outbox.fail(message.request.stream, error)
        self._count_ended(message.request, error)

    def request_ended(self, request: Request, error: Gpt2ServeError | None) -> None:
        """A worker is done with a request."""
        self.shares.end(request.owner)
        self._count_ended(request, error)
        self.models.release(request.key)

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
        self._on_request_ended(request)

    # -- the end, and what can be seen ----------------------------------------------------

    def _abort_all(self) -> None:
        error = EngineClosed("The engine was closed.")
        for worker in list(self.models.workers.values()):  # a model may go with its last request
            for request in worker.requests():
                worker.cancel(request, error)
        late: list[Message] = []
        while not self.inbox.empty():
            late.append(self.inbox.get())
        for message in late:
            match message:
                case Submit() | Preload():
                    self.refuse(message, error)
                case Unload(done=done):
                    settle(done, error)
                case Ask():
                    message.run()
        self.models.abort(error)

    def stats(self) -> EngineStats:
        """For any thread. What grows with time is as of now, as the engine thread may be stuck,
        or wait for a load that is."""
        now = self.clock()
        return msgspec.structs.replace(
            self._published,
            oldest_load_wait=_seconds(self._waits_since, now),
            unresponsive=_seconds(self._round_since, now),
            store_reachable=self._store.reachable,
        )

    def _snapshot(self) -> EngineStats:
        workers = self.models.workers.values()
        running = sum(len(worker.scheduler.running) for worker in workers)
        waiting = sum(len(worker.scheduler.waiting) for worker in workers)
        cache, limit = self.models.cache, self._disk_cache_limit
        return EngineStats(
            requests_running=sum(
                len(w.requests()) - len(w.scheduler.waiting) for w in workers if w.has_work
            ),
            requests_waiting=waiting + self.models.requests_waiting,
            requests_limit=self._settings.max_queue,
            sequences_running=running,
            kv_cache_used_bytes=self.pool.used,
            kv_cache_limit_bytes=self.pool.budget,
            model_cache_used_bytes=cache.used,
            model_cache_limit_bytes=cache.budget,
            models_resident=len(workers),
            models_fetching=cache.fetching,
            leases=cache.leases,
            disk_cache_used_bytes=None if limit is None else self._store.disk_cache_bytes,
            disk_cache_limit_bytes=limit,
        )

    def check_integrity(self) -> None:
        self.models.check_integrity()
        self.shares.check_integrity()
        self.pool.check_integrity()
        for worker in self.models.workers.values():
            worker.scheduler.check_integrity()


def _seconds(since: float | None, now: float) -> float:
    return 0.0 if since is None else max(0.0, now - since)
