"""transformers behind FastAPI: one request at a time, streamed by transformers' own streamer.

python -m benchmarks.load.peers.fastapi_transformers --checkpoint DIR --name ID ...
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AsyncTextIteratorStreamer,
    GPT2LMHeadModel,
    GPT2TokenizerFast,
    StoppingCriteriaList,
    set_seed,
)

from benchmarks.load.peers import wire


class Transformers:
    """A lock around `generate`: one model has one generation at a time."""

    def __init__(self, checkpoint: Path, threads: int) -> None:
        torch.set_num_threads(threads)
        self._tokenizer = GPT2TokenizerFast.from_pretrained(checkpoint)
        self._model = GPT2LMHeadModel.from_pretrained(checkpoint).eval()
        self._lock = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()

    async def generate(self, wish: wire.Wish) -> AsyncGenerator[str, None]:
        streamer = AsyncTextIteratorStreamer(self._tokenizer, skip_prompt=True)
        gone = threading.Event()
        work = asyncio.create_task(self._work(wish, streamer, gone))
        self._tasks.add(work)
        work.add_done_callback(self._tasks.discard)
        try:
            async for piece in streamer:
                yield piece
            await asyncio.shield(work)
        finally:
            gone.set()

    async def _work(self, wish: wire.Wish, streamer: Any, gone: threading.Event) -> None:
        """A task of its own, so that the lock is held to the end when the client's is cancelled."""
        async with self._lock:
            if not gone.is_set():
                await asyncio.to_thread(self._run, wish, streamer, gone)

    def _run(self, wish: wire.Wish, streamer: Any, gone: threading.Event) -> None:
        inputs = self._tokenizer(wish.prompt, return_tensors="pt")
        wish.prompt_tokens = inputs["input_ids"].shape[1]
        if wish.seed is not None:
            set_seed(wish.seed)

        def left(ids: Any, *_: Any, **__: Any) -> Any:
            """What `generate` asks after each token."""
            return torch.full((ids.shape[0],), gone.is_set(), dtype=torch.bool)

        try:
            ids = self._model.generate(
                **inputs,
                streamer=streamer,
                stopping_criteria=StoppingCriteriaList([left]),
                do_sample=True,
                top_k=50,
                max_new_tokens=wish.max_tokens,
                min_new_tokens=wish.min_tokens,
                pad_token_id=self._tokenizer.eos_token_id,
            )
        except BaseException:
            streamer.end()  # or the client would wait for ever
            raise
        wish.tokens = ids.shape[1] - wish.prompt_tokens


if __name__ == "__main__":
    args = wire.arguments()
    wire.serve(Transformers(args.checkpoint, args.threads), args.name, args.port)
