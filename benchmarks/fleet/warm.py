"""Caches as they are after a long time, without simulating it; and Che's approximation. Pure."""

from __future__ import annotations

import numpy as np

from benchmarks.fleet.routing import Router
from benchmarks.fleet.trace import Floats, Popularity

#: Requests drawn at once, and the most that are drawn for each place in the caches.
_DRAWN = 4096
_MOST = 200


def contents(
    popularity: Popularity, router: Router, replicas: int, places: int, seed: int
) -> list[list[int]]:
    """For each replica the models in its LRU cache, the least recently used first.

    An LRU cache of N places holds the last N different models that were asked for. So requests
    are drawn backwards in time until every cache has N: an exact sample, as long as requests go
    where the router usually sends them.
    """
    rng = np.random.default_rng((seed, 1))
    caches: list[dict[int, None]] = [{} for _ in range(replicas)]
    full = 0
    for _ in range(max(1, replicas * places * _MOST // _DRAWN)):
        for model in popularity.draw(_DRAWN, rng).tolist():
            cache = caches[router.usual(model)]
            if len(cache) < places and model not in cache:
                cache[model] = None
                full += len(cache) == places
        if full == replicas:
            break
    return [list(cache)[::-1] for cache in caches]


def che_hit_ratio(probabilities: Floats, places: int) -> float:
    """Hits of an LRU cache, if requests are independent and models are there at once.

    A model is in the cache if it was asked for within the last T requests, where T is such that
    `places` models were on average (Che, Tung and Wang, 2002).
    """
    if places >= len(probabilities):
        return 1.0
    low, high = 0.0, 1.0
    while _expected(probabilities, high) < places:
        low, high = high, 2 * high
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if _expected(probabilities, middle) < places else (low, middle)
    return float(np.sum(probabilities * -np.expm1(-probabilities * high)))


def _expected(probabilities: Floats, window: float) -> float:
    """Different models among `window` requests."""
    return float(np.sum(-np.expm1(-probabilities * window)))
