"""What the C library's allocator knows, and what it can be asked. glibc; elsewhere, less."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

_C = ctypes.CDLL(None)


class _Mallinfo2(ctypes.Structure):
    """glibc's `struct mallinfo2` (malloc.h)."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            "arena",
            "ordblks",
            "smblks",
            "hblks",
            "hblkhd",
            "usmblks",
            "fsmblks",
            "uordblks",
            "fordblks",
            "keepcost",
        )
    ]


_mallinfo2 = getattr(_C, "mallinfo2", None)
if _mallinfo2 is not None:
    _mallinfo2.restype = _Mallinfo2
_malloc_trim = getattr(_C, "malloc_trim", None)
_mallopt = getattr(_C, "mallopt", None)

#: malloc.h
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_LARGEST = 2**31 - 1


def heap_in_use() -> int:
    """Bytes that are allocated in this process now.

    Exact with glibc, where memory that was freed and is kept for the next does not count.
    """
    if _mallinfo2 is None:
        return private_bytes()
    info = _mallinfo2()
    return int(info.uordblks + info.hblkhd)


def private_bytes() -> int:
    """Resident memory of this process that is not mapped from files."""
    _, resident, shared = Path("/proc/self/statm").read_text().split()[:3]
    return (int(resident) - int(shared)) * os.sysconf("SC_PAGE_SIZE")


def keep_freed_memory() -> None:
    """Let freed memory stay in the process for the next allocation, until `give_back`.

    A page that the kernel hands out costs more than what is written into it: packing a model into
    the memory of one that was evicted takes half the time.
    """
    if _mallopt is not None:
        _mallopt(_M_MMAP_THRESHOLD, _LARGEST)
        _mallopt(_M_TRIM_THRESHOLD, _LARGEST)


def give_back() -> None:
    """Return freed memory to the system. Takes milliseconds."""
    if _malloc_trim is not None:
        _malloc_trim(0)
