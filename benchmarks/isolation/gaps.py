"""From what clients saw to figures. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from benchmarks.load.outcome import Outcome

_RANKS = {"p50": 50, "p90": 90, "p99": 99, "max": 100}


def hot_figures(outcomes: Sequence[Outcome], begin: float, end: float) -> dict[str, Any]:
    """Of the hot model's streams: milliseconds between two tokens, and what failed.

    Only gaps that ended between `begin` and `end` count, seconds after the start: in that time
    the disturbance was at work.
    """
    gaps = np.fromiter(_gaps_between(outcomes, begin, end), dtype=np.float64)
    told: dict[str, Any] = {
        "tokens": len(gaps),
        "requests": len(outcomes),
        "failed": sum(outcome.code != "ok" for outcome in outcomes),
        "codes": codes(outcomes),
    }
    if len(gaps):
        ranks = {name: np.percentile(gaps, rank) for name, rank in _RANKS.items()}
        told["gap_ms"] = {
            name: round(1000 * float(value), 3)
            for name, value in (ranks | {"mean": gaps.mean()}).items()
        }
    return told


def _gaps_between(outcomes: Sequence[Outcome], begin: float, end: float) -> Iterable[float]:
    for outcome in outcomes:
        arrived = outcome.first
        for gap in outcome.gaps if arrived is not None else ():
            assert arrived is not None
            arrived += gap
            if begin <= arrived <= end:
                yield gap


def codes(outcomes: Iterable[Outcome]) -> dict[str, int]:
    """Number of requests by code."""
    return dict(sorted(Counter(outcome.code for outcome in outcomes).items()))


def disturber_figures(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Of the requests that disturb: how many, how they ended, and what they waited for a model."""
    loads = [outcome.load_ms for outcome in outcomes if outcome.load_ms]
    prompts = [o.prompt_tokens for o in outcomes if o.prompt_tokens is not None]
    firsts = [outcome.first - outcome.due for outcome in outcomes if outcome.first is not None]
    return {
        "requests": len(outcomes),
        "codes": codes(outcomes),
        "models": len({outcome.ask.model for outcome in outcomes}),
        "loads": len(loads),
        "load_ms": round(float(np.median(loads)), 1) if loads else None,
        "first_ms": round(1000 * float(np.median(firsts)), 1) if firsts else None,
        "prompt_tokens": max(prompts, default=None),
    }
