"""Which replica gets a request. Pure policy, as Envoy does it.

`HashedBounded` is Envoy's `ring_hash` with `hash_balance_factor`: a model has a home on a ring of
hashes; if the home has more active requests than its slots, the other replicas are asked in an
order that depends on the model alone, and the first that is not above its slots takes it. Slots
are `factor` times the average of active requests, rounded up. So a replica never has more than
its slots plus one when it is chosen.
"""

from __future__ import annotations

import math
import random
from bisect import bisect_left
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

#: Points of each replica on the ring. With 256 the largest share of the ring is some 15 % more
#: than the average; Envoy's `minimum_ring_size` sets it.
POINTS = 256
BALANCE_FACTOR = 1.5
_MASK = 2**64 - 1
_MODELS, _POINTS = 1 << 60, 1 << 61  # so that a model is never hashed like a point


def hashed(number: int) -> int:
    """64 bits in which every bit depends on every bit of `number` (splitmix64)."""
    mixed = (number + 0x9E3779B97F4A7C15) & _MASK
    mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & _MASK
    return mixed ^ (mixed >> 31)


class Ring:
    """A consistent hash: without one replica, only the models of that one have a new home."""

    def __init__(self, replicas: Sequence[int], points: int = POINTS) -> None:
        placed = sorted(
            (hashed(_POINTS | replica << 24 | point), replica)
            for replica in replicas
            for point in range(points)
        )
        self._places = [place for place, _ in placed]
        self._replicas = [replica for _, replica in placed]

    def home(self, model: int) -> int:
        """The replica at the first point that is not before the model's."""
        place = bisect_left(self._places, hashed(_MODELS | model))
        return self._replicas[place % len(self._replicas)]

    def homes(self, models: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """`home` of each."""
        return np.fromiter((self.home(model) for model in models.tolist()), np.int64, len(models))


class Router(Protocol):
    """`alive`: ids of the replicas. `active`: requests of each replica, by its id."""

    def alive(self, replicas: Sequence[int]) -> None:
        """From now on these are there; called before anything else."""

    def choose(self, model: int, active: Sequence[int], total: int) -> int: ...

    def usual(self, model: int) -> int:
        """Where a request goes if no replica is above its share: for filling caches."""


class HashedBounded:
    def __init__(self, factor: float | None = BALANCE_FACTOR) -> None:
        self._factor = factor

    def alive(self, replicas: Sequence[int]) -> None:
        self._alive = list(replicas)
        self._ring = Ring(replicas)
        self._homes: dict[int, int] = {}
        self._orders: dict[int, list[int]] = {}

    def usual(self, model: int) -> int:
        home = self._homes.get(model)
        if home is None:
            home = self._homes[model] = self._ring.home(model)
        return home

    def slots(self, total: int) -> int:
        """Active requests of a replica above which it gets no more."""
        if self._factor is None:
            return total + 1
        allowed = math.ceil((total + 1) * self._factor)
        return max(1, -(-allowed // len(self._alive)))

    def choose(self, model: int, active: Sequence[int], total: int) -> int:
        home = self.usual(model)
        slots = self.slots(total)
        if active[home] <= slots:
            return home
        least = home
        for replica in self._order(model):
            if active[replica] <= slots:
                return replica
            if active[replica] < active[least]:
                least = replica
        return least

    def _order(self, model: int) -> list[int]:
        """Not the next on the ring, which would move the overload on to one neighbour."""
        order = self._orders.get(model)
        if order is None:
            shuffled = random.Random(hashed(model)).sample(self._alive, len(self._alive))
            order = self._orders[model] = shuffled
        return order


class Uniform:
    """Any replica."""

    def __init__(self, seed: int) -> None:
        self._rng = random.Random(seed)

    def alive(self, replicas: Sequence[int]) -> None:
        self._alive = list(replicas)

    def usual(self, model: int) -> int:  # noqa: ARG002
        return self._rng.choice(self._alive)

    def choose(self, model: int, active: Sequence[int], total: int) -> int:  # noqa: ARG002
        return self._rng.choice(self._alive)


class LeastRequests(Uniform):
    """Of two replicas at random, the one with fewer active requests: Envoy's LEAST_REQUEST."""

    def choose(self, model: int, active: Sequence[int], total: int) -> int:  # noqa: ARG002
        first, second = (self._rng.choice(self._alive) for _ in range(2))
        return second if active[second] < active[first] else first


ROUTINGS = ("hash", "random", "least requests")


def router(routing: str, seed: int, balance: float | None = BALANCE_FACTOR) -> Router:
    """One of `ROUTINGS`. balance: for the hash; None for one without bounded load."""
    match routing:
        case "hash":
            return HashedBounded(balance)
        case "random":
            return Uniform(seed)
        case "least requests":
            return LeastRequests(seed)
    raise ValueError(f"There is no routing {routing!r}.")
