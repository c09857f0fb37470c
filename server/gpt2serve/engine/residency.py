"""Every model's way into memory and out of it: fetched, loaded, pinned, replaced, unloaded.

`ModelCache` decides; here is what follows from it for packages, workers and those who wait.
Part of the engine thread.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterable
from dataclasses import replace
from typing import Protocol

from gpt2serve.engine.fetcher import Fetcher, FetchResult
from gpt2serve.engine.loader import Loader, LoadResult
from gpt2serve.engine.messages import (
    Changed,
    Preload,
    Renewed,
    Submit,
    Unload,
    Unpin,
    Waiting,
)
from gpt2serve.engine.model_cache import EvictReason, ModelCache, RetireReason, State
from gpt2serve.engine.packer import PackResult
from gpt2serve.engine.packing import Packing
from gpt2serve.engine.remember import remember
from gpt2serve.engine.request import Request
from gpt2serve.engine.store import Package
from gpt2serve.engine.unloads import Unloads
from gpt2serve.engine.versions import Versions
from gpt2serve.engine.worker import Host, ModelWorker
from gpt2serve.errors import (
    EngineClosed,
    Gpt2ServeError,
    ModelNotFound,
    ModelUnavailable,
    NotOnDisk,
    PackageError,
    PackageReplaced,
    RequestAborted,
)
from gpt2serve.settings import EngineSettings

#: Models of which it is remembered when they were used.
REMEMBERED = 10_000

#: A fetch or load that fails so may have met a version that is not the newest any more.
_MAY_BE_OUTDATED = (PackageError, PackageReplaced, ModelNotFound)


class ModelHost(Host, Protocol):
    """What this needs from the engine around it."""

    def begin(self, request: Request, *, waited: bool) -> None:
        """The model of `request` is there."""

    def refuse(self, message: Waiting, error: Gpt2ServeError) -> None:
        """End what holds no lease (any more)."""


class Residency:
    """Owned by the engine thread."""

    def __init__(
        self,
        settings: EngineSettings,
        host: ModelHost,
        loader: Loader,
        fetcher: Fetcher,
        versions: Versions,
    ) -> None:
        self._settings = settings
        self._host = host
        self._loader = loader
        self._fetcher = fetcher
        self._versions = versions
        self.cache = ModelCache(
            settings.model_cache_bytes,
            retry_min=settings.load_retry_min,
            retry_max=settings.load_retry_max,
            on_evict=self._evicted,
            on_gone=self._gone,
            rank=self._rank,
        )
        #: By key: resident models; the package of all that the cache knows; who waits for it.
        self.workers: dict[str, ModelWorker] = {}
        self._packages: dict[str, Package] = {}
        self._waiting: dict[str, list[Waiting]] = {}
        #: Held back while a colder model has waited too long for room.
        self._held_back: deque[Submit] = deque()
        #: Ids of models that are to stay in memory, whatever their version.
        self.pins: set[str] = set()
        #: Versions of pinned models, by the key of the version that is to take their place.
        self._outgoing: dict[str, list[str]] = {}
        #: Keys that were fetched once more, as their files had gone from the disk.
        self._fetched_again: set[str] = set()
        self._unloads = Unloads()
        self._last_used: OrderedDict[str, float] = OrderedDict()
        self._expire_at = 0.0
        self._stopped = False
        self.packing = Packing(loader.packer, self.cache, host.clock, self.workers)

    # -- who wants a model ----------------------------------------------------------------

    def submit(self, message: Waiting) -> None:
        self._admit(message)
        self.advance()

    def cancel(self, request: Request, error: Gpt2ServeError) -> None:
        """End a request that waits; harmless if it does not. One that is being renewed ends
        when that is done."""
        for submit in [s for s in self._held_back if s.request is request]:
            self._held_back.remove(submit)
            self._host.refuse(submit, error)
        waiting = self._waiting.get(request.key, [])
        for message in waiting:
            if isinstance(message, Submit) and message.request is request:
                waiting.remove(message)
                if not waiting:
                    del self._waiting[request.key]
                # A load goes on: others may come for it.
                self.release(request.key)
                self._host.refuse(message, error)
                break

    def release(self, key: str) -> None:
        """A lease ends."""
        self.cache.release(key, self._host.clock())
        self.advance()

    def _admit(self, message: Waiting) -> None:
        if isinstance(message, Submit) and message.request.cancelled:
            self._host.refuse(message, RequestAborted("The request was cancelled."))
        elif self._is_outdated(message.package):
            self._versions.renew(message)
        elif isinstance(message, Submit) and message.package.key in self._to_hold_back():
            self._held_back.append(message)
        else:
            self._acquire(message)

    def _acquire(self, message: Waiting) -> None:
        package, now = message.package, self._host.clock()
        key = package.key
        try:
            state = self.cache.acquire(key, package.manifest.bytes_needed, now, local=package.local)
        except Gpt2ServeError as error:
            self._host.refuse(message, error)
            return
        self._packages.setdefault(key, package)
        if isinstance(message, Submit):
            self._host.observer.on_model_wanted(package.model, hit=state is State.RESIDENT)
            remember(self._last_used, package.model, now, most=REMEMBERED)
        else:
            self._take_back_unload(key)
        if state is State.RESIDENT:
            self._begin(message, waited=False)
            return
        self._waiting.setdefault(key, []).append(message)
        if state is State.FETCHING:
            self._fetcher.fetch(package)

    def _begin(self, message: Waiting, *, waited: bool) -> None:
        """The model is there."""
        if isinstance(message, Submit):
            self._host.begin(message.request, waited=waited)
            return
        # What is loaded ahead of requests is packed, too, before that counts as done.
        worker = self.workers[message.package.key]
        if message.pin:
            self.pins.add(message.package.model)
            self.cache.pin(worker.key)
        worker.when_packed.append(message.done)
        if worker.runner.packed:
            worker.tell_packed()
        self.cache.release(worker.key, self._host.clock())
        self.packing.start()

    def _to_hold_back(self) -> set[str]:
        return self.cache.held_back(self._settings.model_max_wait, self._host.clock())

    def _rank(self, key: str) -> float:
        """Of computing, the seconds that the owner has had who waits for it and has had least."""
        waiting = self._waiting.get(key, ())
        owners = {m.request.owner if isinstance(m, Submit) else "" for m in waiting}
        return min(map(self._host.shares.seconds, owners), default=0.0)

    # -- fetches and loads ----------------------------------------------------------------

    def advance(self) -> None:
        """Let begin what can begin now; called after everything that may have made room."""
        going_on = not self._stopped
        while going_on:
            for key, error in self.cache.take_impossible().items():
                for message in self._waiting.pop(key, []):
                    self._host.refuse(message, error)
            for key in self.cache.start_loads(self._host.clock()):
                self._loader.load(self._packages[key])
            going_on = self._retire_outgoing() or self._admit_held_back()

    def _admit_held_back(self) -> bool:
        """Those that need not be held back any more; False if there are none."""
        if not self._held_back:
            return False
        keys = self._to_hold_back()
        free = [s for s in self._held_back if s.package.key not in keys]
        self._held_back = deque(s for s in self._held_back if s.package.key in keys)
        for submit in free:
            self._admit(submit)
        return bool(free)

    def fetched(self, result: FetchResult) -> None:
        package, ok = result.package, result.error is None
        key = package.key
        self._host.observer.on_fetch(package.model, result.seconds, result.size, ok=ok)
        entry = self.cache.get(key)
        if entry is None or entry.state is not State.FETCHING:
            return  # everybody has given up meanwhile
        if result.error is None:
            self._packages[key] = package
            self.cache.fetched(key, self._host.clock())
        else:
            self._failed(package, result.error)
        self.advance()

    def loaded(self, result: LoadResult) -> None:
        package = result.package
        key = package.key
        ok = result.runner is not None
        self._host.observer.on_load(package.model, result.seconds, ok=ok)
        if result.runner is not None:
            self.workers[key] = worker = ModelWorker(
                key,
                result.runner,
                self._host,
                max_batch_size=self._settings.max_batch_size,
                prefill_chunk=self._settings.prefill_chunk,
            )
            self.packing.add(worker)
            if package.model in self.pins:
                self.cache.pin(key)
            self._fetched_again.discard(key)
            self.cache.loaded(key, result.size, self._host.clock())
            for message in self._waiting.pop(key, []):
                self._begin(message, waited=True)
        elif isinstance(result.error, NotOnDisk) and self._may_fetch_again(key):
            self.cache.fetch_again(key, self._host.clock())
            self._fetcher.fetch(replace(package, local=False))
        elif result.error is not None:
            self._failed(package, result.error)
        self.advance()

    def packed(self, result: PackResult) -> None:
        model = self._packages[result.key].model
        self._host.observer.on_pack(model, result.seconds, ok=result.form is not None)
        self.packing.packed(result)
        self.advance()

    def _may_fetch_again(self, key: str) -> bool:
        entry = self.cache.get(key)
        if entry is None or key in self._fetched_again or not (entry.leases or entry.pinned):
            return False
        self._fetched_again.add(key)
        return True

    def _failed(self, package: Package, cause: Exception) -> None:
        """A fetch or load failed. Who waits gets the error, or a newer version if there is one."""
        key, now = package.key, self._host.clock()
        waiting = self._waiting.pop(key, [])
        self._fetched_again.discard(key)
        error: Gpt2ServeError
        if isinstance(cause, PackageReplaced):
            error = cause
            self.cache.forget(key)
        elif isinstance(cause, ModelUnavailable):
            error = cause
            self.cache.unavailable(key, cause, now)
        else:
            error = self.cache.failed(key, f"The model could not be loaded: {cause}", now)
            error.__cause__ = cause
        may_be_outdated = isinstance(cause, _MAY_BE_OUTDATED)
        if may_be_outdated:
            self._versions.doubt(package.model)
        for message in waiting:
            if may_be_outdated:
                self._versions.renew(message, error)
            else:
                self._host.refuse(message, error)

    def _evicted(self, key: str, reason: EvictReason) -> None:
        worker = self.workers.pop(key)
        # At once: the packer frees the rest when it comes to it, which may be after many loads.
        self._fetcher.aside(worker.runner.drop_pages)
        self.packing.remove(worker)
        self._host.observer.on_evict(self._packages[key].model, reason)

    def _gone(self, key: str) -> None:
        """The cache has forgotten it, resident or not."""
        del self._packages[key]
        self._fetcher.drop(key)
        self._fetched_again.discard(key)
        self._unloads.gone(key)

    # -- versions -------------------------------------------------------------------------

    def changed(self, change: Changed) -> None:
        """The store has another version of a model, or has it no more."""
        model, package = change.model, change.package
        new = package.key if package is not None else None
        self._versions.changed(model, new)
        if new is not None:
            self._reinstate(new)
        old = [key for key in self._keys_of(model) if key != new]
        if package is None or model not in self.pins or not old:
            for key in old:
                self._retire(key, "deleted" if package is None else "replaced")
        else:
            # The new version comes before the old one goes, if there is room for both.
            for key in old:
                self.cache.unpin(key)
            self._outgoing[package.key] = [key for key in old if self.cache.get(key) is not None]
            self._acquire(Preload(package, pin=True))
        self.advance()

    def renewed(self, result: Renewed) -> None:
        message, package = result.message, result.package
        self._versions.renewed(result)
        if package is None:
            assert result.error is not None  # noqa: S101
            self._host.refuse(message, result.error)
            return
        if self._is_outdated(package) and self._versions.confirm(package.model, result.known):
            self._reinstate(package.key)  # it is the newest after all
        if isinstance(message, Preload):
            message = replace(message, package=package)
        elif result.prepared is not None:
            message.request.become(result.prepared)
        self.submit(message)

    def _is_outdated(self, package: Package) -> bool:
        entry = self.cache.get(package.key)
        retired = entry is not None and entry.retired
        return retired or self._versions.is_outdated(package)

    def _reinstate(self, key: str) -> None:
        """A version that was retired is published again."""
        entry = self.cache.get(key)
        if entry is not None and entry.retired:
            self.cache.reinstate(key)

    def _retire(self, key: str, reason: RetireReason) -> None:
        entry = self.cache.get(key)
        if entry is not None and not entry.has_memory:
            # It would be fetched or loaded only to be replaced.
            for message in self._waiting.pop(key, []):
                self.cache.release(key, self._host.clock())
                self._versions.renew(message)
        self.cache.retire(key, reason)

    def _retire_outgoing(self) -> bool:
        """Retire versions whose successor is there, or will not come while they are there."""
        retired = False
        for new, old in list(self._outgoing.items()):
            entry = self.cache.get(new)
            if entry is None or entry.state in (State.BLOCKED, State.RESIDENT):
                del self._outgoing[new]
                for key in old:
                    self._retire(key, "replaced")
                    retired = True
        return retired

    def _keys_of(self, model: str) -> list[str]:
        return [key for key, package in self._packages.items() if package.model == model]

    # -- orders ---------------------------------------------------------------------------

    def unpin(self, order: Unpin) -> None:
        self.pins.discard(order.model)
        for key in self._keys_of(order.model):
            self.cache.unpin(key)
        self._expire_at = 0.0  # it may have been idle for long
        self.advance()

    def unload(self, order: Unload) -> None:
        """It takes the pin away too, or the model would come back by itself."""
        self.pins.discard(order.model)
        for key in self._keys_of(order.model):
            self.cache.unload(key)
        self._unloads.add(self._keys_of(order.model), order.done)
        self.advance()

    def _take_back_unload(self, key: str) -> None:
        """Somebody asks for a model that is to go when it can: the later order counts."""
        entry = self.cache.get(key)
        if entry is None or entry.leaving != "unload":
            return
        self.cache.reinstate(key)
        self._unloads.take_back(key)

    def expire(self) -> bool:
        """Evict what was not used for `model_ttl`; False if there is nothing to evict yet.

        To be called often: it looks through the models only when there may be some.
        """
        ttl, now = self._settings.model_ttl, self._host.clock()
        if not ttl or now < self._expire_at:
            return False
        before = len(self.workers)
        self.cache.expire(now, ttl)
        # What is used from now on is there for `ttl` longer, at least.
        due = self.cache.next_expiry(ttl)
        self._expire_at = now + ttl if due is None else due
        return len(self.workers) < before

    def next_expiry(self) -> float | None:
        """When there will be something to evict if nothing is used until then."""
        due = self.cache.next_expiry(self._settings.model_ttl) if self._settings.model_ttl else None
        return None if due is None else max(due, self._expire_at)

    # -- the end, and what can be seen ----------------------------------------------------

    def stop(self) -> None:
        """Nothing begins any more."""
        self._stopped = True
        self.packing.stop()

    def abort(self, error: EngineClosed) -> None:
        """End all who wait."""
        coming = [m for waiting in self._waiting.values() for m in waiting]
        for message in [*self._versions.renewing, *self._held_back, *coming]:
            self._host.refuse(message, error)
        for worker in self.workers.values():
            worker.tell_packed(error)
        self._unloads.abort(error)

    @property
    def requests_waiting(self) -> int:
        """Requests whose model is not there yet, or that are held back."""
        waiting = sum(map(len, self._waiting.values()))
        return waiting + len(self._held_back) + len(self._versions.renewing)

    def package_of(self, key: str) -> Package:
        """Of a model that the cache knows."""
        return self._packages[key]

    def keys_by_model(self, models: Iterable[str]) -> dict[str, list[str]]:
        """What the cache knows of these models: keys of all their versions."""
        found: dict[str, list[str]] = {model: [] for model in models}
        for key, package in self._packages.items():
            if package.model in found:
                found[package.model].append(key)
        return found

    def last_used(self, model: str) -> float | None:
        """On the engine's clock."""
        return self._last_used.get(model)

    def check_integrity(self) -> None:
        self.cache.check_integrity()
        assert self.workers.keys() == self.cache.resident().keys()  # noqa: S101
        assert self._packages.keys() == self.cache.entries.keys()  # noqa: S101
        for key, waiting in self._waiting.items():
            entry = self.cache.get(key)
            assert entry is not None and entry.leases >= len(waiting) > 0, key  # noqa: S101, PT018
            assert entry.state is not State.RESIDENT, key  # noqa: S101
