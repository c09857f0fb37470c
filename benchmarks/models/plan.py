"""What is measured: systems, cells, and which of them fit into memory. Pure policy."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

#: A cache whose models take more than this share of the machine's memory is not measured: what
#: remains is for the system, for requests, and for the page cache that loads are served from.
MEMORY_SHARE = 0.8

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


def cells(
    systems: Iterable[System], caches: Sequence[int], sizes: Mapping[str, int], memory: int
) -> list[Cell]:
    """In the order of measurement: systems in turn for one cache size after the other.

    sizes: bytes of a loaded model in each format. memory: of the machine, in bytes.
    """
    return [
        _cell(system, cache, sizes, memory)
        for cache in sorted(caches)
        for system in systems
        # More of what only shows how far the same memory goes would take minutes.
        if system is not SAME_BYTES or cache == min(caches)
    ]


def _cell(system: System, cache: int, sizes: Mapping[str, int], memory: int) -> Cell:
    size = sizes[system.weights]
    cache_bytes = cache * (sizes[CHECKPOINT] if system is SAME_BYTES else size)
    fits = fits_into(memory, cache_bytes)
    return Cell(system, cache, cache_bytes // size, cache_bytes, fits)


def fits_into(memory: int, needed: int) -> bool:
    return needed <= MEMORY_SHARE * memory


@dataclass(frozen=True, slots=True)
class Step:
    """One point of the cliff: `models` models of equal popularity, and a cache for `cache`."""

    variant: str
    models: int
    cache: int

    @property
    def ratio(self) -> float:
        return self.models / self.cache


@dataclass(frozen=True)
class Variant:
    """A server at the cliff. pinned: share of the cache that is pinned. ratios: working set over
    cache size."""

    name: str
    system: System
    ratios: tuple[float, ...]
    pinned: float = 0.0


LRU = Variant(GPT2SERVE.name, GPT2SERVE, (0.5, 1.0, 1.5, 2.0, 4.0))
PINNED = Variant(f"{GPT2SERVE.name}, half pinned", GPT2SERVE, (2.0, 4.0), pinned=0.5)
DICT = Variant(FASTAPI.name, FASTAPI, (1.0, 2.0, 4.0))
VARIANTS = (LRU, PINNED, DICT)


def steps(variants: Iterable[Variant], cache: int, models: int) -> list[Step]:
    """Points in the order of measurement: by ratio, variants in turn; of `models` models."""
    points = [
        Step(variant.name, round(ratio * cache), cache)
        for variant in variants
        for ratio in variant.ratios
    ]
    return sorted((p for p in points if p.models <= models), key=lambda step: step.models)
