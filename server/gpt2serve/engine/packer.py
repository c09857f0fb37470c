"""Packing models, freeing them, and giving back what idle ones do not need.

It comes after whatever decodes: beside other work it gets what that leaves of the cores, and is
done by one thread. A second one helps where nothing else has work.
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from gpt2serve.engine.allocator import give_back, heap_in_use, keep_freed_memory
from gpt2serve.engine.forms import Form, Stage
from gpt2serve.engine.job_thread import Job, JobThread
from gpt2serve.engine.runner import Runner

NICENESS = 10
#: A model that did nothing for that many seconds lets go of the pages of its file. Reading them
#: again costs a first token one or two milliseconds.
REST_SECONDS = 1.0
#: Memory of models that were freed is kept for the next ones for that many seconds.
KEEP_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class PackResult:
    """What the model is to use from now on, and its size in bytes; or `error`."""

    key: str
    seconds: float
    form: Form | None = None
    size: int = 0
    error: Exception | None = None


@dataclass(frozen=True, slots=True)
class _Resting:
    since: float
    runner: weakref.ref[Runner]
    runs: int


class Packer:
    """Results go to `report`, in the packer's thread."""

    def __init__(self, *, report: Callable[[PackResult], None], clock: Callable[[], float]) -> None:
        self._report = report
        self._clock = clock
        self._thread = JobThread("gpt2serve-pack", niceness=NICENESS, between=self._keep_house)
        self._helper = JobThread("gpt2serve-pack-2", niceness=NICENESS)
        #: In the order in which they became idle.
        self._resting: deque[_Resting] = deque()
        self._freed_at: float | None = None

    def start(self) -> None:
        keep_freed_memory()
        self._helper.start()
        self._thread.start()

    def close(self) -> None:
        self._thread.close()
        self._helper.close()

    def do(self, job: Job) -> None:
        """Another job that takes long."""
        self._thread.do(job)

    def pack(self, key: str, runner: Runner, *, alone: bool) -> None:
        """Pack a model that is loaded; it can go on working meanwhile.

        alone: no other model has work that a second thread would disturb.
        """
        self._thread.do(partial(self._pack, key, runner, alone))

    def free(self, runner: Runner) -> None:
        """Give up a model; returning its memory takes milliseconds that nobody waits for here."""
        self._thread.do(partial(self._note_freed, runner))

    def rest(self, runner: Runner) -> None:
        """The model is idle, for now."""
        resting = _Resting(self._clock(), weakref.ref(runner), runner.runs)
        self._thread.do(partial(self._resting.append, resting))

    def drop_pages(self, runner: Runner) -> None:
        """The model has read most of its file for the last time; what it still reads comes back."""
        self._thread.do(runner.drop_pages)

    def _pack(self, key: str, runner: Runner, alone: bool) -> None:  # noqa: FBT001
        started, before = self._clock(), heap_in_use()
        try:
            form = runner.pack(self._in_two_threads if alone else _in_turn)
        except Exception as error:
            result = PackResult(key, self._clock() - started, error=error)
        else:
            size = counted(heap_in_use() - before, runner.manifest.bytes_needed)
            result = PackResult(key, self._clock() - started, form, size)
        self._report(result)

    def _in_two_threads(self, parts: Sequence[Callable[[], Stage]]) -> list[Stage]:
        first, *others = parts
        later = [self._helper.ask(part) for part in others]
        return [first(), *(one.result() for one in later)]

    def _note_freed(self, runner: Runner) -> None:
        runner.when_freed.close()
        self._freed_at = self._clock()

    def _keep_house(self) -> float | None:
        """Do what is due; returns the seconds until something else is."""
        now = self._clock()
        while self._resting and self._resting[0].since + REST_SECONDS <= now:
            resting = self._resting.popleft()
            runner = resting.runner()
            if runner is not None and runner.runs == resting.runs:
                runner.drop_pages()
        if self._freed_at is not None and self._freed_at + KEEP_SECONDS <= now:
            self._freed_at = None
            give_back()
        due = [self._resting[0].since + REST_SECONDS] if self._resting else []
        if self._freed_at is not None:
            due.append(self._freed_at + KEEP_SECONDS)
        return max(0.0, min(due) - now) if due else None


def _in_turn(parts: Sequence[Callable[[], Stage]]) -> list[Stage]:
    return [part() for part in parts]


def counted(measured: int, predicted: int) -> int:
    """What a model counts for in the cache, in bytes: what was measured, within reason.

    Others allocate at the same time, for a KV cache or a tokenizer, or give back. So the
    exporter's own figure is the least that counts, and twice of it the most.
    """
    return min(max(measured, predicted), predicted * 2)
