"""Caches as they are after a long time, without simulating it; and Che's approximation. Pure."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from benchmarks.fleet.routing import Router, hashed
from benchmarks.fleet.trace import Floats, Popularity

#: Requests drawn at once, and the most that are drawn for each place in the caches.
_DRAWN = 4096
_MOST = 200
_PAST = 1 << 62  # so that this is not drawn like anything else


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


class Past:
    """Which replica has had which model since its process began: drawn, since that was long ago.

    A server checks the hashes of a model's files when it loads it for the first time. To take it
    that every replica has had every model would make random routing look better than it is.
    requests: of all models together since then; a model is there unless it got none of them.
    homes: the replica that gets all of a model's requests; None if each gets as many.
    """

    def __init__(
        self,
        popularity: Popularity,
        requests: float,
        replicas: int,
        homes: Callable[[int], int] | None,
    ) -> None:
        self._probabilities, self._homes = popularity.probabilities, homes
        self._requests = requests if homes else requests / replicas

    def had(self, replica: int, model: int) -> bool:
        if self._homes and self._homes(model) != replica:
            return False
        share = -np.expm1(-self._requests * self._probabilities[model])
        return hashed(_PAST | replica << 40 | model) < float(share) * 2**64


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
