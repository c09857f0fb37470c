"""Where the time to the first token went. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

#: name, begin, end; in seconds of one clock.
Span = tuple[str, float, float]

REST = "rest"
#: In the order in which they come. Where two phases overlap, the time is the earlier one's.
PHASES = ("check", "session", "warm-up", "model", "context", "load", "prefill", REST)


def split(spans: Sequence[Span], begin: float, end: float) -> dict[str, float]:
    """Seconds from `begin` to `end` by phase; together they are `end - begin`.

    Spans may overlap, as those of threads do, and reach beyond `begin` and `end`. What no span
    covers is `REST`.
    """
    moments = {begin, end, *(moment for _, *both in spans for moment in both)}
    cuts = sorted(moment for moment in moments if begin <= moment <= end)
    seconds: dict[str, float] = {}
    for left, right in pairwise(cuts):
        active = {name for name, since, until in spans if since <= left and right <= until}
        phase = next((name for name in PHASES if name in active), REST)
        seconds[phase] = seconds.get(phase, 0.0) + right - left
    return seconds
