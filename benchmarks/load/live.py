"""How a running test looks: one line that changes on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from collections.abc import AsyncIterator
from typing import TextIO

import numpy as np

from benchmarks.load.outcome import UNFINISHED, Outcome, Progress

_TERMINAL_SECONDS = 0.5
_LOG_SECONDS = 5.0
#: Percentiles are of that many requests, the latest.
_LATEST = 1000
_ERASE_LINE = "\r\x1b[2K"


@contextlib.asynccontextmanager
async def shown(progress: Progress) -> AsyncIterator[None]:
    """While the block runs."""
    watching = asyncio.create_task(_show(progress, sys.stderr))
    try:
        yield
    finally:
        watching.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await watching


async def _show(progress: Progress, stream: TextIO) -> None:
    """Until it is cancelled."""
    terminal = stream.isatty()
    try:
        while True:
            await asyncio.sleep(_TERMINAL_SECONDS if terminal else _LOG_SECONDS)
            text = line(progress, time.perf_counter() - progress.start)
            stream.write(_ERASE_LINE + text if terminal else text + "\n")
            stream.flush()
    finally:
        if terminal:
            stream.write(_ERASE_LINE)
            stream.flush()


def line(progress: Progress, seconds: float) -> str:
    """The state after `seconds`. Tokens are those of finished requests."""
    outcomes = progress.outcomes
    done = sum(outcome.code == "ok" for outcome in outcomes)
    failed = sum(outcome.code not in ("ok", UNFINISHED) for outcome in outcomes)
    tokens = sum(outcome.tokens for outcome in outcomes)
    return (
        f"{seconds:5.0f} s  {progress.sent} sent, {progress.sent - len(outcomes)} in flight, "
        f"{done} done, {failed} failed, {tokens / seconds:.0f} tokens/s"
        + _waiting(outcomes[-_LATEST:])
    )


def _waiting(outcomes: list[Outcome]) -> str:
    good = [outcome for outcome in outcomes if outcome.code == "ok"]
    firsts = [outcome.first - outcome.due for outcome in good if outcome.first is not None]
    what, waits = ("first token", firsts) if firsts else ("answer", [o.ended - o.due for o in good])
    if not waits:
        return ""
    half, most = 1000 * np.percentile(waits, (50, 99))
    return f", {what} p50 {half:.0f} p99 {most:.0f} ms"
