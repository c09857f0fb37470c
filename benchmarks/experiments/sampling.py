"""Time of sampling alone, for docs/decisions/0005-sampling.md.

    python -m benchmarks.experiments.sampling

Milliseconds for batches of 1, 5, 16 and 32 rows of 50,257 logits: the median of some rounds.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import numpy as np

from gpt2serve.engine.sampling import BatchSampler
from gpt2serve.engine.sampling_row import SamplingRow
from gpt2serve.engine.top_k import top_candidates

VOCABULARY = 50257
SIZES = (1, 5, 16, 32)
ROUNDS = 30


def row(seed: int, **changes: object) -> SamplingRow:
    values: dict[str, object] = {
        "do_sample": True,
        "temperature": 1.0,
        "top_k": 50,
        "top_p": 0.95,
        "repetition_penalty": 1.0,
        "no_repeat_ngram_size": 0,
        "min_tokens": 0,
        "seed": seed,
        "eos_token_ids": (VOCABULARY - 1,),
        "wants_logprob": False,
        "history": [1, 2, 3],
    }
    return SamplingRow(**(values | changes))  # type: ignore[arg-type]


def sampler(rows: int, **changes: object) -> Callable[[np.ndarray], object]:
    return BatchSampler([row(seed, **changes) for seed in range(rows)]).sample


WAYS: dict[str, Callable[[int], Callable[[np.ndarray], object]]] = {
    "np.argpartition, k=50": lambda _: lambda x: np.argpartition(x, VOCABULARY - 50, axis=1),
    "top_candidates, k=50": lambda _: lambda x: top_candidates(x, 50),
    "top-k 50, top-p 0.95": lambda rows: sampler(rows),
    "the same with log-probabilities": lambda rows: sampler(rows, wants_logprob=True),
    "the same with repetition penalty": lambda rows: sampler(rows, repetition_penalty=1.2),
    "no filter at all": lambda rows: sampler(rows, top_k=0, top_p=1.0),
    "top-p 0.95 alone": lambda rows: sampler(rows, top_k=0),
    "greedy": lambda rows: sampler(rows, do_sample=False),
}


def main() -> None:
    # Logits of a model are peaked; a standard deviation of 3 is nearer to them than of 1.
    logits = 3 * np.random.default_rng(0).normal(size=(max(SIZES), VOCABULARY))
    print(f"{'ms per step, rows:':40}" + "".join(f"{rows:>8}" for rows in SIZES))
    for name, make in WAYS.items():
        times = (milliseconds(make(rows), logits[:rows].astype(np.float32)) for rows in SIZES)
        print(f"{name:40}" + "".join(f"{value:8.2f}" for value in times), flush=True)


def milliseconds(function: Callable[[np.ndarray], object], logits: np.ndarray) -> float:
    times = []
    for _ in range(ROUNDS):
        mine = logits.copy()
        begin = time.perf_counter()
        function(mine)
        times.append(time.perf_counter() - begin)
    return 1e3 * statistics.median(times)


if __name__ == "__main__":
    main()
