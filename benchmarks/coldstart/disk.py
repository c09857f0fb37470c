"""What the disk gives, asked past the page cache and by several readers at once. Linux only."""

from __future__ import annotations

import mmap
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

from benchmarks.coldstart.page_cache import PIECE, size_of

READERS = 4
_TRIES = 3

#: A file that is open, and where to read in it.
_Place = tuple[int, int]


def direct_rate(files: Sequence[Path]) -> float | None:
    """Bytes a second, the best of a few tries; None where the file system refuses O_DIRECT.

    One reader that goes through the page cache waits for the disk and then for a copy, so it
    gets less than the disk has to give.
    """
    places: list[_Place] = []
    with ExitStack() as stack:
        try:
            for file in files:
                opened = os.open(file, os.O_RDONLY | os.O_DIRECT)
                stack.callback(os.close, opened)
                places += [(opened, at) for at in range(0, file.stat().st_size, PIECE)]
            return size_of(files) / min(_seconds(places) for _ in range(_TRIES))
        except OSError:
            return None


def _seconds(places: Sequence[_Place]) -> float:
    begin = time.perf_counter()
    with ThreadPoolExecutor(READERS) as pool:
        list(pool.map(_read, [places[number::READERS] for number in range(READERS)]))
    return time.perf_counter() - begin


def _read(places: Sequence[_Place]) -> None:
    buffer = mmap.mmap(-1, PIECE)  # which begins with a page, as O_DIRECT wants it
    for opened, at in places:
        os.preadv(opened, [buffer], at)
