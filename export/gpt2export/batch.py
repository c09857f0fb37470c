"""Many checkpoints: what is unchanged is found first, the rest goes to processes.

Every process holds one checkpoint at a time, so memory is bounded by their number.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace

from gpt2export.exporter import Job, Options, Outcome, failures, unchanged
from gpt2export.pool import Died, Event, Finished, Pool, Working
from gpt2export.progress import Progress
from gpt2export.writer import sweep

#: Seconds that running exports have to end after the first Ctrl-C.
GRACE = 10.0

#: Seconds between looks at the clock and at Ctrl-C.
TICK = 0.2

#: Threads that look for unchanged checkpoints. They wait for file systems, mostly.
_LOOKING = 8
#: How many of those are looked at between two looks at Ctrl-C.
_PORTION = 256

INTERRUPTED = "interrupted"
FULL = "the store takes no more"

_WANT_OF_MEMORY = (
    " It is mostly for want of memory: a 124M model takes up to 1.7 GB while it is exported to "
    "int8, and 2.4 GB to fp16, larger ones more in proportion. Try a smaller --jobs."
)


class Batch:
    """One run over `jobs`. Iterate over `run()` once.

    interrupts: how often Ctrl-C was pressed. After the first nothing new is begun and what runs
    may end within `GRACE` seconds, after the second it is killed.
    """

    def __init__(
        self,
        jobs: Sequence[Job],
        options: Options,
        processes: int,
        progress: Progress,
        interrupts: Callable[[], int] = lambda: 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._options = options
        self._processes = processes
        self._progress = progress
        self._interrupts = interrupts
        self._clock = clock
        self._stop_at: float | None = None
        self._waiting = deque(jobs)
        self._left = len(jobs)
        #: Their process died once. They run again when nothing else does.
        self._again: deque[Job] = deque()
        self._tried: set[Job] = set()
        #: Why nothing new was begun, if that is so.
        self.stopped = ""

    @property
    def left(self) -> int:
        """How many have not been done."""
        return self._left

    def run(self) -> Iterator[list[Outcome]]:
        """The outcomes of each job as it ends; goes on after failures.

        Raises `ExportError` if no process can be started.
        """
        yield from self._skip()
        if not self._waiting:
            return
        sweep(self._options.store)
        processes = max(1, min(self._processes, len(self._waiting)))
        each = replace(self._options, threads=max(1, self._options.threads // processes))
        with closing(Pool(processes, each)) as pool:
            self._progress.start(self._clock())
            while not self._is_over(pool):
                for event in pool.events(TICK):
                    yield from self._take(event)
                self._progress.tick(self._clock())

    def _skip(self) -> Iterator[list[Outcome]]:
        """What is exported and unchanged, as far as that is known without reading weights."""
        options, todo = self._options, self._waiting
        rest: list[Job] = []
        with ThreadPoolExecutor(_LOOKING) as threads:
            while todo and not self._interrupts():
                portion = [todo.popleft() for _ in range(min(_PORTION, len(todo)))]
                found = list(threads.map(lambda job: unchanged(job, options), portion))
                rest += [job for job, outcomes in zip(portion, found, strict=True) if not outcomes]
                for outcomes in filter(None, found):
                    self._left -= 1
                    self._progress.skipped(outcomes)
                    yield outcomes
                self._progress.tick(self._clock())
        todo.extendleft(reversed(rest))

    def _is_over(self, pool: Pool) -> bool:
        """Begins what can be begun. True when nothing runs any more."""
        self._look_at_interrupts(pool)
        if not self.stopped:
            while pool.free and self._waiting:
                self._begin(pool, self._waiting.popleft())
            if self._again and not pool.busy:
                self._begin(pool, self._again.popleft())
        return not pool.busy

    def _begin(self, pool: Pool, job: Job) -> None:
        pool.begin(job)
        self._progress.working(job, job.model)

    def _look_at_interrupts(self, pool: Pool) -> None:
        times, now = self._interrupts(), self._clock()
        if times and self._stop_at is None:
            self.stopped, self._stop_at = INTERRUPTED, now + GRACE
            if pool.busy:
                self._progress.note(
                    f"stopping: what runs has {GRACE:.0f} s to end; Ctrl-C again stops at once."
                )
        if times > 1 or (self._stop_at is not None and now >= self._stop_at):
            pool.close()
            sweep(self._options.store)  # of what they were writing

    def _take(self, event: Event) -> Iterator[list[Outcome]]:
        match event:
            case Working(job, text):
                self._progress.working(job, text)
            case Finished(job, outcomes):
                if any(outcome.fatal for outcome in outcomes):
                    self.stopped = self.stopped or FULL
                yield self._ended(job, outcomes)
            case Died(job, reason) if job not in self._tried:
                self._tried.add(job)
                self._again.append(job)
                self._progress.note(f"{job.model}: the process ended ({reason}); tried again later")
                self._progress.paused(job)
            case Died(job, reason):
                message = f"The exporting process ended twice ({reason}), the second time alone."
                if "SIGKILL" in reason or "alloc" in reason:
                    message += _WANT_OF_MEMORY
                yield self._ended(job, failures(job, self._options, message))

    def _ended(self, job: Job, outcomes: list[Outcome]) -> list[Outcome]:
        self._left -= 1
        self._progress.finished(job, outcomes, self._clock())
        return outcomes
