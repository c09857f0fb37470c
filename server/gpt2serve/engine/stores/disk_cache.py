"""Packages that were fetched from a store, on the disk: least recently used out, in bytes.

Several processes may share a cache. Whoever fetches or removes a thing has its lock exclusively,
whoever uses it has it shared; the time of a lock's file is the time of the last use. A package is
complete as soon as it is in its place: it is renamed into it, and every byte of it was checked
before. `disk_layout` has the names.
"""

from __future__ import annotations

import contextlib
import errno
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from gpt2serve.engine.stores.disk_layout import (
    GONE,
    NEVER,
    DiskLayout,
    Place,
    place_with_lock,
    size_on_disk,
)
from gpt2serve.engine.stores.disk_policy import Entry, evict
from gpt2serve.engine.stores.file_lock import FileLock, locked
from gpt2serve.errors import (
    ModelTooLarge,
    ModelUnavailable,
    NotOnDisk,
    PackageError,
    PackageReplaced,
)
from gpt2serve.package import Manifest, verify_hashes

#: Seconds for which what a killed process has left is kept, to be resumed.
KEEP_PARTS = 24 * 3600.0
#: Seconds for which a tokenizer is not removed after its use: who got its path is to open it yet.
KEEP_TOKENIZER = 60.0
#: Seconds between two looks at a lock that others hold.
PATIENCE = 0.02
#: Bytes that a package takes beside its manifest and the files in it.
OVERHEAD = 64

_BOOT_FILE = ".boot"
_RETRY_FULL = 30.0
_FULL = (errno.ENOSPC, errno.EDQUOT)

_Result = TypeVar("_Result")


class DiskCache:
    """The part of a cache folder that belongs to one store, within what all of it may hold.

    Thread-safe. Every method may raise `OSError` if the folder cannot be used.
    """

    def __init__(
        self, folder: Path, size: int, *, store: str, wall: Callable[[], float] = time.time
    ) -> None:
        """`size` in bytes, for all stores together; `wall` is the clock that files go by."""
        self.layout = DiskLayout(folder, store)
        self._folder_lock = folder / "lock"
        self._size = size
        self._wall = wall
        self._boot = _boot_id()
        #: Used by whoever has the lock of the whole folder.
        self._sizes: dict[Path, int] = {}
        #: Bytes in the whole cache when this process looked last.
        self.used = 0
        self.layout.make()
        self._sweep()

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

    def check_fits(self, size: int) -> None:
        """Raises `ModelTooLarge` if so many bytes can never be in the cache together."""
        if size > self._size:
            raise ModelTooLarge(
                f"The package has {size:,} bytes and the disk cache may hold {self._size:,}; "
                "raise --disk-cache-bytes."
            )

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
            self.layout.make()
            lock = FileLock.acquire(place.lock)
            if lock is None:
                waiting(size_on_disk(place.staging))
                time.sleep(PATIENCE)
            elif place.path.exists():
                lock.release()
            else:
                return lock
        return None

    def _stage(self, place: Place, size: int) -> None:
        """Make room, and the staging folder in the same breath: others count it from now on."""
        self.check_fits(size)
        with locked(self._folder_lock):
            entries = [
                entry for entry in self.layout.entries(self._sizes) if entry.name != str(place.lock)
            ]
            excess = sum(entry.bytes for entry in entries) + size - self._size
            freed = evict(entries, excess, self._remove)
            if freed < excess:
                raise ModelUnavailable(
                    f"The disk cache may hold {self._size:,} bytes and everything in it is in use; "
                    "raise --disk-cache-bytes.",
                    retry_after=_RETRY_FULL,
                )
            self.used = self._size + excess - freed
            place.stage(size)

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
        with locked(self._folder_lock):
            freed = evict(self.layout.entries(self._sizes), size, self._remove)
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
        self.used -= size_on_disk(place.path)
        self._remove_locked(place)
        lock.remove()
        return True

    def _remove(self, entry: Entry) -> bool:
        place = place_with_lock(Path(entry.name))
        lock = FileLock.acquire(place.lock)
        if lock is None:
            return False
        if place.is_tokenizer and self._wall() - lock.time < KEEP_TOKENIZER:
            lock.release()
            return False
        self._remove_locked(place)
        lock.remove()
        return True

    def _remove_locked(self, place: Place) -> None:
        for path in (place.path, place.staging):
            gone = place.home / "staging" / f"{GONE}{uuid.uuid4().hex}"
            with contextlib.suppress(FileNotFoundError):
                path.rename(gone)
                _remove_tree(gone)
        with contextlib.suppress(OSError):
            place.path.parent.rmdir()  # the model's last version

    def _sweep(self) -> None:
        """Remove what killed processes have left, if nobody is likely to come back for it."""
        with locked(self._folder_lock):
            for path in self.layout.staged():
                if path.name.startswith(GONE):
                    _remove_tree(path)
                    continue
                place = Place(self.layout.home, path.name, path)
                if self._wall() - place.last_use > KEEP_PARTS:
                    self._remove(Entry(str(place.lock), 0, NEVER))
            entries = self.layout.entries(self._sizes)
            for path in {*self.layout.locks()} - {Path(entry.name) for entry in entries}:
                lock = FileLock.acquire(path)
                if lock is not None:
                    lock.remove()
            self.used = sum(entry.bytes for entry in entries)


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
