"""Where things lie in a disk cache, and what is there. Every question is answered by the disk.

    CACHE/
        lock                                whoever makes room holds it
        <store>/                            one for each store URL, by its hash
            url                             which one that is
            packages/<model>/<variant>@<manifest hash>/
            tokenizers/<sha256>             one for all models that have it
            staging/<name>/                 what is being fetched, or can be resumed
            locks/<name>                    of the package or tokenizer with that name

A slash of a model's id is '@' here, which no id has in it.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from gpt2serve.engine.stores.disk_policy import Entry
from gpt2serve.package import Manifest, encode_manifest, variant_name

#: Hexadecimal digits of a hash that go into a name.
DIGITS = 16
#: Last use of what is to go first.
NEVER = 0.0
#: Beginning of the names of what is being removed.
GONE = ".gone-"

_SIZE_FILE = ".size"


@dataclass(frozen=True, slots=True)
class Place:
    """Of one package or tokenizer. `name` is that of its lock and its staging folder."""

    home: Path
    name: str
    path: Path

    @property
    def lock(self) -> Path:
        return self.home / "locks" / self.name

    @property
    def staging(self) -> Path:
        return self.home / "staging" / self.name

    @property
    def is_tokenizer(self) -> bool:
        return self.path.parent.name == "tokenizers"

    def stage(self, size: int) -> None:
        """Make the staging folder, and note how many bytes will be in it."""
        self.staging.mkdir(parents=True, exist_ok=True)
        (self.staging / _SIZE_FILE).write_text(str(size), "ascii")

    @property
    def last_use(self) -> float:
        """The time of the lock's file, in seconds."""
        try:
            return self.lock.stat().st_mtime
        except FileNotFoundError:
            return NEVER


class DiskLayout:
    """Of the part of a cache that belongs to one store; `entries` looks at all of them."""

    def __init__(self, folder: Path, store: str) -> None:
        self.folder = folder
        self.home = folder / hashlib.sha256(store.encode()).hexdigest()[:DIGITS]
        self._store = store

    def make(self) -> None:
        for name in ("packages", "tokenizers", "staging", "locks"):
            (self.home / name).mkdir(parents=True, exist_ok=True)
        if not (self.home / "url").exists():
            (self.home / "url").write_text(f"{self._store}\n", "utf-8")

    def package(self, model: str, manifest: Manifest) -> Place:
        """Of a package with this manifest: another manifest, another place."""
        variant = variant_name(manifest.target, manifest.precision)
        digest = hashlib.sha256(encode_manifest(manifest)).hexdigest()[:DIGITS]
        return place_of(self._model(model) / f"{variant}@{digest}")

    def tokenizer(self, sha256: str) -> Place:
        return Place(self.home, f"tokenizer@{sha256}", self.home / "tokenizers" / sha256)

    def versions(self, model: str, variant: str) -> list[Place]:
        """The packages of a model that are here, the one used last first."""
        found = [place_of(path) for path in self._model(model).glob(f"{variant}@*")]
        return sorted(found, key=lambda place: place.last_use, reverse=True)

    def models(self, variants: set[str]) -> list[str]:
        """Ids of all models that are here in one of the variants."""
        return [
            folder.name.replace("@", "/")
            for folder in children(self.home / "packages")
            if any(path.name.partition("@")[0] in variants for path in children(folder))
        ]

    def staged(self) -> list[Path]:
        return children(self.home / "staging")

    def locks(self) -> list[Path]:
        return children(self.home / "locks")

    def entries(self, sizes: dict[Path, int]) -> list[Entry]:
        """Everything in the cache, of all stores; an entry's name is the path of its lock.

        `sizes` is what is known of the bytes of packages and tokenizers, which never change; it
        is brought up to date.
        """
        there: list[Place] = []
        staged: list[Entry] = []
        for home in children(self.folder):
            for model in children(home / "packages"):
                there += map(place_of, children(model))
            for path in children(home / "tokenizers"):
                there.append(place_of_tokenizer(path))
            for path in children(home / "staging"):
                if not path.name.startswith(GONE):
                    place = Place(home, path.name, path)
                    staged.append(Entry(str(place.lock), _size_to_be(path), place.last_use))
        known = dict(sizes)
        sizes.clear()
        sizes.update((p.path, known.get(p.path) or size_on_disk(p.path)) for p in there)
        return staged + [Entry(str(p.lock), sizes[p.path], p.last_use) for p in there]

    def _model(self, model: str) -> Path:
        return self.home / "packages" / model.replace("/", "@")


def place_of(path: Path) -> Place:
    """Of the package whose folder is `path`."""
    return Place(path.parents[2], f"{path.parent.name}@{path.name}", path)


def place_of_tokenizer(path: Path) -> Place:
    return Place(path.parents[1], f"tokenizer@{path.name}", path)


def place_with_lock(lock: Path) -> Place:
    """Of the package or tokenizer that has this lock."""
    home, name = lock.parents[1], lock.name
    if name.startswith("tokenizer@") and name.count("@") == 1:
        return place_of_tokenizer(home / "tokenizers" / name.partition("@")[2])
    model, variant, digest = name.rsplit("@", 2)
    return place_of(home / "packages" / model / f"{variant}@{digest}")


def children(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):  # removed meanwhile, or none of ours
        return []


def size_on_disk(path: Path) -> int:
    """Bytes of a file, or of the files in a folder."""
    try:
        if path.is_file():
            return path.stat().st_size
        return sum(file.stat().st_size for file in path.iterdir())
    except FileNotFoundError:  # removed meanwhile
        return 0


def _size_to_be(staging: Path) -> int:
    """What it takes when it is complete, so that two that grow do not overlook each other."""
    try:
        return int((staging / _SIZE_FILE).read_text("ascii"))
    except (OSError, ValueError):
        return size_on_disk(staging)
