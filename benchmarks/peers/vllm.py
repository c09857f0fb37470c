"""vLLM offline, `LLM.generate`, on CUDA. Written from its documentation, not measured yet.

As that advises (Offline inference; Engine arguments; Optimization and tuning): its defaults, that
is CUDA graphs and chunked prefill, in fp16. Three are changed: the length is GPT-2's; half of the
GPU's memory instead of 90 %, because others are on it, which is plenty for the largest batch; and
no prefix caching, because the same prompts come in every round and would not be read again.
`LLM.generate` does not tell when a first token was there, so the time to it is that of a call for
one token, just before.
"""

from __future__ import annotations

import importlib
import time
from typing import Any

from benchmarks.peers import LARGEST_BATCH, TOP_K, timing

_CONTEXT_LENGTH = 1024
_MEMORY_SHARE = 0.5


class Peer:
    def __init__(self, precision: str, threads: int) -> None:
        del precision, threads  # fp16, and the GPU has no threads of this kind
        self._vllm: Any = importlib.import_module("vllm")
        self._llm: Any = None

    def load(self, assets: dict[str, Any]) -> dict[str, float]:
        begin = time.perf_counter()
        self._llm = self._vllm.LLM(
            model=assets["checkpoint"],
            dtype="float16",
            max_model_len=_CONTEXT_LENGTH,
            max_num_seqs=LARGEST_BATCH,
            gpu_memory_utilization=_MEMORY_SHARE,
            enable_prefix_caching=False,
        )
        return {"seconds": time.perf_counter() - begin}

    def unload(self) -> None:
        self._llm = None

    def generate(
        self, prompts: list[dict[str, Any]], tokens: int, seeds: list[int] | None = None
    ) -> dict[str, Any]:
        first, ids = self._timed(prompts, 1, seeds)
        seconds = first
        if tokens > 1:
            seconds, ids = self._timed(prompts, tokens, seeds)
        made = {
            "seconds": seconds,
            "first_seconds": first,
            "decode_seconds": seconds - first,
            "decode_steps": tokens - 1,
            "lengths": [len(text) for text in ids],
            "ids": ids,
        }
        return timing.check(made, len(prompts), tokens)

    def _timed(
        self, prompts: list[dict[str, Any]], tokens: int, seeds: list[int] | None
    ) -> tuple[float, list[list[int]]]:
        """Seconds, and the ids of each text."""
        params = [
            self._vllm.SamplingParams(
                temperature=1.0,
                top_k=TOP_K,
                top_p=1.0,
                max_tokens=tokens,
                min_tokens=tokens,
                ignore_eos=True,
                seed=seeds[number] if seeds else None,
            )
            for number in range(len(prompts))
        ]
        begin = time.perf_counter()
        results = self._llm.generate(
            [{"prompt_token_ids": prompt["ids"]} for prompt in prompts], params, use_tqdm=False
        )
        seconds = time.perf_counter() - begin
        return seconds, [list(result.outputs[0].token_ids) for result in results]

    def close(self) -> None:
        self.unload()
