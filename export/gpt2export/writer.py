"""Publishes a package: all of it, or nothing.

A package is written into a temporary folder inside the store, hence on the same file system,
flushed to disk, and renamed into place. One rename is atomic, but it cannot replace a folder
that holds files. So an old package is swapped with the new one in one step
(`renameat2(RENAME_EXCHANGE)`, Linux) and removed afterwards, from the temporary folder. Where
the system has no such call, the old one is renamed away first: a kill between the two renames
leaves no package for an instant, never half of one, and the old one can still be found in
the temporary folder.

A lock on the temporary folder's own lock file says that its exporter lives. Folders without a
living owner are removed by the next exporter that uses the store.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from gpt2export.errors import StoreError

#: Not a valid model id, so that a server never looks inside.
PREFIX = ".export-"
_LOCK = "lock"
#: Held while staging folders are made and swept, so that a new one is not taken for a stale one.
_STORE_LOCK = ".export.lock"

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
#: What the call says where the kernel or the file system does not know it.
_UNKNOWN_CALL = (errno.ENOSYS, errno.EINVAL, errno.EPERM)
#: What a rename says to a folder that holds files.
_OCCUPIED = (errno.ENOTEMPTY, errno.EEXIST)


@contextlib.contextmanager
def staging(store: Path) -> Iterator[Path]:
    """A temporary folder inside `store`, removed at the end. Raises `StoreError`."""
    try:
        with _swept(store):
            folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=store))
            lock = _open_lock(folder / _LOCK)
            fcntl.flock(lock, fcntl.LOCK_EX)
    except OSError as error:
        raise StoreError(f"{store} cannot be written ({error}).") from error
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def sweep(store: Path) -> None:
    """Remove what killed exporters left. Raises `StoreError` if the store cannot be written."""
    try:
        with _swept(store):
            pass
    except OSError as error:
        raise StoreError(f"{store} cannot be written ({error}).") from error


@contextlib.contextmanager
def _swept(store: Path) -> Iterator[None]:
    store.mkdir(parents=True, exist_ok=True)
    with _locked(store / _STORE_LOCK):
        _remove_stale(store)
        yield


def _remove_stale(store: Path) -> None:
    """Remove what exporters that were killed left behind."""
    for folder in store.glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError), _locked(folder / _LOCK, wait=False):
            shutil.rmtree(folder)


@contextlib.contextmanager
def _locked(path: Path, *, wait: bool = True) -> Iterator[None]:
    """Hold the lock of `path`. Without `wait`, raises `BlockingIOError` if another holds it."""
    lock = _open_lock(path)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(lock)


def _open_lock(path: Path) -> int:
    return os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)


def publish(finished: Path, destination: Path) -> None:
    """Move the folder `finished`, which lies in a staging folder, to `destination`.

    Atomic: whoever looks finds the old folder or the new one. Raises `StoreError`.
    """
    try:
        _flush(finished)
        destination.parent.mkdir(parents=True, exist_ok=True)
        _replace(finished, destination)
        _sync_folder(destination.parent)
    except OSError as error:
        raise StoreError(f"{destination} cannot be published ({error}).") from error


def _replace(finished: Path, destination: Path) -> None:
    try:
        finished.rename(destination)
    except OSError as error:
        if error.errno not in _OCCUPIED:
            raise
    else:
        return
    if _exchange(finished, destination):
        return  # `finished` is the old package now; the staging folder's end removes it
    aside = finished.with_name(f"{finished.name}.replaced")
    destination.rename(aside)
    finished.rename(destination)


def _exchange(one: Path, other: Path) -> bool:
    """Swap two folders in one step; False where the system cannot."""
    if sys.platform != "linux":
        return False
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:
        return False
    paths = os.fsencode(one), os.fsencode(other)
    if renameat2(_AT_FDCWD, paths[0], _AT_FDCWD, paths[1], _RENAME_EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in _UNKNOWN_CALL:
        return False
    raise OSError(number, os.strerror(number), str(other))


def _flush(folder: Path) -> None:
    """Everything to disk before the name appears, so that a power cut leaves no empty files."""
    for path in sorted(folder.rglob("*")):
        if path.is_dir():
            _sync_folder(path)
            continue
        path.chmod(0o644)
        with path.open("rb") as file:
            os.fsync(file.fileno())
    folder.chmod(0o755)
    _sync_folder(folder)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
