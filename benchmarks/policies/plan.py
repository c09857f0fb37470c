"""What is simulated. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.fleet.trace import Ints
from benchmarks.policies import traces
from benchmarks.policies.belady import Belady
from benchmarks.policies.costs import Costs
from benchmarks.policies.gdsf import GDSF
from benchmarks.policies.lru import LRU
from benchmarks.policies.policy import Policy
from benchmarks.policies.s3_fifo import S3FIFO
from benchmarks.policies.sieve import Sieve
from benchmarks.policies.slru import SLRU
from benchmarks.policies.tiny_lfu import WTinyLFU
from benchmarks.policies.traces import KINDS, Kind, Shape, Trace

BASE, OPTIMUM, AGING = "LRU", "Belady", "LFU-DA"
#: By name: a policy for a budget in bytes and a trace, whose keys only Belady's looks at.
POLICIES: dict[str, Callable[[int, Trace], Policy]] = {
    BASE: lambda _budget, _trace: LRU(),
    "SLRU": lambda budget, _trace: SLRU(budget),
    "SIEVE": lambda _budget, _trace: Sieve(),
    "S3-FIFO": lambda _budget, _trace: S3FIFO(),
    "W-TinyLFU": lambda budget, _trace: WTinyLFU(budget),
    "GDSF": lambda _budget, _trace: GDSF(cost=lambda _size: 1),
    AGING: lambda _budget, _trace: GDSF(cost=lambda size: size),
    OPTIMUM: lambda _budget, trace: Belady(trace.keys),
}
EQUAL, MIXED = "equal", "mixed"
#: Share of the models by their size in models of 124M parameters in int8: those themselves, 355M
#: in int8, 124M in fp32.
MIX = {1.0: 0.7, 2.85: 0.15, 3.93: 0.15}
#: Share of a trace in which the cache fills, and which does not count: the first day.
WARM_UP = 1 / traces.DAYS


@dataclass(frozen=True)
class Fleet:
    """Models, and what is asked of them.

    shares: of the models' bytes that the cache has. more_lru: shares at which only LRU is
    simulated, to see how large its cache would have to be.
    """

    models: int
    requests: int
    shares: tuple[float, ...]
    kinds: tuple[str, ...]
    sizes: str = EQUAL
    more_lru: tuple[float, ...] = ()


@dataclass(frozen=True)
class Cell:
    """One trace for one cache: what all policies are given."""

    fleet: Fleet
    kind: Kind
    share: float

    @property
    def policies(self) -> list[str]:
        """With equal sizes GDSF is LFU-DA."""
        if self.share not in self.fleet.shares:
            return [BASE]
        return [one for one in POLICIES if one != AGING or self.fleet.sizes == MIXED]


_ALL = tuple(kind.name for kind in KINDS)
_SHARES = (0.01, 0.05, 0.1, 0.2)
_MORE = (0.11, 0.12, 0.13, 0.14, 0.16, 0.18, 0.25, 0.3, 0.4)
_MIXED = ("Zipf 1.0", "sessions", "drift through the day", "changing popularity", "sweeps, 20%")
#: With many models, sweeps that are a twentieth of all are days apart.
_MANY = tuple(name for name in _ALL if name not in ("Zipf 1.0, long answers", "sweeps, 5%"))
FULL = (
    Fleet(1_000, 60_000, _SHARES, _ALL, more_lru=_MORE),
    Fleet(10_000, 150_000, _SHARES, _MANY),
    Fleet(1_000, 60_000, _SHARES, _MIXED, MIXED),
)
QUICK = (
    Fleet(1_000, 15_000, (0.1,), tuple(name for name in _MANY if name != "Zipf 0.6")),
    Fleet(1_000, 15_000, (0.1,), _MIXED[:1], MIXED),
)


def cells(fleets: Sequence[Fleet]) -> Iterator[Cell]:
    for fleet in fleets:
        for kind in KINDS:
            if kind.name in fleet.kinds:
                yield from (Cell(fleet, kind, s) for s in (*fleet.shares, *fleet.more_lru))


def budget(cell: Cell, costs: Costs, seed: int) -> int:
    """Bytes of the cache."""
    return round(cell.share * int(model_sizes(cell.fleet, costs, seed).sum()))


def model_sizes(fleet: Fleet, costs: Costs, seed: int) -> Ints:
    if fleet.sizes == EQUAL:
        return np.full(fleet.models, costs.model_bytes, dtype=np.int64)
    rng = np.random.default_rng((seed, fleet.models))
    drawn = rng.choice(list(MIX), p=list(MIX.values()), size=fleet.models)
    sizes: Ints = np.rint(drawn * costs.model_bytes).astype(np.int64)
    return sizes


def trace(cell: Cell, rate: float, costs: Costs, seed: int) -> Trace:
    """rate: requests a second."""
    fleet = cell.fleet
    shape = Shape(fleet.models, fleet.requests, rate, round(cell.share * fleet.models))
    sizes = model_sizes(fleet, costs, seed)
    return traces.draw(cell.kind, shape, sizes, costs.answer_seconds, seed)
