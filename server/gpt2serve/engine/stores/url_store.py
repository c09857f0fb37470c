"""Packages in an object store, fetched into a cache on the disk when they are asked for."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from gpt2serve.engine.stores.backend import Described, Package, Progress, Seen
from gpt2serve.engine.stores.disk_cache import OVERHEAD, DiskCache
from gpt2serve.engine.stores.disk_layout import place_of
from gpt2serve.engine.stores.download import Downloader, WrongContent
from gpt2serve.engine.stores.finder import card_in
from gpt2serve.engine.stores.object_store import (
    Content,
    ObjectMissing,
    ObjectStore,
    ObjectUnchanged,
)
from gpt2serve.errors import (
    CorruptPackage,
    EngineClosed,
    ModelUnavailable,
    PackageError,
    PackageReplaced,
)
from gpt2serve.package import (
    MANIFEST_FILE,
    TOKENIZER_FILE,
    check_model_id,
    decode_manifest,
    encode_manifest,
    read_manifest,
    variant_name,
)


class UrlStore:
    """A `Backend` over an `ObjectStore` and a `DiskCache`."""

    in_place = False

    def __init__(
        self, objects: ObjectStore, cache: DiskCache, variants: Sequence[tuple[str, str]]
    ) -> None:
        """`variants`: (target, precision) in order of preference."""
        self._objects = objects
        self._cache = cache
        self._variants = [variant_name(*variant) for variant in variants]
        self._downloader = Downloader(objects, cache.with_room)
        self._closed = False

    @property
    def disk_cache_bytes(self) -> int:
        return self._cache.used

    # -- what there is --------------------------------------------------------------------

    def look(self, model: str, known: Seen | None) -> Seen | None:
        for variant in self._variants:
            mine = known if known is not None and known.package.variant == variant else None
            etag = mine.signature if mine and isinstance(mine.signature, str) else None
            try:
                content = self._objects.read(_path(model, variant, MANIFEST_FILE), etag)
            except ObjectMissing:
                continue
            except ObjectUnchanged:
                assert mine is not None  # noqa: S101
                return mine
            return self._seen(model, variant, content)
        return None

    def _seen(self, model: str, variant: str, content: Content) -> Seen:
        manifest = decode_manifest(content.data, model)
        if variant_name(manifest.target, manifest.precision) != variant:
            raise CorruptPackage(f"{model}: the manifest in {variant} is of another variant.")
        place = self._cache.layout.package(model, manifest)
        package = Package(model, place.path, manifest, local=place.path.exists())
        return Seen(package, content.etag)

    def ids(self) -> Iterator[str] | None:
        return self._listed() if self._objects.listable else None

    def _listed(self) -> Iterator[str]:
        endings = tuple(f"/{variant}/{MANIFEST_FILE}" for variant in self._variants)
        last = ""
        for path in self._objects.list():
            if path.endswith(endings):
                model = path.rsplit("/", 2)[0]
                # The variants of a model come one after the other.
                if model != last and _is_id(model):
                    yield model
                    last = model

    def stored(self, model: str) -> Package | None:
        for variant in self._variants:
            for place in self._cache.layout.versions(model, variant):
                with contextlib.suppress(PackageError):
                    return Package(model, place.path, read_manifest(place.path), local=True)
        return None

    def stored_ids(self) -> list[str]:
        return self._cache.layout.models(set(self._variants))

    def card(self, model: str, known: Described | None) -> Described | None:
        for variant in self._variants:
            for place in self._cache.layout.versions(model, variant):
                signature = hash(place.path)  # which has the manifest's hash in it
                if known is not None and known.signature == signature:
                    return known
                with contextlib.suppress(OSError):
                    return Described(card_in((place.path / MANIFEST_FILE).read_bytes()), signature)
        return None

    def nearby(self) -> list[str]:
        return self.stored_ids()

    def is_local(self, package: Package) -> bool:
        return package.path.exists()

    # -- bringing it here -----------------------------------------------------------------

    def tokenizer_file(self, package: Package) -> Path:
        """One file for all models that have it; it is fetched without the weights."""
        with _cache_errors():
            return self._tokenizer(package)

    def fetch(self, package: Package, progress: Progress) -> Package:
        manifest, place = package.manifest, place_of(package.path)
        raw = encode_manifest(manifest)
        total = sum(entry.bytes for entry in manifest.files.values())

        size = total + len(raw) + OVERHEAD
        # The tokenizer counts in its own place too.
        self._cache.check_fits(size + manifest.files[TOKENIZER_FILE].bytes)

        def waiting(there: int) -> None:
            self._still_wanted()
            progress(min(there, total), total)

        with _cache_errors(), self._cache.filling(place, size, waiting) as folder:
            if folder is not None:
                self._fill(package, folder, lambda done: progress(done, total))
                self._cache.with_room(lambda: (folder / MANIFEST_FILE).write_bytes(raw), len(raw))
                self._cache.publish(place)
        progress(total, total)
        return replace(package, local=True)

    @contextlib.contextmanager
    def hold(self, package: Package) -> Iterator[Path]:
        holding = self._cache.hold(place_of(package.path), package.model, package.manifest)
        with contextlib.ExitStack() as held:
            with _cache_errors():
                path = held.enter_context(holding)
            yield path

    def supersede(self, package: Package) -> None:
        with contextlib.suppress(OSError):
            self._cache.demote(place_of(package.path))

    def forget(self, package: Package) -> None:
        with contextlib.suppress(OSError):
            for place in self._cache.layout.versions(package.model, package.variant):
                self._cache.remove(place)

    def close(self) -> None:
        self._closed = True
        self._downloader.stop()

    def _still_wanted(self, _there: int = 0) -> None:
        if self._closed:
            raise EngineClosed

    def _fill(self, package: Package, folder: Path, progress: Callable[[int], None]) -> None:
        done = 0
        for name, entry in package.manifest.files.items():
            if name == TOKENIZER_FILE:
                _link(self._tokenizer(package), folder / name)
            else:
                self._download(package, name, folder / name, partial(_add, progress, done))
            done += entry.bytes

    def _tokenizer(self, package: Package) -> Path:
        entry = package.manifest.files[TOKENIZER_FILE]
        place = self._cache.layout.tokenizer(entry.sha256)
        while True:
            with self._cache.filling(place, entry.bytes, self._still_wanted) as folder:
                if folder is not None:
                    self._download(package, TOKENIZER_FILE, folder / TOKENIZER_FILE)
                    self._cache.publish(place, TOKENIZER_FILE)
            self._cache.touch(place)
            if place.path.exists():
                return place.path

    def _download(
        self,
        package: Package,
        name: str,
        part: Path,
        progress: Callable[[int], None] = lambda _: None,
    ) -> None:
        """With one attempt from scratch, if what came is not what the manifest says."""
        path = _path(package.model, package.variant, name)
        entry = package.manifest.files[name]
        try:
            try:
                self._downloader.fetch(path, part, entry, progress)
            except WrongContent:
                self._raise_if_replaced(package)
                self._downloader.fetch(path, part, entry, progress)
        except (WrongContent, ObjectMissing) as error:
            self._raise_if_replaced(package)
            what = "is missing" if isinstance(error, ObjectMissing) else "is not what it should be"
            raise CorruptPackage(
                f"{package.model}: {name} {what} in the store; publish the package again."
            ) from error

    def _raise_if_replaced(self, package: Package) -> None:
        try:
            content = self._objects.read(_path(package.model, package.variant, MANIFEST_FILE))
            replaced = decode_manifest(content.data, package.model) != package.manifest
        except ObjectMissing:
            replaced = True
        if replaced:
            raise PackageReplaced(package.model)


def _path(model: str, variant: str, name: str) -> str:
    return f"{model}/{variant}/{name}"


def _is_id(model: str) -> bool:
    try:
        check_model_id(model)
    except PackageError:
        return False
    return True


def _add(progress: Callable[[int], None], before: int, done: int) -> None:
    progress(before + done)


def _link(source: Path, target: Path) -> None:
    """Two names for one file where the file system can; else a copy."""
    target.unlink(missing_ok=True)
    try:
        target.hardlink_to(source)
    except OSError:
        shutil.copyfile(source, target)


@contextlib.contextmanager
def _cache_errors() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ModelUnavailable(
            f"The disk cache cannot be used ({error.strerror or error}).", retry_after=30.0
        ) from error
