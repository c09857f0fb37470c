"""Time to score a prompt, for decision 16 in docs/decisions.

    python -m benchmarks.experiments.scoring

Seconds until a prompt of a 124M model in int8 is read and scored and nothing generated, by how
many of its places are scored in one step: the best of `--rounds` rounds, all in turn.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks.common.model import CACHE, prepare
from gpt2serve import Engine, SamplingParams
from gpt2serve.engine.preparation import PreparedRequest
from gpt2serve.engine.stream import BlockingStream
from gpt2serve.settings import engine_settings

TOKENS = (16, 64, 128, 256, 512, 1000)
TOGETHER = (1, 2, 4, 8, 16)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--cache", type=Path, default=CACHE)
    args = parser.parse_args()
    assets = prepare(args.cache, ["package-int8"])
    settings = engine_settings(
        assets.store,
        device="cpu",
        threads=args.threads,
        model_cache_bytes="1GiB",
        kv_cache_bytes="4GiB",
    )
    with Engine(settings=settings) as engine:
        engine.load(assets.model)
        print(f"{'s, places in one step:':24}{'reading':>9}{'chosen':>8}", end="")
        print("".join(f"{together:>9}" for together in TOGETHER))
        for tokens in TOKENS:
            print(_line(engine, assets.model, tokens, args.rounds), flush=True)


def _line(engine: Engine, model: str, tokens: int, rounds: int) -> str:
    prompt = np.random.default_rng(tokens).integers(0, 50_000, tokens).tolist()
    read = engine.prepare(model, prompt, SamplingParams(max_new_tokens=1))
    scores = engine.prepare(model, prompt, SamplingParams(max_new_tokens=0, prompt_logprobs=True))
    ways = [read, *(replace(scores, scored_together=together) for together in TOGETHER)]
    times = [[_seconds(engine, way) for way in ways] for _ in range(rounds)]
    reading, *scoring = np.min(times, axis=0)
    numbers = "".join(f"{seconds:9.3f}" for seconds in scoring)
    return f"{f'{tokens} tokens':24}{reading:9.3f}{scores.scored_together:8}{numbers}"


def _seconds(engine: Engine, prepared: PreparedRequest) -> float:
    stream = BlockingStream(prepared.model)
    begin = time.perf_counter()
    engine._admit(prepared, stream, wants_tokens=False)
    stream.result()
    return time.perf_counter() - begin


if __name__ == "__main__":
    main()
