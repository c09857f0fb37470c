"""`generate_batch` of CTranslate2, one prompt a text.

As its documentation advises (Performance tips; Multithreading and parallelism; Text generation):
int8 on CPUs, `include_prompt_in_result=False`, so that a prompt is read at once, scores left out,
as many threads in all as there are cores, and all of them for one batch, since there is one.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from benchmarks.peers import TOP_K, timing

_COMPUTE_TYPES = {"int8": "int8", "fp32": "float32"}


class Peer:
    def __init__(self, precision: str, threads: int) -> None:
        import ctranslate2

        self._ctranslate2 = ctranslate2
        self._precision = precision
        self._threads = threads
        self._generator: Any = None
        self._tokens: list[str] = []

    def load(self, assets: dict[str, Any]) -> dict[str, float]:
        vocabulary = json.loads(Path(assets["checkpoint"], "vocab.json").read_text("utf-8"))
        self._tokens = sorted(vocabulary, key=vocabulary.__getitem__)
        begin = time.perf_counter()
        self._generator = self._ctranslate2.Generator(
            str(Path(assets["ct2"], self._precision)),
            device="cpu",
            compute_type=_COMPUTE_TYPES[self._precision],
            inter_threads=1,
            intra_threads=self._threads,
        )
        return {"seconds": time.perf_counter() - begin}

    def unload(self) -> None:
        if self._generator is not None:
            self._generator.unload_model()
            self._generator = None

    def generate(
        self, prompts: list[dict[str, Any]], tokens: int, seeds: list[int] | None = None
    ) -> dict[str, Any]:
        """One seed for the batch: the first."""
        if seeds:
            self._ctranslate2.set_random_seed(seeds[0])
        words = [[self._tokens[token] for token in prompt["ids"]] for prompt in prompts]
        stamps: list[list[float]] = [[] for _ in prompts]

        def on_token(step: Any) -> bool:
            stamps[step.batch_id].append(time.perf_counter())
            return False  # go on

        begin = time.perf_counter()
        results = self._generator.generate_batch(
            words,
            sampling_topk=TOP_K,
            sampling_temperature=1.0,
            max_length=tokens,
            min_length=tokens,
            include_prompt_in_result=False,
            callback=on_token,
        )
        ids = [result.sequences_ids[0] for result in results]
        end = time.perf_counter()
        return timing.check(timing.report(begin, end, stamps, ids), len(prompts), tokens)

    def close(self) -> None:
        self.unload()
