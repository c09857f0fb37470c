"""Choosing the next token of every sequence in a batch.

The steps and their order are those of transformers' `generate`: repetition penalty, n-gram
ban, minimum length; then, when sampling, temperature, top-k, top-p. The draw differs: it is
the inverse of the distribution at a number that depends on (seed, position) alone. Every
computation is per row, so a row's token does not depend on the other rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from gpt2serve.engine.randomness import uniform
from gpt2serve.engine.top_k import Floats, Ids, top_candidates

NO_TOKEN = -1
#: Above this, a row is worked on alone.
LARGEST_BATCHED_K = 256
#: Candidates looked at first when only top-p bounds them; they nearly always suffice.
FIRST_LOOK = 1024


@dataclass(slots=True)
class SamplingRow:
    """What sampling needs to know of one sequence. `history` grows as tokens are generated."""

    do_sample: bool
    temperature: float
    top_k: int
    top_p: float
    repetition_penalty: float
    no_repeat_ngram_size: int
    min_tokens: int
    seed: int
    eos_token_ids: tuple[int, ...]
    wants_logprob: bool
    #: Prompt and generated tokens.
    history: list[int]
    prompt_length: int = field(init=False)

    def __post_init__(self) -> None:
        self.prompt_length = len(self.history)

    @property
    def position(self) -> int:
        """Number of tokens generated so far."""
        return len(self.history) - self.prompt_length


class BatchSampler:
    """Samples for a fixed list of rows; made anew when the batch changes."""

    def __init__(self, rows: Sequence[SamplingRow]) -> None:
        self.rows = rows
        self._seeds = np.array([row.seed for row in rows], dtype=np.uint64)
        self._penalised = [
            n
            for n, row in enumerate(rows)
            if row.repetition_penalty != 1.0 or row.no_repeat_ngram_size > 0
        ]
        self._with_minimum: list[int] = []
        self._may_not_end(list(range(len(rows))))
        self._wants_logprob = any(row.wants_logprob for row in rows)
        self._greedy = np.array([n for n, row in enumerate(rows) if not row.do_sample], dtype=int)
        drawn = [n for n, row in enumerate(rows) if row.do_sample]
        self._batched = _Filter([n for n in drawn if 0 < rows[n].top_k <= LARGEST_BATCHED_K], rows)
        self._alone = [n for n in drawn if not 0 < rows[n].top_k <= LARGEST_BATCHED_K]

    @np.errstate(invalid="ignore")  # rows without a possible token compute with NaN
    def sample(self, logits: Floats) -> tuple[Ids, Floats | None]:
        """Token ids [rows], and their log-probabilities [rows] if any row wants them.

        A row in which no token is possible, because every one is banned or the logits are no
        numbers, gets `NO_TOKEN`.
        logits: [rows, vocabulary], overwritten. The log-probability is the model's own,
        that is before penalties, temperature and filters.
        """
        raw, norm = self._remember(logits)
        self._edit(logits)
        tokens = np.empty(len(self.rows), dtype=np.int64)
        if len(self._greedy):
            tokens[self._greedy] = logits[self._greedy].argmax(axis=1)
        if len(self._batched.index) or self._alone:
            positions = np.array([row.position for row in self.rows], dtype=np.uint64)
            draws = uniform(self._seeds, positions)
            if len(self._batched.index):
                tokens[self._batched.index] = self._batched.draw(logits, draws)
            for n in self._alone:
                tokens[n] = _draw_alone(logits[n], self.rows[n], float(draws[n]))
        at = (np.arange(len(tokens)), tokens)
        logprobs = None if norm is None else raw[at] - norm
        tokens[~np.isfinite(logits[at])] = NO_TOKEN
        return tokens, logprobs

    def _remember(self, logits: Floats) -> tuple[Floats, Floats | None]:
        """The logits before editing and their log-sum-exp; nothing is computed in vain."""
        if not self._wants_logprob:
            return logits, None
        raw = logits.copy() if self._penalised else logits
        highest = raw.max(axis=1, keepdims=True)
        norm = highest[:, 0] + np.log(np.exp(raw - highest).sum(axis=1))
        return raw, norm

    def _edit(self, logits: Floats) -> None:
        for n in self._penalised:
            _penalise(logits[n], self.rows[n])
        if self._with_minimum:
            self._may_not_end(self._with_minimum)
            logits[self._early_ends] = -np.inf

    def _may_not_end(self, candidates: list[int]) -> None:
        """Note which of `candidates` are below their minimum, and where their ends are."""
        early = [n for n in candidates if self.rows[n].position < self.rows[n].min_tokens]
        if early != self._with_minimum:
            self._with_minimum = early
            ends = [(n, token) for n in early for token in self.rows[n].eos_token_ids]
            self._early_ends = tuple(np.array(ends, dtype=np.int64).reshape(-1, 2).T)


class _Filter:
    """Temperature, top-k and top-p for the rows that have a top-k, all at once."""

    def __init__(self, index: list[int], rows: Sequence[SamplingRow]) -> None:
        chosen = [rows[n] for n in index]
        self.index = np.array(index, dtype=np.int64)
        self._everything = len(index) == len(rows)
        self._top_k = np.array([row.top_k for row in chosen], dtype=np.int64)
        self._temperature = np.array([[row.temperature] for row in chosen])
        self._top_p = np.array([[row.top_p if row.top_p < 1 else np.inf] for row in chosen])

    def draw(self, logits: Floats, draws: npt.NDArray[np.float64]) -> Ids:
        mine = logits if self._everything else logits[self.index]
        top_k = np.minimum(self._top_k, logits.shape[1])
        values, ids = top_candidates(mine, int(top_k.max()))
        # As in transformers, tokens equal to the k-th stay.
        kth = np.take_along_axis(values, (top_k - 1)[:, None], axis=1)
        scores = np.where(values >= kth, values, -np.inf) / self._temperature
        picked = draw_sorted(scores, self._top_p, draws[self.index])
        return np.take_along_axis(ids, picked[:, None], axis=1)[:, 0]


def draw_sorted(
    scores: npt.NDArray[np.float64],
    top_p: npt.NDArray[np.float64],
    draws: npt.NDArray[np.float64],
    total: float | None = None,
) -> Ids:
    """Column drawn for each row of `scores`, which descend along the columns.

    scores: [rows, width], -inf where a token is out; top_p: [rows, 1], inf to keep all;
    draws: [rows] in [0, 1); total: the sum of exp(score - highest score) over all tokens,
    where `scores` holds only the likeliest. The cumulative sums run along the row, so columns
    appended to a row (-inf) change nothing.
    """
    weights = np.exp(scores - scores[:, :1])
    cumulative = weights.cumsum(axis=1)
    whole = cumulative[:, -1:] if total is None else total
    # transformers drops a token if it and all less likely ones together reach 1 - top_p at
    # most; in descending order: if those before it reach top_p.
    kept = ((cumulative - weights < top_p * whole) & (weights > 0)).sum(axis=1)
    kept = np.maximum(kept, 1)
    mass = np.take_along_axis(cumulative, (kept - 1)[:, None], axis=1)
    picked = (cumulative <= draws[:, None] * mass).sum(axis=1)
    column: Ids = np.minimum(picked, kept - 1)
    return column


def _draw_alone(logits: Floats, row: SamplingRow, draw: float) -> int:
    """For rows without a small top-k: the whole vocabulary may be needed."""
    vocabulary = len(logits)
    scores = logits.astype(np.float64) / row.temperature
    if 0 < row.top_k < vocabulary:
        values, ids = top_candidates(logits[None], row.top_k)
        ids = ids[values >= values[0, row.top_k - 1]]
        return _draw_from(ids, scores, row.top_p, draw)
    weights = np.exp(scores - scores.max())
    if row.top_p >= 1:
        # Nothing is filtered, so the order does not matter: ids ascending, no sorting.
        cumulative = weights.cumsum()
        drawn = int(np.searchsorted(cumulative, draw * cumulative[-1], side="right"))
        return min(drawn, vocabulary - 1)  # beyond the end only if nothing is a number
    total = float(weights.sum())
    ids = top_candidates(logits[None], min(FIRST_LOOK, vocabulary))[1][0]
    if weights[ids].sum() <= row.top_p * total:
        ids = np.lexsort((np.arange(vocabulary), -logits))
    return _draw_from(ids, scores, row.top_p, draw, total)


def _draw_from(
    ids: Ids,
    scores: npt.NDArray[np.float64],
    top_p: float,
    draw: float,
    total: float | None = None,
) -> int:
    mass = np.array([[top_p if top_p < 1 else np.inf]])
    return int(ids[draw_sorted(scores[None, ids], mass, np.array([draw]), total)[0]])


def _penalise(logits: Floats, row: SamplingRow) -> None:
    """transformers' RepetitionPenaltyLogitsProcessor, then NoRepeatNGramLogitsProcessor."""
    if row.repetition_penalty != 1.0:
        seen = np.unique(row.history)
        scores = logits[seen]
        penalty = np.float32(row.repetition_penalty)
        logits[seen] = np.where(scores < 0, scores * penalty, scores / penalty)
    if row.no_repeat_ngram_size > 0:
        logits[_banned(row.history, row.no_repeat_ngram_size)] = -np.inf


def _banned(history: list[int], size: int) -> list[int]:
    """Tokens that would complete an n-gram of `size` that is in `history` already."""
    if len(history) + 1 < size:
        return []
    beginning = history[len(history) - size + 1 :]
    return [
        history[at + size - 1]
        for at in range(len(history) - size + 1)
        if history[at : at + size - 1] == beginning
    ]
