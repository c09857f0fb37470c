"""What of a file is in the page cache; putting it there, and taking it out. Linux only."""

from __future__ import annotations

import ctypes
import mmap
import os
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

#: Bytes that are read at a time.
PIECE = 1024 * 1024
#: Seconds in which dropped pages must be gone.
_PATIENCE = 1.0
_POLL_SECONDS = 0.02
_DROP_ALL = Path("/proc/sys/vm/drop_caches")


class NotDropped(Exception):
    """The page cache keeps a file, so there is no cold start to measure."""


def files_in(path: Path) -> list[Path]:
    """`path` itself, or all files below it."""
    return [path] if path.is_file() else sorted(one for one in path.rglob("*") if one.is_file())


def size_of(files: Iterable[Path]) -> int:
    return sum(file.stat().st_size for file in files)


def resident_bytes(files: Iterable[Path]) -> int:
    """Bytes of them that are in the page cache. Looks without reading, so nothing changes."""
    return sum(_resident_bytes(file) for file in files)


def _resident_bytes(file: Path) -> int:
    size = file.stat().st_size
    if not size:
        return 0
    pages = np.zeros(-(-size // mmap.PAGESIZE), dtype=np.uint8)
    with (
        file.open("rb") as stream,
        mmap.mmap(stream.fileno(), size, prot=mmap.PROT_READ) as mapped,
    ):
        address = np.frombuffer(mapped, dtype=np.uint8).ctypes.data
        if _mincore(address, size, pages.ctypes.data):
            raise OSError(ctypes.get_errno(), "mincore failed", str(file))
    return min(size, int((pages & 1).sum()) * mmap.PAGESIZE)


def _mincore(address: int, size: int, pages: int) -> int:
    mincore = ctypes.CDLL(None, use_errno=True).mincore
    mincore.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p)
    return int(mincore(address, size, pages))


def drop(files: Sequence[Path]) -> None:
    """Take them out of the page cache, and look whether they are.

    The whole page cache goes if that is what it takes and is allowed. Raises `NotDropped`.
    """
    for ask in (ask_to_drop, _drop_everything):
        ask(files)
        deadline = time.monotonic() + _PATIENCE
        while time.monotonic() < deadline:
            if not resident_bytes(files):
                return
            time.sleep(_POLL_SECONDS)
    left = resident_bytes(files)
    raise NotDropped(
        f"{left:,} of {size_of(files):,} bytes stay in the page cache: another process has mapped "
        "them, or the file system keeps them (tmpfs does). Use --cache with a folder on a disk."
    )


def ask_to_drop(files: Iterable[Path]) -> None:
    """Without looking whether it helped."""
    for file in files:
        with file.open("rb") as stream:
            os.fsync(stream.fileno())  # pages that are not on the disk yet would stay
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _drop_everything(files: Iterable[Path]) -> None:
    del files
    try:
        _DROP_ALL.write_text("3")
    except OSError:  # only root may, and not in every container
        return


def read(files: Iterable[Path]) -> float:
    """Seconds that it takes to read them from beginning to end, as the file system reads ahead."""
    buffer = bytearray(PIECE)
    begin = time.perf_counter()
    for file in files:
        with file.open("rb", buffering=0) as stream:
            while stream.readinto(buffer):
                pass
    return time.perf_counter() - begin
