"""One cold start, with the page cache as it is to be, and what it cost."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from benchmarks.coldstart import cooling, memory, page_cache
from benchmarks.coldstart.cooling import ANOTHER_FILE, DROPPED
from benchmarks.coldstart.failing import noting
from benchmarks.coldstart.figures import COLD, WARM
from benchmarks.coldstart.subjects import Subject
from benchmarks.common.measuring import SETTLE_SECONDS, say, undisturbed

Starts = list[dict[str, Any]]

#: From the last token until memory is looked at: what a model takes that is there, and idle.
REST_SECONDS = 1.5


class Rounds:
    """Every subject with each state of the page cache, in turn.

    cold_by: a way of `cooling`, or "" for a page cache that is always warm. starts, failed: for
    the results, filled while it is measured. A subject that fails is left out, with its starts:
    those of one round are compared with each other.
    """

    def __init__(
        self, subjects: Sequence[Subject], cold_by: str, starts: Starts, failed: dict[str, str]
    ) -> None:
        self._running = list(subjects)
        self._cold_by = cold_by
        self._caches = [WARM, COLD] if cold_by else [WARM]
        self._starts = starts
        self._failed = failed
        #: Bytes in memory before the first model came, by process.
        self._empty: dict[int, int] = {}

    def measure(self, count: int) -> None:
        """One start of each comes before and is not counted: what happens once in a process is
        over then."""
        for subject in list(self._running):
            with self._failing(subject):
                self._empty[subject.pid] = memory.resident(subject.pid)
        for subject in list(self._running):
            say(f"{subject.name}: once, not counted")
            with self._failing(subject):
                subject.start()
                subject.stop()
        for number in range(count):
            say(f"round {number + 1} of {count}")
            for subject in list(self._running):
                with self._failing(subject):
                    self._round(subject)

    def _round(self, subject: Subject) -> None:
        for cache in self._caches:
            way = self._cold_by if cache == COLD else ""
            measured = once(subject, way, self._empty[subject.pid])
            self._starts.append({"system": subject.name, "cache": cache, **measured})

    @contextmanager
    def _failing(self, subject: Subject) -> Iterator[None]:
        with noting(self._failed, subject.name):
            yield
        if subject.name in self._failed:
            self._running.remove(subject)
            kept = [one for one in self._starts if one["system"] != subject.name]
            self._starts[:] = kept


def once(subject: Subject, cold_by: str, empty: int) -> dict[str, Any]:
    """The least disturbed of some tries. cold_by: "" if the page cache is to be warm."""
    # All subjects are descendants of this process, so naming them too would count them twice.
    return undisturbed(lambda: _start(subject, cold_by, empty), [os.getpid()])


def _start(subject: Subject, cold_by: str, empty: int) -> dict[str, Any]:
    reading = {}
    if cold_by == ANOTHER_FILE:
        # Before, so that the files of this start are those that the next one, a warm one, finds.
        reading = _reading_alone(subject, cold_by)
    if cold_by:
        cooling.cool(subject.files, cold_by)
    else:
        page_cache.read(subject.files)
    before = page_cache.resident_bytes(subject.files)
    started = subject.start()
    result = {
        "first_ms": _ms(started["first"]),
        "done_ms": _ms(started["done"]),
        "phases_ms": {name: _ms(seconds) for name, seconds in started["phases"].items()},
        "resident_bytes": before,
        "read_bytes": page_cache.resident_bytes(subject.files) - before,
    }
    if not cold_by:
        time.sleep(REST_SECONDS)
    result["loaded_bytes"] = memory.resident(subject.pid) - empty
    subject.stop()
    result["kept_bytes"] = memory.resident(subject.pid) - empty
    if cold_by == DROPPED:
        # After, so that a cache below the page cache can only help reading alone.
        reading = _reading_alone(subject, cold_by)
    return result | reading


def _reading_alone(subject: Subject, cold_by: str) -> dict[str, float]:
    """While no model is there, for what is mapped cannot be dropped."""
    cooling.cool(subject.files, cold_by)
    time.sleep(SETTLE_SECONDS)
    return {"reading_ms": _ms(page_cache.read(subject.files))}


def _ms(seconds: float) -> float:
    return round(1000 * seconds, 3)
