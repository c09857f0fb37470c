"""Memory of a process, and giving back what allocators keep."""

from __future__ import annotations

import ctypes
import gc


def trim() -> None:
    """Give memory that is free, but kept for the next allocation, back to the system.

    Otherwise a load would find pages of the former model ready, which a first load does not.
    """
    gc.collect()
    malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's
    if malloc_trim is not None:
        malloc_trim(0)


def resident(process: int) -> int:
    """Bytes in memory of a process and those that it started."""
    import psutil

    parent = psutil.Process(process)
    return sum(one.memory_info().rss for one in (parent, *parent.children(recursive=True)))
