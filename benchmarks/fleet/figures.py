"""What is told of a number of requests, simulated or real. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.fleet.trace import Floats, Ints

_RANKS = (50, 90, 99)


@dataclass(frozen=True)
class Requests:
    """One entry a request. due: when it came, in seconds. Latencies in seconds after that.

    first: to the first token. total: to the last. Infinite for those that were not answered.
    """

    due: Floats
    first: Floats
    total: Floats
    tokens: Ints
    hits: npt.NDArray[np.bool_]

    def between(self, begin: float, end: float = math.inf) -> Requests:
        """Those that were due then."""
        chosen = (self.due >= begin) & (self.due < end)
        return Requests(
            self.due[chosen],
            self.first[chosen],
            self.total[chosen],
            self.tokens[chosen],
            self.hits[chosen],
        )


def figures(requests: Requests) -> dict[str, Any]:
    """Latencies in milliseconds, None if so many failed that there is no such percentile."""
    answered = np.isfinite(requests.total)
    ends = requests.due + np.where(answered, requests.total, 0.0)
    seconds = float(ends.max() - requests.due.min()) if len(ends) else 0.0
    tokens = int(requests.tokens[answered].sum())
    return {
        "requests": len(requests.due),
        "failed": int(np.count_nonzero(~answered)),
        "tokens_per_second": round(tokens / seconds, 2) if seconds else 0.0,
        "hit_ratio": round(float(requests.hits.mean()), 4) if len(requests.hits) else 0.0,
        "first_ms": percentiles(requests.first),
        "total_ms": percentiles(requests.total),
    }


def percentiles(seconds: Floats) -> dict[str, float | None]:
    """Never between two values, of which one may be infinite."""
    if not len(seconds):
        return {f"p{rank}": None for rank in _RANKS}
    values = np.percentile(seconds, _RANKS, method="higher")
    return {
        f"p{rank}": round(1000 * float(value), 2) if np.isfinite(value) else None
        for rank, value in zip(_RANKS, values, strict=True)
    }


def relative_errors(predicted: dict[str, Any], measured: dict[str, Any]) -> dict[str, float | None]:
    """Predicted over measured, less 1, for each figure of both; by "first_ms p99" and the like."""
    errors: dict[str, float | None] = {}
    for name, was in flat(measured).items():
        told = flat(predicted)[name]
        errors[name] = round(told / was - 1, 4) if was and told is not None else None
    return errors


def flat(values: dict[str, Any]) -> dict[str, float | None]:
    """Figures that can be compared, by "hit_ratio", "first_ms p99" and so on."""
    told: dict[str, float | None] = {
        name: values[name] for name in ("tokens_per_second", "hit_ratio")
    }
    for name in ("first_ms", "total_ms"):
        told |= {f"{name} {rank}": value for rank, value in values[name].items()}
    return told
