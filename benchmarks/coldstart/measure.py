"""One cold start, with the page cache as it is to be, and what it cost."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from benchmarks.coldstart import memory, page_cache
from benchmarks.coldstart.subjects import Subject
from benchmarks.common.measuring import say, undisturbed

WARM, COLD = "warm", "cold"


def rounds(subjects: Sequence[Subject], count: int, caches: Sequence[str]) -> list[dict[str, Any]]:
    """Every subject with each state of the page cache, in turn, `count` times.

    One start of each comes before and is not counted: what happens once in a process is over then.
    """
    empty = {}
    for subject in subjects:
        say(f"{subject.name}: once, not counted")
        empty[subject.name] = memory.resident(subject.pid)
        subject.start()
        subject.stop()
    entries = []
    for number in range(count):
        say(f"round {number + 1} of {count}")
        for subject in subjects:
            for cache in caches:
                measured = once(subject, cache, empty[subject.name])
                entries.append({"system": subject.name, "cache": cache, **measured})
    return entries


def once(subject: Subject, cache: str, empty: int) -> dict[str, Any]:
    """The least disturbed of some tries. empty: bytes in memory before the first model came."""
    processes = [os.getpid(), *memory.family(subject.pid)]
    return undisturbed(lambda: _start(subject, cache, empty), processes)


def _start(subject: Subject, cache: str, empty: int) -> dict[str, Any]:
    if cache == COLD:
        page_cache.drop(subject.files)
    else:
        page_cache.read(subject.files)
    started = subject.start()
    result = {
        "first_ms": _ms(started["first"]),
        "done_ms": _ms(started["done"]),
        "phases_ms": {name: _ms(seconds) for name, seconds in started["phases"].items()},
        "read_bytes": page_cache.resident_bytes(subject.files),
        "loaded_bytes": memory.resident(subject.pid) - empty,
    }
    subject.stop()
    result["kept_bytes"] = memory.resident(subject.pid) - empty
    if cache == COLD:
        page_cache.drop(subject.files)
        result["reading_ms"] = _ms(page_cache.read(subject.files))
    return result


def _ms(seconds: float) -> float:
    return round(1000 * seconds, 3)
