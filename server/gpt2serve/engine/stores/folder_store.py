"""Packages in a folder, one sub-folder a model. Nothing is copied; they are used where they lie."""

from __future__ import annotations

import contextlib
import os
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path

from gpt2serve.engine.remember import remember
from gpt2serve.engine.stores.backend import Described, Package, Progress, Seen
from gpt2serve.engine.stores.finder import card_in
from gpt2serve.errors import (
    CorruptPackage,
    PackageError,
    PackageReplaced,
    SettingsError,
    StoreUnavailable,
)
from gpt2serve.package import (
    MANIFEST_FILE,
    TOKENIZER_FILE,
    Manifest,
    check_model_id,
    package_path,
    read_manifest,
    variant_name,
    verify_hashes,
)

#: Packages whose hashes are known to be right.
REMEMBERED = 10_000
#: Seconds after which it is worth trying again to read a folder that could not be read.
RETRY_AFTER = 5.0

_Signature = tuple[int, int, int]


class FolderStore:
    """A `Backend`. Nothing is listed or read at start, so that any store opens at once."""

    in_place = True

    def __init__(self, root: Path, variants: Sequence[tuple[str, str]]) -> None:
        """`variants`: (target, precision) in order of preference. Raises `SettingsError`."""
        if not root.is_dir():
            raise SettingsError(
                f"There is no model store at {root}: give --store a folder that gpt2export wrote."
            )
        self._root = root
        self._variants = tuple(variants)
        self._lock = threading.Lock()
        self._verified: OrderedDict[str, list[_Signature]] = OrderedDict()

    @property
    def disk_cache_bytes(self) -> int:
        return 0

    def look(self, model: str, known: Seen | None) -> Seen | None:
        for target, precision in self._variants:
            path = package_path(self._root, model, target, precision)
            try:
                signature = path, _signature((path / MANIFEST_FILE).stat())
            except (FileNotFoundError, NotADirectoryError):
                continue
            except PermissionError as error:
                raise PackageError(f"{model}: its package may not be read.") from error
            except OSError as error:
                raise _unreachable(self._root, error) from error
            if known is not None and known.signature == signature:
                return known
            return Seen(Package(model, path, read_manifest(path), local=True), signature)
        if not self._root.is_dir():
            # Else a folder that is moved or unmounted would take every model with it.
            raise StoreUnavailable(f"The store {self._root} is gone.", retry_after=RETRY_AFTER)
        return None

    def ids(self) -> Iterator[str]:
        names = [variant_name(*variant) for variant in self._variants]
        try:
            with os.scandir(self._root):
                pass
            yield from _models(self._root, names)
        except OSError as error:
            raise _unreachable(self._root, error) from error

    def stored(self, model: str) -> None:
        """Without the folder there is nothing to serve."""

    def stored_ids(self) -> list[str]:
        return []

    def card(self, model: str, known: Described | None) -> Described | None:
        for target, precision in self._variants:
            file = package_path(self._root, model, target, precision) / MANIFEST_FILE
            with contextlib.suppress(OSError):
                signature = hash((target, precision, *_signature(file.stat())))
                if known is not None and known.signature == signature:
                    return known
                return Described(card_in(file.read_bytes()), signature)
        return None

    def nearby(self) -> Iterator[str]:
        return self.ids()

    def is_local(self, package: Package) -> bool:
        return package.local

    def tokenizer_file(self, package: Package) -> Path:
        """Not compared with its hash here: whoever reads it does that."""
        return package.path / TOKENIZER_FILE

    def fetch(self, package: Package, progress: Progress) -> Package:
        size = sum(entry.bytes for entry in package.manifest.files.values())
        progress(size, size)
        return package

    @contextlib.contextmanager
    def hold(self, package: Package) -> Iterator[Path]:
        """Nobody removes packages here but their owner; so this only verifies."""
        try:
            self._verify(package)
        except CorruptPackage as error:
            if self._was_replaced(package):
                raise PackageReplaced(package.model) from error
            raise
        yield package.path

    def supersede(self, package: Package) -> None: ...

    def forget(self, package: Package) -> None: ...

    def close(self) -> None: ...

    def _verify(self, package: Package) -> None:
        """Compare all hashes, once for each version and its files. Raises `CorruptPackage`."""
        try:
            files = [_signature((package.path / name).stat()) for name in package.manifest.files]
        except OSError as error:
            raise CorruptPackage(f"{package.path}: a file cannot be read ({error}).") from error
        with self._lock:
            if self._verified.get(package.key) == files:
                return
        _verify_files(package.path, package.manifest)
        with self._lock:
            remember(self._verified, package.key, files, most=REMEMBERED)

    def _was_replaced(self, package: Package) -> bool:
        try:
            return read_manifest(package.path) != package.manifest
        except PackageError:
            return False


def _verify_files(path: Path, manifest: Manifest) -> None:
    """The one place where a folder's files are compared with their hashes."""
    try:
        verify_hashes(path, manifest)
    except OSError as error:
        raise CorruptPackage(f"{path}: a file cannot be read ({error}).") from error


def _models(root: Path, variants: Sequence[str]) -> Iterator[str]:
    """Two levels of folders: `model` and `organisation/model`."""
    for first in _folders(root):
        if _is_model(first.name, first.path, variants):
            yield first.name
        for second in _folders(first.path):
            model = f"{first.name}/{second.name}"
            if _is_model(model, second.path, variants):
                yield model


def _folders(path: str | Path) -> list[os.DirEntry[str]]:
    """Sub-folders, without the hidden ones: an exporter's work is in some."""
    try:
        with os.scandir(path) as entries:
            return [entry for entry in entries if entry.name[0] != "." and entry.is_dir()]
    except (FileNotFoundError, PermissionError):  # removed meanwhile, or not for us
        return []


def _is_model(model: str, path: str, variants: Sequence[str]) -> bool:
    try:
        check_model_id(model)
    except PackageError:
        return False
    return any(os.path.isfile(f"{path}/{variant}/{MANIFEST_FILE}") for variant in variants)  # noqa: PTH113


def _signature(status: os.stat_result) -> _Signature:
    """Differs if a file was replaced or written to."""
    return status.st_ino, status.st_mtime_ns, status.st_size


def _unreachable(root: Path, error: OSError) -> StoreUnavailable:
    return StoreUnavailable(
        f"The store {root} cannot be read ({error.strerror}).", retry_after=RETRY_AFTER
    )
