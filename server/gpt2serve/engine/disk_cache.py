"""Packages that were fetched from a store, on the disk: least recently used out, in bytes.

    CACHE/
        lock                                whoever makes room holds it
        <store>/                            one for each store URL, by its hash
            url                             which one that is
            packages/<model>/<variant>@<manifest hash>/
            tokenizers/<sha256>             one for all models that have it
            staging/<name>/                 what is being fetched, or can be resumed
            locks/<name>                    see below

A slash of a model's id is '@' here. Several processes may share a cache. Whoever fetches or
removes a thing has its lock exclusively, whoever uses it has it shared; the time of a lock's file
is the time of the last use. A package is complete as soon as it is in `packages`: it is renamed
into place, and every byte of it was checked before.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import shutil
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from gpt2serve.engine.disk_policy import Entry, evict
from gpt2serve.engine.file_lock import FileLock, locked
from gpt2serve.errors import (
    ModelTooLarge,
    ModelUnavailable,
    NotOnDisk,
    PackageError,
    PackageReplaced,
)
from gpt2serve.package import Manifest, encode_manifest, variant_name, verify_hashes

#: Hexadecimal digits of a hash that go into a name.
DIGITS = 16
#: Seconds for which what a killed process has left is kept, to be resumed.
KEEP_PARTS = 24 * 3600.0
#: Seconds for which a tokenizer is not removed after its use: who got its path is to open it yet.
KEEP_TOKENIZER = 60.0
#: Seconds between two looks at a lock that others hold.
PATIENCE = 0.02
#: Last use of what is to go first.
NEVER = 0.0

#: Bytes that a package takes beside its manifest and the files in it.
OVERHEAD = 64

_BOOT_FILE = ".boot"
_SIZE_FILE = ".size"
_GONE = ".gone-"
_RETRY_FULL = 30.0
_FULL = (errno.ENOSPC, errno.EDQUOT)

_Result = TypeVar("_Result")


@dataclass(frozen=True, slots=True)
class Place:
    """Where something lies in the cache. `name` is that of its lock and its staging folder."""

    home: Path
    kind: str
    name: str
    path: Path

    @property
    def lock(self) -> Path:
        return self.home / "locks" / self.name

    @property
    def staging(self) -> Path:
        return self.home / "staging" / self.name


class DiskCache:
    """The part of a cache folder that belongs to one store, within what all of it may hold.

    Thread-safe. Every method may raise `OSError` if the folder cannot be used.
    """

    def __init__(
        self, folder: Path, size: int, *, store: str, wall: Callable[[], float] = time.time
    ) -> None:
        """`size` in bytes, for all stores together; `wall` is the clock that files go by."""
        self._folder = folder
        self._size = size
        self._wall = wall
        self._home = folder / hashlib.sha256(store.encode()).hexdigest()[:DIGITS]
        self._store = store
        self._boot = _boot_id()
        self._sizes: dict[Path, int] = {}
        self._lock = threading.Lock()
        #: Bytes in the whole cache when this process looked last.
        self.used = 0
        self._make_folders()
        self._sweep()

    # -- places ---------------------------------------------------------------------------

    def package(self, model: str, manifest: Manifest) -> Place:
        """Of a package with this manifest: another manifest, another place."""
        variant = variant_name(manifest.target, manifest.precision)
        digest = hashlib.sha256(encode_manifest(manifest)).hexdigest()[:DIGITS]
        return self._package(model.replace("/", "@"), f"{variant}@{digest}")

    def place_of(self, path: Path) -> Place:
        """Of the package whose folder is `path`."""
        return Place(path.parents[2], "packages", f"{path.parent.name}@{path.name}", path)

    def tokenizer(self, sha256: str) -> Place:
        path = self._home / "tokenizers" / sha256
        return Place(self._home, "tokenizers", f"tokenizer@{sha256}", path)

    def versions(self, model: str, variant: str) -> list[Place]:
        """The packages of a model that are here, the one used last first."""
        folder = self._home / "packages" / model.replace("/", "@")
        found = [self._package(folder.name, path.name) for path in folder.glob(f"{variant}@*")]
        return sorted(found, key=_last_use, reverse=True)

    def models(self, variants: set[str]) -> list[str]:
        """Ids of all models that are here in one of the variants."""
        return [
            folder.name.replace("@", "/")
            for folder in _children(self._home / "packages")
            if any(path.name.partition("@")[0] in variants for path in _children(folder))
        ]

    def _package(self, model: str, version: str) -> Place:
        path = self._home / "packages" / model / version
        return Place(self._home, "packages", f"{model}@{version}", path)

    # -- using ----------------------------------------------------------------------------

    @contextlib.contextmanager
    def hold(self, place: Place, model: str, manifest: Manifest) -> Iterator[Path]:
        """The package's folder; it is not evicted meanwhile, by any process.

        Raises `NotOnDisk` if it is not there, or not whole and therefore removed.
        """
        lock = self._share(place)
        if lock is None:
            raise NotOnDisk(model)
        try:
            if not self._is_whole(place.path, manifest):
                lock.release()
                lock = None
                self.remove(place)
                raise NotOnDisk(model)
            lock.set_time(self._wall())
            yield place.path
        finally:
            if lock is not None:
                self._let_go(place, lock)

    def _let_go(self, place: Place, lock: FileLock) -> None:
        outdated = lock.time == NEVER
        if not outdated:
            lock.set_time(self._wall())
        lock.release()
        if outdated:
            self.remove(place)

    def _share(self, place: Place) -> FileLock | None:
        """None if the package is not there."""
        while place.path.exists():
            lock = FileLock.acquire(place.lock, shared=True)
            if lock is None:
                time.sleep(PATIENCE)  # it is being removed, or looked at
            elif place.path.exists():
                return lock
            else:
                lock.release()
        return None

    def _is_whole(self, path: Path, manifest: Manifest) -> bool:
        """All files with their sizes; and, if the machine was started since, with their hashes:

        the last bytes of a file that was not yet on the disk then may be lost.
        """
        try:
            if any((path / n).stat().st_size != e.bytes for n, e in manifest.files.items()):
                return False
            if (path / _BOOT_FILE).read_text("ascii") != self._boot:
                verify_hashes(path, manifest)
                (path / _BOOT_FILE).write_text(self._boot, "ascii")
        except (FileNotFoundError, PackageError):
            return False
        return True

    # -- filling --------------------------------------------------------------------------

    @contextlib.contextmanager
    def filling(
        self, place: Place, size: int, waiting: Callable[[int], None]
    ) -> Iterator[Path | None]:
        """A folder to be filled with what belongs at `place`, with the rest of an earlier attempt.

        Nobody else fills it meanwhile; None if it is there already, maybe because another process
        has just fetched it. `waiting` gets the bytes that such a process has got so far, and may
        raise. What breaks can be resumed, but a `PackageError` or `PackageReplaced` leaves
        nothing. Raises `ModelTooLarge`, or `ModelUnavailable` if everything else is in use.
        """
        lock = self._exclude(place, waiting)
        if lock is None:
            yield None
            return
        try:
            self.with_room(lambda: self._stage(place, size), size)
            yield place.staging
        except (PackageError, PackageReplaced):
            _remove_tree(place.staging)
            lock.remove()
            raise
        except BaseException:
            if place.staging.exists():
                lock.set_time(self._wall())
                lock.release()
            else:
                lock.remove()
            raise
        lock.set_time(self._wall())
        lock.release()

    def publish(self, place: Place, file: str | None = None) -> None:
        """Move what was filled, or one file of it, to its place."""
        if file is None:
            (place.staging / _BOOT_FILE).write_text(self._boot, "ascii")
        while True:
            place.path.parent.mkdir(parents=True, exist_ok=True)
            try:
                (place.staging / (file or "")).rename(place.path)
                break
            except FileNotFoundError:
                if not place.staging.exists():
                    raise
                # The parent was empty, and another process has tidied up.
        if file is not None:
            shutil.rmtree(place.staging)

    def touch(self, place: Place) -> None:
        """Note that it is used now."""
        lock = FileLock.acquire(place.lock, shared=True)
        if lock is not None:
            lock.set_time(self._wall())
            lock.release()

    def _exclude(self, place: Place, waiting: Callable[[int], None]) -> FileLock | None:
        while not place.path.exists():
            self._make_folders()
            lock = FileLock.acquire(place.lock)
            if lock is None:
                waiting(_size_on_disk(place.staging))
                time.sleep(PATIENCE)
            elif place.path.exists():
                lock.release()
            else:
                return lock
        return None

    def _stage(self, place: Place, size: int) -> None:
        """Make room, and the staging folder in the same breath: others count it from now on."""
        if size > self._size:
            raise ModelTooLarge(
                f"The package has {size:,} bytes and the disk cache may hold {self._size:,}; "
                "raise --disk-cache-bytes."
            )
        with locked(self._folder / "lock"):
            entries = [entry for entry in self._entries() if entry.name != str(place.lock)]
            excess = sum(entry.bytes for entry in entries) + size - self._size
            freed = evict(entries, excess, self._remove)
            if freed < excess:
                raise ModelUnavailable(
                    f"The disk cache may hold {self._size:,} bytes and everything in it is in use; "
                    "raise --disk-cache-bytes.",
                    retry_after=_RETRY_FULL,
                )
            self.used = self._size + excess - freed
            place.staging.mkdir(parents=True, exist_ok=True)
            (place.staging / _SIZE_FILE).write_text(str(size), "ascii")

    # -- making room ----------------------------------------------------------------------

    def with_room(self, write: Callable[[], _Result], size: int) -> _Result:
        """What `write` returns; if the disk is full, after something else was evicted.

        Raises `ModelUnavailable` if nothing can be.
        """
        while True:
            try:
                return write()
            except OSError as error:
                if error.errno not in _FULL:
                    raise
                if not self._free_up(size):
                    raise ModelUnavailable(
                        "The disk of the disk cache is full, and nothing in the cache can be "
                        "removed; give it more room.",
                        retry_after=_RETRY_FULL,
                    ) from error

    def _free_up(self, size: int) -> bool:
        with locked(self._folder / "lock"):
            freed = evict(self._entries(), size, self._remove)
        self.used -= freed
        return freed > 0

    def demote(self, place: Place) -> None:
        """Let it be evicted first, or as soon as nobody holds it any more."""
        if place.path.exists():
            lock = FileLock.acquire(place.lock, shared=True)
            if lock is not None:
                lock.set_time(NEVER)
                lock.release()

    def remove(self, place: Place) -> bool:
        """Remove a package and what was fetched of it; False if somebody holds it: then it goes
        when the last one lets it go."""
        lock = FileLock.acquire(place.lock)
        if lock is None:
            self.demote(place)
            return False
        self._remove_locked(place)
        lock.remove()
        return True

    def _remove(self, entry: Entry) -> bool:
        place = self._found(Path(entry.name))
        lock = FileLock.acquire(place.lock)
        if lock is None:
            return False
        if place.kind == "tokenizers" and self._wall() - lock.time < KEEP_TOKENIZER:
            lock.release()
            return False
        self._remove_locked(place)
        lock.remove()
        return True

    def _remove_locked(self, place: Place) -> None:
        for path in (place.path, place.staging):
            gone = place.home / "staging" / f"{_GONE}{uuid.uuid4().hex}"
            with contextlib.suppress(FileNotFoundError):
                path.rename(gone)
                _remove_tree(gone)
        with contextlib.suppress(OSError):
            place.path.parent.rmdir()  # the model's last version

    def _found(self, lock: Path) -> Place:
        """The place whose lock is at `lock`, of any store in this cache."""
        home, name = lock.parents[1], lock.name
        if name.startswith("tokenizer@"):
            return Place(home, "tokenizers", name, home / "tokenizers" / name.partition("@")[2])
        model, variant, digest = name.rsplit("@", 2)
        return Place(home, "packages", name, home / "packages" / model / f"{variant}@{digest}")

    def _entries(self) -> list[Entry]:
        """Everything in the cache, of all stores; an entry's name is the path of its lock."""
        there: dict[Path, Path] = {}
        found: dict[Path, int] = {}
        for home in _children(self._folder):
            locks = home / "locks"
            for model in _children(home / "packages"):
                for path in _children(model):
                    there[path] = locks / f"{model.name}@{path.name}"
            for path in _children(home / "tokenizers"):
                there[path] = locks / f"tokenizer@{path.name}"
            for path in _children(home / "staging"):
                if not path.name.startswith(_GONE):
                    found[locks / path.name] = _size_to_be(path)
        with self._lock:
            # What is complete never changes.
            known = self._sizes
            self._sizes = {path: known.get(path) or _size_on_disk(path) for path in there}
            found |= {lock: self._sizes[path] for path, lock in there.items()}
        return [Entry(str(lock), size, _time_of(lock)) for lock, size in found.items()]

    def _sweep(self) -> None:
        """Remove what killed processes have left, if nobody is likely to come back for it."""
        with locked(self._folder / "lock"):
            for path in _children(self._home / "staging"):
                if path.name.startswith(_GONE):
                    _remove_tree(path)
                elif self._wall() - _time_of(self._home / "locks" / path.name) > KEEP_PARTS:
                    self._remove(Entry(str(self._home / "locks" / path.name), 0, NEVER))
            entries = self._entries()
            for path in {*_children(self._home / "locks")} - {Path(e.name) for e in entries}:
                lock = FileLock.acquire(path)
                if lock is not None:
                    lock.remove()
            self.used = sum(entry.bytes for entry in entries)

    def _make_folders(self) -> None:
        for name in ("packages", "tokenizers", "staging", "locks"):
            (self._home / name).mkdir(parents=True, exist_ok=True)
        if not (self._home / "url").exists():
            (self._home / "url").write_text(f"{self._store}\n", "utf-8")


def _last_use(place: Place) -> float:
    return _time_of(place.lock)


def _time_of(lock: Path) -> float:
    try:
        return lock.stat().st_mtime
    except FileNotFoundError:
        return NEVER


def _children(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):  # removed meanwhile, or none of ours
        return []


def _size_on_disk(path: Path) -> int:
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
        return _size_on_disk(staging)


def _remove_tree(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _boot_id() -> str:
    """Differs each time that the machine was started."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
    except OSError:
        return ""
