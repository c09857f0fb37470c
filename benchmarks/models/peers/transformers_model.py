"""One checkpoint in transformers, as its documentation loads and runs it: fp32, KV cache."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.models.peers.wire import TEMPERATURE, TOP_K, Text, Wish


class TransformersModel:
    """Not thread-safe: the seed is that of the whole process."""

    def __init__(self, folder: Path) -> None:
        self._tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        self._model: Any = AutoModelForCausalLM.from_pretrained(folder).eval()

    def generate(self, wish: Wish) -> Text:
        torch.manual_seed(wish.seed)
        inputs = self._tokenizer(wish.prompt, return_tensors="pt")
        with torch.inference_mode():
            output = self._model.generate(
                **inputs,
                do_sample=True,
                temperature=TEMPERATURE,
                top_k=TOP_K,
                max_new_tokens=wish.tokens,
                min_new_tokens=wish.tokens,
                pad_token_id=self._tokenizer.eos_token_id,
            )[0]
        prompt_tokens = inputs["input_ids"].shape[1]
        return Text(self._tokenizer.decode(output), prompt_tokens, len(output) - prompt_tokens)
