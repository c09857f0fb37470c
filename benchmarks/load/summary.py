"""From outcomes to figures. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.load.outcome import UNFINISHED, Outcome

#: The client fell behind if one send in a hundred was later than that.
LATE_MS = 20.0


def summary(outcomes: Sequence[Outcome], seconds: float) -> dict[str, Any]:
    """The figures of a measurement that lasted `seconds`.

    Latencies are of requests that went well, in milliseconds, from the time when they were due;
    one that was cut off counts with the time that it had waited, so that slow ones cannot hide.
    Rates are of the work done between 0 and `seconds`: what came later, while the last answers
    were awaited, does not count. Requests that were due before 0, to warm up, count for the rates
    only. Where nothing can be told, the value is None.
    """
    counted = [outcome for outcome in outcomes if outcome.due >= 0]
    good = [outcome for outcome in counted if outcome.code == "ok"]
    cut = [outcome for outcome in counted if outcome.code == UNFINISHED]
    firsts = [one.first - one.due for one in good + cut if one.first is not None]
    # Whole answers have no first token at all.
    streamed = any(one.first is not None for one in outcomes)
    waiting = [one.ended - one.due for one in cut if one.first is None] if streamed else []
    return {
        "seconds": round(seconds, 3),
        "requests": len(counted),
        "ok": len(good),
        "codes": dict(sorted(Counter(outcome.code for outcome in counted).items())),
        "offered_per_second": _rate((one.due < seconds for one in counted), seconds),
        **rates(outcomes, seconds),
        "prompt_tokens": _mean(one.prompt_tokens for one in good if one.prompt_tokens is not None),
        "output_tokens": _mean(one.tokens for one in good),
        "ttft_ms": percentiles(firsts + waiting),
        "per_token_ms": percentiles(time for one in good if (time := per_token(one)) is not None),
        "gap_ms": percentiles(gap for one in good for gap in one.gaps),
        "end_to_end_ms": percentiles(one.ended - one.due for one in good + cut),
        "lag_ms": percentiles(one.sent - one.due for one in counted),
        "cold": cold_starts(good),
    }


def rates(outcomes: Sequence[Outcome], seconds: float) -> dict[str, float]:
    """Requests and tokens done per second; an answer under way at either end counts in part."""
    done = [(one, share_inside(one, seconds)) for one in outcomes if one.code in ("ok", UNFINISHED)]
    return {
        "requests_per_second": _rate((share * _finished(one) for one, share in done), seconds),
        "tokens_per_second": _rate((share * one.tokens for one, share in done), seconds),
    }


def _finished(outcome: Outcome) -> float:
    """How much of the answer there is."""
    return 1.0 if outcome.code == "ok" else min(1.0, outcome.tokens / outcome.ask.tokens)


def percentiles(seconds: Iterable[float]) -> dict[str, float] | None:
    """p50, p90, p99 and the greatest, in milliseconds; None of nothing."""
    values = 1000 * np.fromiter(seconds, dtype=np.float64)
    if not len(values):
        return None
    ranks = {"p50": 50, "p90": 90, "p99": 99, "max": 100}
    return {name: round(float(np.percentile(values, rank)), 2) for name, rank in ranks.items()}


def per_token(outcome: Outcome) -> float | None:
    """Seconds per token after the first; of a whole answer, per token of all its time."""
    if outcome.first is None:
        return (outcome.ended - outcome.sent) / outcome.tokens if outcome.tokens else None
    return (outcome.ended - outcome.first) / (outcome.tokens - 1) if outcome.tokens > 1 else None


def share_inside(outcome: Outcome, seconds: float) -> float:
    """How much of the answer came between 0 and `seconds`, if it came evenly."""
    begin = outcome.sent if outcome.first is None else outcome.first
    length = outcome.ended - begin
    if length <= 0:
        return float(0 <= begin <= seconds)
    return max(0.0, min(outcome.ended, seconds) - max(begin, 0.0)) / length


def cold_starts(outcomes: Sequence[Outcome]) -> dict[str, Any] | None:
    """Share of requests that waited for a model to be loaded; None where the server keeps quiet."""
    told = [outcome.load_ms for outcome in outcomes if outcome.load_ms is not None]
    if not told:
        return None
    waited = [load_ms for load_ms in told if load_ms > 0]
    return {
        "share": round(len(waited) / len(told), 4),
        "load_ms": percentiles(load_ms / 1000 for load_ms in waited),
    }


def wrong_lengths(outcomes: Iterable[Outcome]) -> list[tuple[int, int]]:
    """Tokens that were asked for and that came, of each answer that went well but differs."""
    good = (one for one in outcomes if one.code == "ok")
    return [(one.ask.tokens, one.tokens) for one in good if one.tokens != one.ask.tokens]


def fell_behind(figures: Mapping[str, Any]) -> bool:
    """Whether the client itself was too slow for an open loop, so that its figures are too bad."""
    lag = figures["lag_ms"]
    return lag is not None and lag["p99"] > LATE_MS


def _rate(amounts: Iterable[float], seconds: float) -> float:
    return round(sum(amounts) / seconds, 3) if seconds > 0 else 0.0


def _mean(values: Iterable[float]) -> float | None:
    numbers = list(values)
    return round(sum(numbers) / len(numbers), 2) if numbers else None
