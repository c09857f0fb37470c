"""Where models come from, as the engine sees it: a folder or a URL behind one interface.

Nothing is listed or read at start, so a store of a hundred thousand models opens at once. A
package that is published again is noticed when its model is asked for, `refresh` seconds after
the last look at the latest. A store that does not answer is left alone for some seconds; what is
on the disk goes on being served.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

from gpt2serve.engine.stores.backend import (
    Backend,
    Described,
    Package,
    Progress,
    Seen,
    page_of,
    sort_key,
)
from gpt2serve.engine.stores.catalog import Catalog
from gpt2serve.engine.stores.disk_cache import DiskCache
from gpt2serve.engine.stores.finder import Finder, brief
from gpt2serve.engine.stores.folder_store import FolderStore
from gpt2serve.engine.stores.known_models import NEVER, Answer, Known, KnownModels
from gpt2serve.engine.stores.object_store import ObjectStore
from gpt2serve.engine.stores.reachability import Reachability
from gpt2serve.engine.stores.url_store import UrlStore
from gpt2serve.errors import (
    ModelNotFound,
    PackageError,
    PackageReplaced,
    SettingsError,
    StoreUnavailable,
)
from gpt2serve.package import ModelCard, check_model_id
from gpt2serve.settings import allows_http, is_url

#: Seconds for which a store that did not answer is not asked.
PAUSE = 5.0

#: Models that are looked at in search of one that can be used.
_TRIES = 3


def _backend(
    root: str | Path, variants: Sequence[tuple[str, str]], disk_cache: Path | None, size: int
) -> Backend:
    url = str(root)
    if not is_url(url):
        return FolderStore(Path(root), variants)
    if disk_cache is None:
        raise SettingsError(f"The store {url} needs a folder for its packages: --disk-cache DIR.")
    objects = ObjectStore(url, allow_http=allows_http(url))
    try:
        cache = DiskCache(disk_cache, size, store=url)
    except OSError as error:
        reason = error.strerror or error
        raise SettingsError(f"--disk-cache {disk_cache} cannot be used ({reason}).") from error
    return UrlStore(objects, cache, variants)


def _ignore(*_: object) -> None: ...


class ModelStore:
    """Finds, fetches and holds packages. Thread-safe; every method may touch disk or network.

    `on_change` gets a model and its new package, or None if the model was deleted, when `resolve`
    or a renewed list notices that another version took the place of a known one. It is called in
    any thread and must not wait for one.
    """

    def __init__(
        self,
        root: str | Path,
        variants: Sequence[tuple[str, str]],
        *,
        refresh: float = 0.0,
        disk_cache: Path | None = None,
        disk_cache_bytes: int = 2**63,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`variants`: (target, precision) in order of preference; `refresh` in seconds.

        A `root` that is a URL needs `disk_cache`, a folder. Raises `SettingsError`.
        """
        self.on_change: Callable[[str, Package | None], None] = _ignore
        self._backend = _backend(root, variants, disk_cache, disk_cache_bytes)
        self._refresh = refresh
        self._clock = clock
        self._lock = threading.Lock()
        self._known = KnownModels()
        self._reachability = Reachability(PAUSE)
        self._catalog = Catalog(
            self._ids, refresh=refresh, clock=clock, on_renewed=self._look_for_deleted
        )
        self._finder = Finder(self._describe, self._describable, clock=clock)

    # -- one model ------------------------------------------------------------------------

    def resolve(self, model: str) -> Package:
        """The package to serve `model` from.

        Raises `InvalidModelId`, `ModelNotFound`, `PackageError` if it cannot be used, or
        `StoreUnavailable` if nothing is known of it and the store does not answer.
        """
        state = self._known.get(check_model_id(model))
        if not self._is_fresh(state):
            if self._is_failing():
                self._probe(model, state)
                return self._without_store(model, state)
            self._ask(model, state)
            if self._is_failing():
                return self._without_store(model, state)
        return self._answer(model, state)

    def doubt(self, model: str) -> None:
        """Let the next `resolve` look, however fresh what is known of `model` is. Never blocks."""
        self._known.doubt(model)

    def peek(self, model: str) -> Package | None:
        """What is known of `model`, without looking: never touches disk or network."""
        return self._known.peek(model)

    def tokenizer_file(self, package: Package) -> Path:
        """Fetched if need be. Raises `CorruptPackage` or `StoreUnavailable`."""
        with self._noticing(package):
            return self._backend.tokenizer_file(package)

    def fetch(self, package: Package, progress: Progress = _ignore) -> Package:
        """Make `package` local; blocks until it is, and every byte was checked.

        Raises `CorruptPackage`, `PackageReplaced`, `StoreUnavailable`, or `ModelUnavailable` if
        there is no room for it on the disk.
        """
        with self._noticing(package):
            return self._backend.fetch(package, progress)

    @property
    def disk_cache_bytes(self) -> int:
        """Bytes in the disk cache, as of the last time that it was looked through."""
        return self._backend.disk_cache_bytes

    @property
    def reachable(self) -> bool:
        """Whether the store answered when it was asked last. Never blocks."""
        return not self._reachability.failing

    @contextlib.contextmanager
    def hold(self, package: Package) -> Iterator[Path]:
        """The package's folder, which nobody evicts from the disk cache meanwhile.

        Raises `CorruptPackage`, `PackageReplaced`, or `NotOnDisk` if it was evicted before.
        """
        with contextlib.ExitStack() as held:
            with self._noticing(package):
                path = held.enter_context(self._backend.hold(package))
            yield path

    def verify(self, package: Package) -> None:
        """Raises `CorruptPackage` if a file is not what the manifest says."""
        with self.hold(package):
            pass

    # -- all models -----------------------------------------------------------------------

    def list(
        self,
        after: str = "",
        limit: int = 100,
        *,
        search: str = "",
        among: Iterable[str] | None = None,
    ) -> list[str]:
        """Up to `limit` ids that come after the id `after`, in order of `sort_key`; with a
        `search` in the order of `SearchIndex`. `among` leaves out all others.

        From an index that is renewed behind the caller's back; only the very first call waits
        for it. Raises `StoreUnavailable` if there is no list yet and the store does not answer.
        """
        if among is not None:
            return self._finder.find_among(_keys(among), search, after, limit)
        try:
            keys = self._catalog.keys()
        except StoreUnavailable:
            keys = _keys(self._ids_here())
            if not keys:
                raise
            return self._finder.find_among(keys, search, after, limit)
        if not search:
            return page_of(keys, after, limit)
        return self._finder.find(keys, search, after, limit)

    def card(self, model: str) -> ModelCard | None:
        """What is known of the model's card, without looking: for a list, so without examples."""
        package = self._known.peek(model)
        return brief(package.manifest.card) if package else self._finder.card(model)

    def any_local(self) -> Package | None:
        """One of the packages on this disk, whichever is found first."""
        for model in islice(self._backend.nearby(), _TRIES):
            with contextlib.suppress(ModelNotFound, PackageError, StoreUnavailable):
                package = self.resolve(model)
                if package.local:
                    return package
        return None

    def close(self) -> None:
        self._finder.close()
        self._backend.close()

    # -- asking the store -----------------------------------------------------------------

    def _is_fresh(self, state: Known) -> bool:
        return self._clock() - state.checked < self._refresh

    def _is_failing(self) -> bool:
        with self._lock:
            return self._reachability.failing

    def _ask(self, model: str, state: Known) -> None:
        """One thread asks; others wait for it only if nothing is known of the model."""
        if not state.asking.acquire(blocking=state.checked == NEVER):
            return
        try:
            if self._is_fresh(state) or self._is_failing():
                return  # another thread has asked while this one waited
            self._look(model, state)
        finally:
            state.asking.release()

    def _look(self, model: str, state: Known) -> None:
        """Ask the store, and tell what has changed. Whoever calls holds `state.asking`."""
        old = state.answer
        known = old if isinstance(old, Seen) else None
        new: Answer
        try:
            new = self._backend.look(model, known)
        except StoreUnavailable as error:
            if error.everywhere:
                with self._lock:
                    self._reachability.failed(self._clock())
                return
            # Of this model the store says nothing, but it speaks.
            new = known or error
        except PackageError as error:
            new = error
        with self._lock:
            self._reachability.worked()
        self._known.learn(model, state, new, self._clock())
        if known is not None and not isinstance(new, Exception):
            self._tell(model, known.package, new.package if new else None)

    def _tell(self, model: str, old: Package, new: Package | None) -> None:
        if new is None:
            self._backend.forget(old)
            self.on_change(model, None)
            return
        if new.path != old.path:
            self._backend.supersede(old)
        if new.key != old.key:
            self.on_change(model, new)

    def _answer(self, model: str, state: Known) -> Package:
        answer = state.answer
        if isinstance(answer, Seen):
            package = answer.package
            local = self._backend.is_local(package)
            return package if package.local == local else replace(package, local=local)
        if answer is None:
            raise ModelNotFound(model)
        raise _copy(answer)

    # -- without the store ----------------------------------------------------------------

    def _probe(self, model: str, state: Known) -> None:
        """See whether the store answers again, while the request goes on without it."""
        with self._lock:
            if not self._reachability.take_probe(self._clock()):
                return

        def probe() -> None:
            with state.asking:
                self._look(model, state)

        threading.Thread(target=probe, name="gpt2serve-store-probe", daemon=True).start()

    def _without_store(self, model: str, state: Known) -> Package:
        if isinstance(state.answer, Seen):
            if self._backend.is_local(state.answer.package):
                return self._answer(model, state)
        elif isinstance(state.answer, PackageError):
            return self._answer(model, state)
        elif (package := self._backend.stored(model)) is not None:
            self._known.learn(model, state, Seen(package, None), NEVER)
            return package
        with self._lock:
            retry_after = self._reachability.retry_after(self._clock())
        raise StoreUnavailable(
            f"The store does not answer, and {model!r} is not in the disk cache.",
            retry_after=retry_after,
        )

    @contextlib.contextmanager
    def _noticing(self, package: Package) -> Iterator[None]:
        """Whoever finds a package replaced lets the next request look at once."""
        try:
            yield
        except PackageReplaced:
            self.doubt(package.model)
            raise
        except StoreUnavailable as error:
            if error.everywhere:
                with self._lock:
                    self._reachability.failed(self._clock())
            raise

    # -- the index ------------------------------------------------------------------------

    def _ids(self) -> Iterable[str]:
        if self._is_failing():
            raise StoreUnavailable("The store does not answer.", retry_after=PAUSE)
        ids = self._backend.ids()
        return self._ids_here() if ids is None else ids

    def _ids_here(self) -> set[str]:
        """Models that are known without a listing."""
        return {*self._known.models(), *self._backend.stored_ids()}

    def _describable(self, ids: Sequence[str]) -> Iterable[str]:
        return ids if self._backend.in_place else self._ids_here()

    def _describe(self, model: str, known: Described | None) -> Described | None:
        if not self._backend.in_place and (package := self._known.peek(model)) is not None:
            return Described(brief(package.manifest.card), hash(package.key))
        return self._backend.card(model, known)

    def _look_for_deleted(self, ids: set[str]) -> None:
        """Models that are known and not in the list: gone, or published while it was made."""
        for model in self._known.models():
            if model in ids or self._is_failing():
                continue
            state = self._known.get(model)
            if not self._is_fresh(state):
                self._ask(model, state)


def _keys(models: Iterable[str]) -> list[str]:
    return sorted(map(sort_key, models))


def _copy(error: PackageError | StoreUnavailable) -> Exception:
    """An error of its own for each caller: raising one object in many threads mixes them up."""
    if isinstance(error, StoreUnavailable):
        return StoreUnavailable(str(error), retry_after=error.retry_after, everywhere=False)
    return type(error)(str(error))


__all__ = ["ModelStore", "Package", "sort_key"]
