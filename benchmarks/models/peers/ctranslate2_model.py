"""One model in CTranslate2, as its page on GPT-2 loads and runs it; int8."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ctranslate2
from transformers import AutoTokenizer

from benchmarks.models.peers.wire import TEMPERATURE, TOP_K, Text, Wish


class CTranslate2Model:
    """The tokenizer is the checkpoint's: a converted folder has none."""

    def __init__(self, folder: Path, checkpoint: Path, threads: int) -> None:
        self._tokenizer: Any = AutoTokenizer.from_pretrained(checkpoint)
        self._generator: Any = ctranslate2.Generator(
            str(folder),
            device="cpu",
            compute_type="int8",
            inter_threads=1,
            intra_threads=threads,
        )

    def generate(self, wish: Wish) -> Text:
        ctranslate2.set_random_seed(wish.seed)
        ids = self._tokenizer(wish.prompt)["input_ids"]
        result = self._generator.generate_batch(
            [self._tokenizer.convert_ids_to_tokens(ids)],
            sampling_topk=TOP_K,
            sampling_temperature=TEMPERATURE,
            max_length=wish.tokens,
            min_length=wish.tokens,
            include_prompt_in_result=False,
        )[0]
        made = result.sequences_ids[0]
        return Text(self._tokenizer.decode(ids + made), len(ids), len(made))
