"""What changes a row's logits before they are filtered."""

from __future__ import annotations

import numpy as np

from gpt2serve.engine.sampling_row import SamplingRow
from gpt2serve.engine.top_k import Floats


def edit(logits: Floats, row: SamplingRow) -> None:
    """In transformers' order; OpenAI's penalties come after transformers' own, as in vLLM."""
    if row.bias is not None:
        tokens, values = row.bias
        logits[tokens] += values
    if row.repetition_penalty != 1.0:
        _penalise_repetition(logits, row)
    if row.penalises_generated:
        _penalise_generated(logits, row)
    if row.no_repeat_ngram_size > 0:
        logits[_banned(row.history, row.no_repeat_ngram_size)] = -np.inf


def _penalise_repetition(logits: Floats, row: SamplingRow) -> None:
    """transformers' RepetitionPenaltyLogitsProcessor."""
    seen = np.unique(row.history)
    scores = logits[seen]
    penalty = np.float32(row.repetition_penalty)
    logits[seen] = np.where(scores < 0, scores * penalty, scores / penalty)


def _penalise_generated(logits: Floats, row: SamplingRow) -> None:
    """OpenAI's presence and frequency penalties, which do not count the prompt."""
    seen, counts = np.unique(np.array(row.generated, dtype=np.int64), return_counts=True)
    penalty = row.presence_penalty + row.frequency_penalty * counts
    logits[seen] -= penalty.astype(np.float32)


def _banned(history: list[int], size: int) -> list[int]:
    """transformers' NoRepeatNGramLogitsProcessor: what would complete an n-gram of `history`."""
    if len(history) + 1 < size:
        return []
    beginning = history[len(history) - size + 1 :]
    return [
        history[at + size - 1]
        for at in range(len(history) - size + 1)
        if history[at : at + size - 1] == beginning
    ]
