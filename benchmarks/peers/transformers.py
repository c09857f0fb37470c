"""`generate` of transformers with PyTorch.

As its documentation advises (Text generation; Attention interface): scaled_dot_product_attention,
a KV cache, `inference_mode`, and on a GPU half precision. `torch.set_num_threads` is PyTorch's
(CPU threading and TorchScript inference).
"""

from __future__ import annotations

import time
from typing import Any

from benchmarks.peers import TOP_K, timing


class Peer:
    device = "cpu"

    def __init__(self, precision: str, threads: int) -> None:
        import torch
        import transformers

        torch.set_num_threads(threads)
        self._torch = torch
        self._transformers = transformers
        self._dtype = {"fp32": torch.float32, "fp16": torch.float16}[precision]
        self._model: Any = None

    def load(self, assets: dict[str, Any]) -> dict[str, float]:
        begin = time.perf_counter()
        model = self._transformers.GPT2LMHeadModel.from_pretrained(
            assets["checkpoint"], dtype=self._dtype, attn_implementation="sdpa"
        )
        self._model = model.to(self.device).eval()
        return {"seconds": time.perf_counter() - begin}

    def unload(self) -> None:
        self._model = None

    def generate(
        self, prompts: list[dict[str, Any]], tokens: int, seeds: list[int] | None = None
    ) -> dict[str, Any]:
        """One seed for the batch: the first."""
        ids = self._torch.tensor([prompt["ids"] for prompt in prompts], device=self.device)
        if seeds:
            self._torch.manual_seed(seeds[0])
        clock = Clock()
        begin = time.perf_counter()
        with self._torch.inference_mode():
            made = self._model.generate(
                ids,
                attention_mask=self._torch.ones_like(ids),
                do_sample=True,
                temperature=1.0,
                top_k=TOP_K,
                top_p=1.0,
                max_new_tokens=tokens,
                min_new_tokens=tokens,
                pad_token_id=self._model.config.eos_token_id,
                streamer=clock,
            )
        made = made[:, ids.shape[1] :].tolist()
        end = time.perf_counter()
        stamps = [clock.stamps] * len(prompts)
        return timing.check(timing.report(begin, end, stamps, made), len(prompts), tokens)

    def close(self) -> None:
        self.unload()


class CudaPeer(Peer):
    """Not measured yet."""

    device = "cuda"


class Clock:
    """A streamer that only looks at the clock; `generate` calls it with every step's tokens."""

    def __init__(self) -> None:
        self.stamps: list[float] = []
        self._has_prompt = False

    def put(self, tokens: object) -> None:
        del tokens
        if self._has_prompt:
            self.stamps.append(time.perf_counter())
        self._has_prompt = True

    def end(self) -> None: ...
