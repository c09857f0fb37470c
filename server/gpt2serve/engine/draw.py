"""Temperature, top-k, top-p, min-p, typical-p, and the draw.

The draw is the inverse of the distribution that the filters leave, at a number that is given.
Sums run along a row and never over the batch, so a row's token does not depend on the others.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from gpt2serve.engine.sampling_row import SamplingRow
from gpt2serve.engine.top_k import Floats, Ids, top_candidates

#: Above this, a row is worked on alone.
LARGEST_BATCHED_K = 256
#: Candidates looked at first when only top-p bounds them; they nearly always suffice.
FIRST_LOOK = 1024

Doubles = npt.NDArray[np.float64]


def can_be_batched(row: SamplingRow) -> bool:
    return 0 < row.top_k <= LARGEST_BATCHED_K and row.typical_p >= 1


class BatchedDraw:
    """For rows that have a small top-k, all at once."""

    def __init__(self, index: list[int], rows: Sequence[SamplingRow]) -> None:
        chosen = [rows[n] for n in index]
        self.index = np.array(index, dtype=np.int64)
        self._everything = len(index) == len(rows)
        self._top_k = np.array([row.top_k for row in chosen], dtype=np.int64)
        self._temperature = np.array([[row.temperature] for row in chosen])
        self._top_p = np.array([[row.top_p if row.top_p < 1 else np.inf] for row in chosen])
        limits = [[row.min_p] for row in chosen]
        self._min_p = np.array(limits) if any(row.min_p > 0 for row in chosen) else None

    def draw(self, logits: Floats, draws: Doubles) -> Ids:
        mine = logits if self._everything else logits[self.index]
        top_k = np.minimum(self._top_k, logits.shape[1])
        values, ids = top_candidates(mine, int(top_k.max()))
        # As in transformers, tokens equal to the k-th stay.
        kth = np.take_along_axis(values, (top_k - 1)[:, None], axis=1)
        scores = np.where(values >= kth, values, -np.inf) / self._temperature
        picked = draw_sorted(scores, self._top_p, draws[self.index], min_p=self._min_p)
        return np.take_along_axis(ids, picked[:, None], axis=1)[:, 0]


def draw_sorted(
    scores: Doubles,
    top_p: Doubles,
    draws: Doubles,
    *,
    min_p: Doubles | None = None,
    total: float | None = None,
) -> Ids:
    """Column drawn for each row of `scores`, which descend along the columns.

    scores: [rows, width], -inf where a token is out; top_p: [rows, 1], inf to keep all;
    draws: [rows] in [0, 1); min_p: [rows, 1], None to keep all; total: the sum of
    exp(score - highest score) over all tokens, where `scores` holds only the likeliest. The
    cumulative sums run along the row, so columns appended to a row (-inf) change nothing.
    """
    weights = np.exp(scores - scores[:, :1])
    cumulative = weights.cumsum(axis=1)
    whole = cumulative[:, -1:] if total is None else total
    kept = _kept(weights, cumulative - weights, top_p * whole, min_p)
    mass = np.take_along_axis(cumulative, (kept - 1)[:, None], axis=1)
    picked = (cumulative <= draws[:, None] * mass).sum(axis=1)
    column: Ids = np.minimum(picked, kept - 1)
    return column


def _kept(weights: Doubles, before: Doubles, mass: Doubles, min_p: Doubles | None) -> Ids:
    """How many columns of each row top-p and min-p keep, at least one: [rows].

    before: what the likelier ones weigh together; the likeliest weighs 1.
    """
    # transformers drops a token if it and all less likely ones together reach 1 - top_p at
    # most; in descending order: if those before it reach top_p.
    stays = (before < mass) & (weights > 0)
    if min_p is not None:
        stays &= weights >= min_p
    kept: Ids = np.maximum(stays.sum(axis=1), 1)
    return kept


def draw_alone(logits: Floats, row: SamplingRow, draw: float) -> int:
    """For rows that cannot be batched: the whole vocabulary may be needed."""
    if row.typical_p < 1:
        return _draw_typical(logits, row, draw)
    vocabulary = len(logits)
    scores = logits.astype(np.float64) / row.temperature
    if 0 < row.top_k < vocabulary:
        return _draw_from(_best(logits, row.top_k), scores, row, draw)
    weights = np.exp(scores - scores.max())
    if row.top_p >= 1:
        # Nothing needs to be sorted: ids ascending.
        if row.min_p > 0:
            weights[weights < row.min_p] = 0.0
        cumulative = weights.cumsum()
        drawn = int(np.searchsorted(cumulative, draw * cumulative[-1], side="right"))
        return min(drawn, vocabulary - 1)  # beyond the end only if nothing is a number
    total = float(weights.sum())
    ids = top_candidates(logits[None], min(FIRST_LOOK, vocabulary))[1][0]
    if weights[ids].sum() <= row.top_p * total and weights[ids[-1]] >= row.min_p:
        ids = _best(logits, vocabulary)
    return _draw_from(ids, scores, row, draw, total)


def _best(logits: Floats, top_k: int) -> Ids:
    """Ids of the `top_k` largest and of those that equal the last of them, best first."""
    if 0 < top_k < len(logits):
        values, ids = top_candidates(logits[None], top_k)
        best: Ids = ids[values >= values[0, top_k - 1]]
        return best
    return np.argsort(-logits, kind="stable")


def _draw_from(
    ids: Ids, scores: Doubles, row: SamplingRow, draw: float, total: float | None = None
) -> int:
    top_p = np.array([[row.top_p if row.top_p < 1 else np.inf]])
    min_p = np.array([[row.min_p]]) if row.min_p > 0 else None
    picked = draw_sorted(scores[None, ids], top_p, np.array([draw]), min_p=min_p, total=total)
    return int(ids[picked[0]])


def _draw_typical(logits: Floats, row: SamplingRow, draw: float) -> int:
    """With all filters. What is typical may lie anywhere among what the others keep."""
    ids = _best(logits, row.top_k)
    scores = logits[ids].astype(np.float64) / row.temperature
    weights = np.exp(scores - scores[0])
    cumulative = weights.cumsum()
    top_p = row.top_p if row.top_p < 1 else np.inf
    before, mass = (cumulative - weights)[None], np.array([[top_p * cumulative[-1]]])
    kept = int(_kept(weights[None], before, mass, np.array([[row.min_p]]))[0])
    typical = _typical(weights[:kept], row.typical_p)
    ids, cumulative = ids[:kept][typical], weights[:kept][typical].cumsum()
    drawn = int(np.searchsorted(cumulative, draw * cumulative[-1], side="right"))
    return int(ids[min(drawn, len(ids) - 1)])


def _typical(weights: Doubles, mass: float) -> npt.NDArray[np.bool_]:
    """Which tokens transformers' TypicalLogitsWarper keeps.

    The most typical is the one whose surprise, -log(p), is nearest to what is to be expected.
    """
    probability = weights / weights.sum()
    surprise = -np.log(probability)
    distance = np.abs(surprise - (probability * surprise).sum())
    order = np.argsort(distance, kind="stable")
    needed = int((probability[order].cumsum() < mass).sum())
    farthest = distance[order[min(needed, len(order) - 1)]]
    kept: npt.NDArray[np.bool_] = ~(distance > farthest)  # all of what is no number
    return kept
