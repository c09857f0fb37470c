"""The largest logits of each row, without sorting the row.

The k largest group maxima bound the k-th largest value from below, so everything that can
be among the k largest is at least that bound and lies in one of those groups. One pass for
the maxima and a look into few groups takes a small part of the time of `np.argpartition`
(`docs/decisions/0005-sampling.md`).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

GROUP = 32
#: Maxima whose maximum stands for them when the bound is looked for.
COARSE = 8

Floats = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int64]


def top_candidates(logits: Floats, k: int) -> tuple[Floats, Ids]:
    """Values and token ids of at least the `k` largest logits of each row, ties included.

    logits: [rows, vocabulary]; returns two arrays [rows, width]: in descending order of
    value, then ascending order of id; rows with fewer candidates end in -inf. Which
    candidates a row has beyond its k largest depends on `k`; their order does not. A row of
    NaN has none.
    """
    k = min(k, logits.shape[1])
    row, token, value = _at_least_kth(logits, k)
    order = np.lexsort((token, -value, row))
    row, token, value = row[order], token[order], value[order]
    counts = np.bincount(row, minlength=len(logits))
    column = np.arange(len(row)) - (np.cumsum(counts) - counts)[row]
    shape = (len(logits), max(int(counts.max()), k))
    values = np.full(shape, -np.inf, dtype=np.float32)
    ids = np.zeros(shape, dtype=np.int64)
    values[row, column] = value
    ids[row, column] = token
    return values, ids


def _at_least_kth(logits: Floats, k: int) -> tuple[Ids, Ids, Floats]:
    """(row, id, value) of all logits not below a bound that is not above the row's k-th largest."""
    vocabulary = logits.shape[1]
    # Group g holds the ids g, g + groups, g + 2 * groups, ...: maxima of whole vectors.
    groups = vocabulary // GROUP
    if groups <= k:
        row, token = np.nonzero(logits >= _kth_largest(logits, k))
        return row, token, logits[row, token]
    grouped = logits[:, : groups * GROUP].reshape(-1, GROUP, groups)
    rest = logits[:, groups * GROUP :]
    maxima = grouped.max(axis=1)
    bound = _kth_largest(_coarse(maxima, k), k)
    # `flatnonzero` takes half the time of `nonzero` in two dimensions.
    row, group = np.divmod(np.flatnonzero(maxima >= bound), groups)
    inside = grouped[row, :, group]
    found = np.flatnonzero(inside >= bound[row])
    hit, member = np.divmod(found, GROUP)
    rest_row, rest_column = np.nonzero(rest >= bound)
    return (
        np.concatenate([row[hit], rest_row]),
        np.concatenate([group[hit] + member * groups, groups * GROUP + rest_column]),
        np.concatenate([inside.ravel()[found], rest[rest_row, rest_column]]),
    )


def _coarse(maxima: Floats, k: int) -> Floats:
    """Maxima of maxima, if enough are left for the k-th largest to be a close bound.

    It is looked for among an eighth of the values then; about a sixth more groups than before
    reach it. What does not fill a group is left out: a bound from fewer values is a lower one.
    """
    groups = maxima.shape[1] // COARSE
    if groups <= 2 * k:
        return maxima
    coarse: Floats = maxima[:, : groups * COARSE].reshape(-1, COARSE, groups).max(axis=1)
    return coarse


def _kth_largest(values: Floats, k: int) -> Floats:
    """[rows, columns] -> [rows, 1]"""
    at = values.shape[1] - k
    kth: Floats = np.partition(values, at, axis=1)[:, at : at + 1]
    return kth
