"""How a figure is taken: nobody else is computing, or the figure says so."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from typing import Any

from benchmarks.common import machine

#: A measurement during which other work took more of the cores than this is disturbed.
QUIET = 0.05
#: How often a measurement that other work disturbs is made.
TRIES = 3
#: Idle worker threads spin for a moment after their last work; nobody is measured meanwhile.
SETTLE_SECONDS = 0.1


def say(text: str) -> None:
    """A line of progress, on stderr."""
    print(f"==> {text}", file=sys.stderr, flush=True)


def undisturbed(
    work: Callable[[], dict[str, Any]], processes: list[int], tries: int = TRIES
) -> dict[str, Any]:
    """The result of `work` with the share of the cores that others took meanwhile, as "others".

    processes: ids of those that do the work. If others take more than `QUIET`, it is done again,
    at most `tries` times, and the least disturbed run counts: chosen by what others did, never by
    how fast it was.
    """
    results: list[dict[str, Any]] = []
    while len(results) < tries and not any(result["others"] <= QUIET for result in results):
        time.sleep(SETTLE_SECONDS)
        watch = machine.OtherWork(processes)
        result = work()
        others = watch.share()
        if math.isnan(others):
            return result | {"others": 0.0}
        results.append(result | {"others": others})
    return min(results, key=lambda result: float(result["others"]))


def disturbance(entries: list[dict[str, Any]]) -> str:
    """A sentence for the report about the "others" of all `entries`."""
    others = [entry["others"] for entry in entries if "others" in entry]
    if not others:
        return ""
    disturbed = sum(share > QUIET for share in others)
    return (
        f"Other work took more than {QUIET:.0%} of the cores in {disturbed} of {len(others)} "
        f"measurements, {max(others):.0%} at most."
        + (" Distrust the disturbed ones: run again on a quiet machine." if disturbed else "")
    )


def note_failure(failed: dict[str, str], system: str, error: Exception) -> None:
    """One system's failure: it is left out from here on, the others are measured on.

    failed: for the results, the last line of what went wrong by system. Whoever calls this drops
    what it has measured of the system, since ratios are taken round by round.
    """
    failed[system] = (str(error).strip().splitlines() or [type(error).__name__])[-1]
    say(f"{system} FAILED and is left out from here on:\n{error}")


def failures(failed: dict[str, str]) -> str:
    """A sentence for the report."""
    if not failed:
        return ""
    listed = "; ".join(f"{system} ({reason})" for system, reason in failed.items())
    return f"**Failed, and left out:** {listed}."
