"""Another file each time, for a page cache that cannot be told to forget one. Linux only."""

from __future__ import annotations

import errno
import mmap
import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from benchmarks.coldstart import page_cache
from benchmarks.coldstart.page_cache import PIECE

#: A multiple of what any disk wants O_DIRECT to be aligned to.
_BLOCK = 4096


def replace(files: Iterable[Path]) -> None:
    """Put a new copy of each in its place, under its name.

    What is written in the usual way is in the page cache, so the copy is written past it where
    the file system can do that, and dropped besides. Whether that helped, only
    `page_cache.resident_bytes` can tell.
    """
    for file in files:
        copy = file.with_name(f".{file.name}.copy")
        try:
            _copy(file, copy)
            shutil.copystat(file, copy)
            copy.replace(file)
        finally:
            copy.unlink(missing_ok=True)
        page_cache.ask_to_drop([file])


def _copy(source: Path, target: Path) -> None:
    try:
        _write(source, target, os.O_DIRECT)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
            raise
        _write(source, target, 0)


def _write(source: Path, target: Path, how: int) -> None:
    buffer = mmap.mmap(-1, PIECE)  # which begins with a page, as O_DIRECT wants it
    opened = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | how, 0o600)
    try:
        with source.open("rb", buffering=0) as old:
            size = 0
            while count := old.readinto(buffer):
                blocks = memoryview(buffer)[: -(-count // _BLOCK) * _BLOCK]
                if os.pwrite(opened, blocks, size) != len(blocks):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target))
                size += count
        os.ftruncate(opened, size)  # the last block was written whole
        os.fsync(opened)
    finally:
        os.close(opened)
