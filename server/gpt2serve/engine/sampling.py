"""Choosing the next token of every sequence in a batch.

The steps and their order are those of transformers' `generate`: bias, repetition penalty, n-gram
ban, minimum length; then, when sampling, temperature, top-k, top-p, min-p, typical-p. The draw
differs: it is the inverse of the distribution at a number that depends on (seed, position)
alone. Every computation is per row, so a row's token does not depend on the other rows.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gpt2serve.engine.draw import BatchedDraw, can_be_batched, draw_alone
from gpt2serve.engine.likeliest import Top, likeliest, log_totals
from gpt2serve.engine.logit_edits import edit
from gpt2serve.engine.randomness import uniform
from gpt2serve.engine.sampling_row import SamplingRow
from gpt2serve.engine.top_k import Floats, Ids

NO_TOKEN = -1


class BatchSampler:
    """Samples for a fixed list of rows; made anew when the batch changes."""

    def __init__(self, rows: Sequence[SamplingRow]) -> None:
        self.rows = rows
        self._seeds = np.array([row.seed for row in rows], dtype=np.uint64)
        self._edited = [n for n, row in enumerate(rows) if row.edits_logits]
        self._with_minimum: list[int] = []
        self._may_not_end(list(range(len(rows))))
        self._wants_logprob = any(row.wants_logprob for row in rows)
        self._greedy = np.array([n for n, row in enumerate(rows) if not row.do_sample], dtype=int)
        drawn = [n for n, row in enumerate(rows) if row.do_sample]
        self._batched = BatchedDraw([n for n in drawn if can_be_batched(rows[n])], rows)
        self._alone = [n for n in drawn if not can_be_batched(rows[n])]
        self._with_top = [n for n, row in enumerate(rows) if row.top_logprobs]

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
                tokens[n] = draw_alone(logits[n], self.rows[n], float(draws[n]))
        at = (np.arange(len(tokens)), tokens)
        logprobs = None if norm is None else raw[at] - norm
        tokens[~np.isfinite(logits[at])] = NO_TOKEN
        return tokens, logprobs

    def likeliest(self, logits: Floats) -> list[Top]:
        """The likeliest tokens of each row, as many as it wants, by the model's own probability.

        To be asked for before `sample`, which overwrites the logits.
        """
        found: list[Top] = [()] * len(self.rows)
        if self._with_top:
            wanted = logits[self._with_top]
            counts = [self.rows[n].top_logprobs for n in self._with_top]
            for n, top in zip(
                self._with_top, likeliest(wanted, log_totals(wanted), counts), strict=True
            ):
                found[n] = top
        return found

    def _remember(self, logits: Floats) -> tuple[Floats, Floats | None]:
        """The logits before editing and their log-sum-exp; nothing is computed in vain."""
        if not self._wants_logprob:
            return logits, None
        raw = logits.copy() if self._edited else logits
        return raw, log_totals(raw)

    def _edit(self, logits: Floats) -> None:
        for n in self._edited:
            edit(logits[n], self.rows[n])
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
