"""Where model packages are: a folder, one sub-folder a model.

Nothing is listed or read at start, so a store of a hundred thousand models opens at once.
A package that is published again is noticed at the next request for it.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from gpt2serve.errors import ModelNotFound, SettingsError
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

REMEMBERED = 10_000


@dataclass(frozen=True, slots=True)
class Package:
    """A package in the store. `key` names model, variant and version of the weights."""

    model: str
    path: Path
    manifest: Manifest

    @property
    def key(self) -> str:
        manifest = self.manifest
        return (
            f"{self.model}/{variant_name(manifest.target, manifest.precision)}@{manifest.version}"
        )

    @property
    def tokenizer_path(self) -> Path:
        return self.path / TOKENIZER_FILE

    @property
    def tokenizer_hash(self) -> str:
        return self.manifest.files[TOKENIZER_FILE].sha256


def sort_key(model: str) -> str:
    """Orders ids so that the models of one organisation stay together, as in folders.

    As plain text 'a-b' would come before 'a/b' but after 'a', which holds 'a/b'.
    """
    return f"{model}/"


def _in_order(folder: Path) -> list[Path]:
    return sorted(folder.iterdir(), key=lambda path: sort_key(path.name))


class ModelStore:
    """Finds packages. Thread-safe; every method may touch the disk."""

    def __init__(self, root: Path, variants: Sequence[tuple[str, str]]) -> None:
        """`variants`: (target, precision) in order of preference. Raises `SettingsError`."""
        if not root.is_dir():
            raise SettingsError(
                f"There is no model store at {root}: give --store a folder that gpt2export wrote."
            )
        self.root = root
        self._variants = tuple(variants)
        self._lock = threading.Lock()
        self._known: OrderedDict[Path, tuple[tuple[int, int, int], Package]] = OrderedDict()
        self._verified: dict[str, list[tuple[int, int, int]]] = {}

    def resolve(self, model: str) -> Package:
        """The package to serve `model` from.

        Raises `InvalidModelId`, `ModelNotFound`, or `PackageError` if it cannot be used.
        """
        for target, precision in self._variants:
            path = package_path(self.root, model, target, precision)
            try:
                status = (path / MANIFEST_FILE).stat()
            except (FileNotFoundError, NotADirectoryError):
                continue
            return self._read(model, path, _signature(status))
        raise ModelNotFound(model)

    def verify(self, package: Package) -> None:
        """Compare all hashes, once for each version and its files. Raises `CorruptPackage`."""
        files = [_signature((package.path / name).stat()) for name in package.manifest.files]
        if self._verified.get(package.key) == files:
            return
        verify_hashes(package.path, package.manifest)
        self._verified[package.key] = files

    def models(self) -> Iterator[str]:
        """Ids of all models that have a usable variant, in order of `sort_key`."""
        for first in _in_order(self.root):
            if self._is_model(first.name):
                yield first.name
            if first.is_dir() and not first.name.startswith("."):
                for second in _in_order(first):
                    if self._is_model(f"{first.name}/{second.name}"):
                        yield f"{first.name}/{second.name}"

    def _is_model(self, model: str) -> bool:
        try:
            check_model_id(model)
        except Exception:
            return False
        return any(
            (package_path(self.root, model, *variant) / MANIFEST_FILE).is_file()
            for variant in self._variants
        )

    def _read(self, model: str, path: Path, signature: tuple[int, int, int]) -> Package:
        with self._lock:
            known = self._known.get(path)
            if known is not None and known[0] == signature:
                self._known.move_to_end(path)
                return known[1]
        package = Package(model, path, read_manifest(path))
        with self._lock:
            self._known[path] = (signature, package)
            while len(self._known) > REMEMBERED:
                self._known.popitem(last=False)
        return package


def _signature(status: os.stat_result) -> tuple[int, int, int]:
    """Differs if a file was replaced or written to."""
    return status.st_ino, status.st_mtime_ns, status.st_size
