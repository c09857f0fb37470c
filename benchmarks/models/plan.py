"""What is measured: systems, cells, and which of them fit into memory. Pure policy."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import TypeVar

#: A cache whose models take more than this share of the machine's memory is not measured: what
#: remains is for the system, for requests, and for the page cache that loads are served from.
MEMORY_SHARE = 0.8

#: How models are asked at the cliff: all alike and at random; at random, some more than others;
#: one after the other, which is what LRU is worst at.
UNIFORM, ZIPF, SCAN = "uniform", "zipf", "scan"
TRAFFICS = (UNIFORM, ZIPF, SCAN)

PACKAGE, CHECKPOINT, CT2 = "package-int8", "checkpoint", "ct2-int8"


@dataclass(frozen=True)
class System:
    """A server of many models.

    name: in tables and for --skip. weights: the format that it loads, one of those above. peer:
    its module in `benchmarks.models.peers`, None for gpt2serve. packages: what it imports.
    """

    name: str
    weights: str
    peer: str | None
    packages: tuple[str, ...]
    install: str

    @property
    def missing(self) -> list[str]:
        """Packages that are not installed."""
        return [name for name in self.packages if importlib.util.find_spec(name) is None]

    @property
    def is_ours(self) -> bool:
        return self.peer is None


_BENCH = "pip install -e '.[bench,export]'"

GPT2SERVE = System("gpt2serve int8", PACKAGE, None, ("gpt2serve",), "pip install -e .")
SAME_BYTES = System("gpt2serve int8, same bytes", PACKAGE, None, ("gpt2serve",), "pip install -e .")
FASTAPI = System(
    "fastapi transformers",
    CHECKPOINT,
    "fastapi_transformers",
    ("fastapi", "uvicorn", "transformers", "torch"),
    f"pip install fastapi; {_BENCH}",
)
RAY_TRANSFORMERS = System(
    "ray transformers",
    CHECKPOINT,
    "ray_transformers",
    ("ray", "starlette", "transformers", "torch"),
    f"pip install 'ray[serve]'; {_BENCH}",
)
RAY_CT2 = System(
    "ray ctranslate2 int8",
    CT2,
    "ray_ctranslate2",
    ("ray", "starlette", "ctranslate2", "transformers"),
    f"pip install 'ray[serve]'; {_BENCH}",
)
SYSTEMS = (GPT2SERVE, RAY_TRANSFORMERS, RAY_CT2, FASTAPI, SAME_BYTES)


@dataclass(frozen=True, slots=True)
class Cell:
    """One system with one cache size.

    cache: number of models that the table's row says. held: models that the cache has room for;
    more than `cache` only where bytes are compared. cache_bytes: what those models take.
    """

    system: System
    cache: int
    held: int
    cache_bytes: int
    fits: bool

    @property
    def label(self) -> str:
        return f"{self.system.name}, cache for {self.cache}"


def cells(
    systems: Iterable[System], caches: Sequence[int], sizes: Mapping[str, int], memory: int
) -> list[Cell]:
    """Systems in turn for one cache size after the other.

    sizes: bytes of a loaded model in each format. memory: of the machine, in bytes.
    """
    return [
        make_cell(system, cache, sizes, memory)
        for cache in sorted(caches)
        for system in systems
        # More of what only shows how far the same memory goes would take minutes.
        if system is not SAME_BYTES or cache == min(caches)
    ]


def make_cell(system: System, cache: int, sizes: Mapping[str, int], memory: int) -> Cell:
    size = sizes[system.weights]
    cache_bytes = cache * (sizes[CHECKPOINT] if system is SAME_BYTES else size)
    fits = fits_into(memory, cache_bytes)
    return Cell(system, cache, cache_bytes // size, cache_bytes, fits)


def fits_into(memory: int, needed: int) -> bool:
    return needed <= MEMORY_SHARE * memory


def in_order(cells: Sequence[Cell], number: int) -> list[Cell]:
    """The cells that fit, as round `number` measures them: each time another system is first."""
    return [
        cell
        for _, alike in groupby((cell for cell in cells if cell.fits), lambda cell: cell.cache)
        for cell in rotated(list(alike), number)
    ]


_Item = TypeVar("_Item")


def rotated(items: Sequence[_Item], number: int) -> list[_Item]:
    """The same order, but beginning `number` later, so that nobody always comes first."""
    first = number % max(1, len(items))
    return [*items[first:], *items[:first]]


@dataclass(frozen=True, slots=True)
class Step:
    """One point of the cliff: `models` models are asked, and there is a cache for `cache`."""

    traffic: str
    models: int
    cache: int

    @property
    def ratio(self) -> float:
        return self.models / self.cache


@dataclass(frozen=True)
class Variant:
    """A server at the cliff. pinned: share of the cache that is pinned. ratios: working set over
    cache size; where all models fit, the policies are the same. longer: how much longer its
    measurements are than gpt2serve's, because it answers less in the same time."""

    name: str
    system: System
    ratios: tuple[float, ...]
    pinned: float = 0.0
    longer: float = 1.0

    @property
    def label(self) -> str:
        return f"{self.name}, at the cliff"


LRU = Variant(GPT2SERVE.name, GPT2SERVE, (0.5, 1.0, 2.0, 4.0))
PINNED = Variant(f"{GPT2SERVE.name}, half pinned", GPT2SERVE, (2.0, 4.0), pinned=0.5)
DICT = Variant(FASTAPI.name, FASTAPI, (1.0, 4.0), longer=2.5)
VARIANTS = (LRU, PINNED, DICT)
RATIOS = LRU.ratios


def cliff_cell(variant: Variant, cache: int, sizes: Mapping[str, int], memory: int) -> Cell:
    """With half a model more than the cache has room for: the first load of a process measures
    more bytes than the model has, and a pinned model is never loaded and measured again."""
    size = sizes[variant.system.weights]
    cell = make_cell(variant.system, cache, sizes, memory)
    return replace(cell, cache_bytes=cell.cache_bytes + size // 2)


def steps(
    variant: Variant, cache: int, models: int, ratios: Sequence[float] = RATIOS
) -> list[Step]:
    """The points of a variant in the order of measurement, of `models` models at most.

    ratios: those of other ratios are left out.
    """
    counts = [round(ratio * cache) for ratio in variant.ratios if ratio in ratios]
    return [
        Step(traffic, count, cache)
        for traffic in TRAFFICS
        for count in counts
        if 0 < count <= models
    ]


def filling(step: Step, models: Sequence[str]) -> list[str]:
    """What to ask once before a step, so that the cache is as if it had gone on for long.

    In turn, the last models are there; else the most popular, and those most recently used.
    """
    asked = models[: step.models]
    if step.traffic == SCAN:
        return list(asked[-step.cache :])
    return list(reversed(asked[: step.cache]))
