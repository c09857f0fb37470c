"""transformers behind FastAPI: one request at a time, streamed by transformers' own streamer.

python -m benchmarks.load.peers.fastapi_transformers --checkpoint DIR --name ID ...
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import torch
from transformers import AsyncTextIteratorStreamer, GPT2LMHeadModel, GPT2TokenizerFast, set_seed

from benchmarks.load.peers import wire


class Transformers:
    """A lock around `generate`: one model has one generation at a time."""

    def __init__(self, checkpoint: Path, threads: int) -> None:
        torch.set_num_threads(threads)
        self._tokenizer = GPT2TokenizerFast.from_pretrained(checkpoint)
        self._model = GPT2LMHeadModel.from_pretrained(checkpoint).eval()
        self._lock = asyncio.Lock()

    async def generate(self, wish: wire.Wish) -> AsyncGenerator[str, None]:
        async with self._lock:
            streamer = AsyncTextIteratorStreamer(self._tokenizer, skip_prompt=True)
            work = asyncio.create_task(asyncio.to_thread(self._run, wish, streamer))
            try:
                async for piece in streamer:
                    yield piece
            finally:
                await work

    def _run(self, wish: wire.Wish, streamer: Any) -> None:
        inputs = self._tokenizer(wish.prompt, return_tensors="pt")
        wish.prompt_tokens = inputs["input_ids"].shape[1]
        if wish.seed is not None:
            set_seed(wish.seed)
        ids = self._model.generate(
            **inputs,
            streamer=streamer,
            do_sample=True,
            top_k=50,
            max_new_tokens=wish.max_tokens,
            min_new_tokens=wish.min_tokens,
            pad_token_id=self._tokenizer.eos_token_id,
        )
        wish.tokens = ids.shape[1] - wish.prompt_tokens


if __name__ == "__main__":
    args = wire.arguments()
    wire.serve(Transformers(args.checkpoint, args.threads), args.name, args.port)
