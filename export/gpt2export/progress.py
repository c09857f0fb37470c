"""How far a run over many checkpoints is: a bar in a terminal, now and then a line elsewhere."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Sequence
from typing import Never, TextIO

from tqdm import tqdm

from gpt2export.exporter import Job, Outcome
from gpt2export.table import amount, duration

#: Seconds between two lines in a log.
LOG_EVERY = 30.0
#: Failures that are told as they happen; all are listed at the end.
TOLD = 10
#: The last so many ends of exports say how fast it goes.
_WINDOW = 100
#: Names of what is being worked on that fit into a line.
_NAMED = 4


#: Of a terminal that does not say how wide it is.
_COLUMNS = 80


class Pace:
    """Rate and time left, from when exports ended. Times in seconds, of a monotonic clock."""

    def __init__(self, now: float) -> None:
        self._ends = deque([now], maxlen=_WINDOW + 1)

    def ended(self, now: float) -> None:
        self._ends.append(now)

    def per_minute(self) -> float | None:
        """None before the first has ended."""
        spent = self._ends[-1] - self._ends[0]
        return 60 * (len(self._ends) - 1) / spent if spent > 0 else None

    def left(self, count: int, now: float) -> float | None:
        """Seconds for `count` more, counted from `now`."""
        rate = self.per_minute()
        if rate is None:
            return None
        return max(0.0, count * 60 / rate - (now - self._ends[-1]))


class Progress:
    """Shows one run of `total` checkpoints on `stream`."""

    def __init__(self, total: int, stream: TextIO, *, log_every: float = LOG_EVERY) -> None:
        self._total = total
        self._stream = stream
        self._log_every = log_every
        self._done = self._failed = self._skipped = 0
        self._now: dict[Job, str] = {}
        self._pace: Pace | None = None
        self._logged: float | None = None
        self._bar: tqdm[Never] | None = None
        if stream.isatty():
            columns = _columns(stream)
            self._bar = tqdm(
                total=total,
                file=stream,
                dynamic_ncols=columns > 0,
                ncols=None if columns else _COLUMNS,
                bar_format="{percentage:3.0f}%|{bar:20}| {n_fmt}/{total_fmt}{postfix}",
            )

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()

    def skipped(self, outcomes: Sequence[Outcome]) -> None:
        """A checkpoint was found unchanged, at no cost that says anything about the others."""
        self._skipped += 1
        self._count(outcomes)

    def start(self, now: float) -> None:
        """What has not been skipped begins."""
        self._pace, self._logged = Pace(now), now
        if self._skipped:
            left = self._total - self._done
            self.note(f"{self._skipped:,} exported before and unchanged, {left:,} to do.")

    def working(self, job: Job, text: str) -> None:
        self._now[job] = text

    def paused(self, job: Job) -> None:
        self._now.pop(job, None)

    def finished(self, job: Job, outcomes: Sequence[Outcome], now: float) -> None:
        self.paused(job)
        self._count(outcomes)
        if self._pace is not None:
            self._pace.ended(now)

    def tick(self, now: float) -> None:
        """Call it often: shows what there is to show."""
        if self._bar is not None:
            self._bar.n = self._done
            self._bar.set_postfix_str(self._facts(now), refresh=True)
        elif self._logged is None:
            self._logged = now
        elif now - self._logged >= self._log_every:
            self._logged = now
            self.note(f"{self._done:,}/{self._total:,} done, {self._facts(now)}")

    def note(self, line: str) -> None:
        """A line that stays."""
        if self._bar is not None:
            self._bar.write(line, file=self._stream)
        else:
            print(line, file=self._stream, flush=True)

    def _count(self, outcomes: Sequence[Outcome]) -> None:
        self._done += 1
        failed = next((outcome for outcome in outcomes if outcome.status == "failed"), None)
        if failed is None:
            return
        self._failed += 1
        if self._failed <= TOLD:
            reason, _, _ = failed.message.partition("\n")
            self.note(f"failed: {failed.model}: {reason}")
        if self._failed == TOLD:
            self.note("more failures are listed at the end.")

    def _facts(self, now: float) -> str:
        facts = [f"{self._failed:,} failed"]
        rate = self._pace.per_minute() if self._pace else None
        left = self._pace.left(self._total - self._done, now) if self._pace else None
        if rate is not None and left is not None:
            facts += [f"{amount(rate)}/min", f"{duration(left)} left"]
        if len(self._now) == 1:
            return ", ".join([*facts, *self._now.values()])
        names = [job.model for job in self._now]
        return ", ".join([*facts, *names[:_NAMED]]) + (", ..." if len(names) > _NAMED else "")


def _columns(stream: TextIO) -> int:
    try:
        return os.get_terminal_size(stream.fileno()).columns
    except OSError:
        return 0
