"""Locks between processes, on files that may be removed: `flock`, which ends with its process."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Self


class FileLock:
    """A lock that is held. Locks of one process exclude each other as those of two do."""

    def __init__(self, descriptor: int, path: Path) -> None:
        self._descriptor = descriptor
        self.path = path

    @classmethod
    def acquire(cls, path: Path, *, shared: bool = False, wait: bool = False) -> Self | None:
        """None if others hold the lock in a way that excludes this one. Raises `OSError`.

        Creates the file; its folder must be there.
        """
        kind = (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB)
        while True:
            descriptor = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o666)
            try:
                fcntl.flock(descriptor, kind)
                if _is_at(descriptor, path):
                    return cls(descriptor, path)
            except BlockingIOError:
                os.close(descriptor)
                return None
            except BaseException:
                os.close(descriptor)
                raise
            # Who held the lock before has removed its file: nobody else would find this one.
            os.close(descriptor)

    @property
    def time(self) -> float:
        """The file's time of modification, which nothing but `set_time` changes."""
        return os.fstat(self._descriptor).st_mtime

    def set_time(self, when: float) -> None:
        os.utime(self._descriptor, (when, when))

    def release(self) -> None:
        os.close(self._descriptor)

    def remove(self) -> None:
        """Release an exclusive lock, and its file with it."""
        self.path.unlink(missing_ok=True)
        os.close(self._descriptor)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Wait for an exclusive lock and hold it. For short work only."""
    lock = FileLock.acquire(path, wait=True)
    assert lock is not None  # noqa: S101
    try:
        yield
    finally:
        lock.release()


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        there = path.stat()
    except FileNotFoundError:
        return False
    here = os.fstat(descriptor)
    return (here.st_dev, here.st_ino) == (there.st_dev, there.st_ino)
