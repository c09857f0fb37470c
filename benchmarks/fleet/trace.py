"""Requests of a simulation as arrays, drawn or taken from a load test. Pure."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from benchmarks.load.traffic import TWEET_OUTPUTS, TWEET_PROMPTS, poisson_times, zipf

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Trace:
    """One entry a request, in order of time. models: ranks, 0 is the most popular."""

    times: Floats
    models: Ints
    prompts: Ints
    outputs: Ints

    @property
    def seconds(self) -> float:
        return float(self.times[-1]) if len(self.times) else 0.0


class Popularity:
    """Zipf over `count` models. See `popularity`."""

    def __init__(self, count: int, exponent: float) -> None:
        self.probabilities = zipf(count, exponent)
        self._sums = np.cumsum(self.probabilities)

    def draw(self, count: int, rng: np.random.Generator) -> Ints:
        # The last sum is 1 only up to rounding.
        return np.searchsorted(self._sums[:-1], rng.random(count), side="right").astype(np.int64)


@functools.lru_cache(maxsize=2)
def popularity(count: int, exponent: float) -> Popularity:
    """Made once: a million probabilities take a moment."""
    return Popularity(count, exponent)


def poisson(popularity: Popularity, rate: float, seconds: float, seed: int) -> Trace:
    """Requests like tweets, `rate` a second."""
    rng = np.random.default_rng(seed)
    times = poisson_times(rate, seconds, rng)
    count = len(times)
    return Trace(
        times=times,
        models=popularity.draw(count, rng),
        prompts=TWEET_PROMPTS.draw(count, rng),
        outputs=TWEET_OUTPUTS.draw(count, rng),
    )


def recorded(requests: Sequence[tuple[float, int, int, int]]) -> Trace:
    """From (time, model, prompt tokens, output tokens) of each request, in any order."""
    rows = sorted(requests)
    times, models, prompts, outputs = zip(*rows, strict=True) if rows else ((), (), (), ())
    return Trace(
        times=np.array(times, dtype=np.float64),
        models=np.array(models, dtype=np.int64),
        prompts=np.array(prompts, dtype=np.int64),
        outputs=np.array(outputs, dtype=np.int64),
    )
