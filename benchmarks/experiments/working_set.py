"""How many models must be kept for how many hits, for docs/scaling.md.

    python -m benchmarks.experiments.working_set

Not a measurement: Che's approximation of an LRU cache whose requests are independent and whose
models are popular by Zipf. Then what comes to a disk in a day: how many different models so many
requests ask for. A few seconds.
"""

from __future__ import annotations

import argparse

import numpy as np

from benchmarks.fleet.trace import Floats
from benchmarks.fleet.warm import che_hit_ratio
from benchmarks.load.traffic import zipf

SHARES = (0.001, 0.01, 0.05, 0.1, 0.2, 0.5)
WANTED = (0.5, 0.8, 0.9, 0.95, 0.99)
RATES = (1, 10, 50, 200, 1_000)
DAY = 86_400.0


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", type=int, nargs="+", default=[1_000, 10_000, 100_000, 10**6])
    parser.add_argument("--zipf", type=float, nargs="+", default=[0.8, 1.0, 1.2])
    args = parser.parse_args()
    for exponent in args.zipf:
        popularity = {models: zipf(models, exponent) for models in args.models}
        print(f"\nZipf with exponent {exponent:g}")
        row("hits, with room for", [f"{share:.1%}" for share in SHARES])
        for models, probabilities in popularity.items():
            hits = [che_hit_ratio(probabilities, round(share * models)) for share in SHARES]
            row(f"{models:,} models", [f"{hit:.0%}" for hit in hits])
        row("room for so many hits", [f"{hits:.0%}" for hits in WANTED])
        for models, probabilities in popularity.items():
            row(f"{models:,} models", [f"{room(probabilities, hits):,}" for hits in WANTED])
        row("asked for in a day, at", [f"{rate:,}/s" for rate in RATES])
        for models, probabilities in popularity.items():
            asked = [different(probabilities, rate * DAY) for rate in RATES]
            row(f"{models:,} models", [f"{count:,}" for count in asked])


def room(probabilities: Floats, wanted: float) -> int:
    """The fewest models that a cache must hold for so many hits."""
    low, high = 0, len(probabilities)
    while high - low > 1:
        middle = (low + high) // 2
        enough = che_hit_ratio(probabilities, middle) >= wanted
        low, high = (low, middle) if enough else (middle, high)
    return high


def different(probabilities: Floats, requests: float) -> int:
    """Models that at least one of so many requests asks for, on average."""
    return round(float(np.sum(-np.expm1(-probabilities * requests))))


def row(title: str, cells: list[str]) -> None:
    print(f"{title:24}" + "".join(f"{cell:>10}" for cell in cells))


if __name__ == "__main__":
    main()
