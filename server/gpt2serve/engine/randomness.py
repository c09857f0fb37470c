"""Random numbers without state: a pure function of (seed, position).

A generator with state would tie a sequence's text to what else ran before it. Here each
number is computed from its key alone, so a seed gives the same text alone, in a full batch,
and after a restart.

The mixing function is the finaliser of SplitMix64: G. L. Steele, D. Lea, C. H. Flood, "Fast
splittable pseudorandom number generators", OOPSLA 2014, with D. Stafford's variant 13
constants. Drawing number n of the stream `seed` is SplitMix64's own definition.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

_GOLDEN_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
_TO_UNIT = 2.0**-53
_SEED_BITS = np.uint64(53)


def _mix(z: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    z = (z ^ (z >> np.uint64(30))) * _MIX_1
    z = (z ^ (z >> np.uint64(27))) * _MIX_2
    return z ^ (z >> np.uint64(31))


def uniform(
    seeds: npt.NDArray[np.uint64], positions: npt.NDArray[np.uint64]
) -> npt.NDArray[np.float64]:
    """Numbers in [0, 1), one for each (seed, position); both arrays have one shape.

    The seed is mixed before it starts a stream, so that the streams of neighbouring seeds
    are not shifted copies of each other.
    """
    bits = _mix(_mix(seeds + _GOLDEN_GAMMA) + (positions + np.uint64(1)) * _GOLDEN_GAMMA)
    return (bits >> np.uint64(11)).astype(np.float64) * _TO_UNIT


def sequence_seed(seed: int, index: int) -> int:
    """The seed of sequence `index` of a request: the request's own for the first one.

    Every sequence has a seed by which it can be made again alone. 53 bits, so that it
    survives JSON readers that take numbers for doubles.
    """
    if index == 0:
        return seed
    key = np.array([seed], dtype=np.uint64) + _GOLDEN_GAMMA
    mixed = _mix(_mix(key) ^ (np.array([index], dtype=np.uint64) * _MIX_2))
    return int(mixed[0] >> (np.uint64(64) - _SEED_BITS))
