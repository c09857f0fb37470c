"""What a store is made of: packages, and what answers for the place where they lie."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from gpt2serve.package import TOKENIZER_FILE, Manifest, ModelCard, variant_name

#: Gets the bytes that are there and the bytes of the whole package.
Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Package:
    """A version of a model, as the store describes it."""

    model: str
    #: The folder where its files are, or will be once they are fetched.
    path: Path
    manifest: Manifest
    #: Whether the files were there when the package was resolved.
    local: bool

    @property
    def variant(self) -> str:
        return variant_name(self.manifest.target, self.manifest.precision)

    @property
    def key(self) -> str:
        """Names model, variant and version of the weights."""
        return f"{self.model}/{self.variant}@{self.manifest.version}"

    @property
    def tokenizer_hash(self) -> str:
        return self.manifest.files[TOKENIZER_FILE].sha256


@dataclass(frozen=True, slots=True)
class Seen:
    """A package, and by what to tell that its manifest has not changed since."""

    package: Package
    signature: object


@dataclass(frozen=True, slots=True)
class Described:
    """What a list shows of a model's card, and by what to tell that it has not changed since."""

    card: ModelCard
    signature: int


class Backend(Protocol):
    """One kind of store. Thread-safe; every method may touch disk or network.

    Where a method cannot reach the store it raises `StoreUnavailable`.
    """

    #: Whether packages are used where they lie, so that all of them can be read at any time.
    in_place: bool

    @property
    def disk_cache_bytes(self) -> int:
        """Bytes of what was fetched and is kept."""

    def look(self, model: str, known: Seen | None) -> Seen | None:
        """The package to serve `model` from: `known` itself if nothing changed, None if there
        is none. Raises `PackageError` if it cannot be used."""

    def ids(self) -> Iterator[str] | None:
        """Ids of all models that have a usable variant; None where that cannot be asked."""

    def stored(self, model: str) -> Package | None:
        """The package of `model` that can be served without the store."""

    def stored_ids(self) -> list[str]:
        """Models that can be served without the store."""

    def card(self, model: str, known: Described | None) -> Described | None:
        """The card in the package that lies here: `known` itself if nothing changed, None if
        there is none. Never touches the network, and raises nothing."""

    def nearby(self) -> Iterable[str]:
        """Models whose files may well be on this disk, found without going through all."""

    def is_local(self, package: Package) -> bool:
        """Whether its files are on the disk now."""

    def tokenizer_file(self, package: Package) -> Path: ...

    def fetch(self, package: Package, progress: Progress) -> Package: ...

    def hold(self, package: Package) -> AbstractContextManager[Path]: ...

    def supersede(self, package: Package) -> None:
        """A newer version has taken the place of `package`."""

    def forget(self, package: Package) -> None:
        """The model is no longer in the store."""

    def close(self) -> None: ...


def sort_key(model: str) -> str:
    """Orders ids so that the models of one organisation stay together, as in folders.

    As plain text 'a-b' would come before 'a/b' but after 'a', which holds 'a/b'.
    """
    return f"{model}/"


def page_of(keys: Sequence[str], after: str, limit: int) -> list[str]:
    """Up to `limit` ids after the id `after`, of sorted keys."""
    begin = bisect_right(keys, sort_key(after)) if after else 0
    return [key[:-1] for key in keys[begin : begin + limit]]
