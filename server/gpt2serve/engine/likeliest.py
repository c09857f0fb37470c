"""The model's own log-probabilities: of given tokens, and of the likeliest ones."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gpt2serve.engine.events import TopToken
from gpt2serve.engine.top_k import Floats, top_candidates

Top = tuple[TopToken, ...]


def log_totals(logits: Floats) -> Floats:
    """What to take off the logits of each row to make them log-probabilities: [rows]."""
    highest = logits.max(axis=1, keepdims=True)
    totals: Floats = highest[:, 0] + np.log(np.exp(logits - highest).sum(axis=1))
    return totals


def likeliest(logits: Floats, totals: Floats, counts: Sequence[int]) -> list[Top]:
    """For each row as many of its likeliest tokens as `counts` says, best first."""
    values, ids = top_candidates(logits, max(counts))
    logprobs = values - totals[:, None]
    return [
        tuple(map(TopToken, ids[n, :count].tolist(), logprobs[n, :count].tolist()))
        for n, count in enumerate(counts)
    ]
