"""CTranslate2 behind FastAPI: requests that wait are put into one batch.

CTranslate2 has no batching of requests that come one by one. Its `async_generate_tokens` waits
for tokens on the event loop and so stops all other requests. Here a task takes whatever waits, up
to `MOST_TOGETHER`, as one `generate_batch` with all threads; its callback streams each token and
ends each text at its own length. Who comes meanwhile waits for the batch to end.

CTranslate2 computes prompts together only as far as the shortest of a batch goes, and feeds the
rest of the longer ones step by step. Those steps count for its lengths, and some of them are told
to the callback; so each text is counted here.

    python -m benchmarks.load.peers.fastapi_ctranslate2 --converted DIR --checkpoint DIR ...
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ctranslate2
from transformers import GPT2TokenizerFast

from benchmarks.load.peers import wire

MOST_TOGETHER = 32


@dataclass
class _Job:
    """made: tokens so far. gone: its client left."""

    wish: wire.Wish
    prompt: list[str]
    #: Token ids, then None.
    tokens: asyncio.Queue[int | None] = field(default_factory=asyncio.Queue)
    made: int = 0
    gone: bool = False


class CTranslate2:
    def __init__(self, converted: Path, checkpoint: Path, threads: int) -> None:
        self._tokenizer = GPT2TokenizerFast.from_pretrained(checkpoint)
        self._generator = ctranslate2.Generator(
            str(converted), inter_threads=1, intra_threads=threads
        )
        self._waiting: asyncio.Queue[_Job] = asyncio.Queue()
        self._task: asyncio.Task[None] | None = None

    async def generate(self, wish: wire.Wish) -> AsyncGenerator[str, None]:
        if self._task is None:
            self._task = asyncio.create_task(self._serve())
        job = _Job(wish, self._tokenizer.tokenize(wish.prompt))
        wish.prompt_tokens = len(job.prompt)
        self._waiting.put_nowait(job)
        try:
            while (token := await job.tokens.get()) is not None:
                wish.tokens += 1
                yield self._tokenizer.decode([token])
        finally:
            job.gone = True

    async def _serve(self) -> None:
        while True:
            batch = await self._next_batch()
            try:
                await asyncio.to_thread(self._run, batch, asyncio.get_running_loop())
            finally:
                for job in batch:
                    job.tokens.put_nowait(None)

    async def _next_batch(self) -> list[_Job]:
        """One or more that still want their text."""
        batch: list[_Job] = []
        while not batch or (len(batch) < MOST_TOGETHER and not self._waiting.empty()):
            job = await self._waiting.get()
            if not job.gone:
                batch.append(job)
        return batch

    def _run(self, batch: list[_Job], loop: asyncio.AbstractEventLoop) -> None:
        """One seed for the batch: CTranslate2 has one for the whole process."""
        if batch[0].wish.seed is not None:
            ctranslate2.set_random_seed(batch[0].wish.seed)
        shortest = min(len(job.prompt) for job in batch)
        steps_of_prompts = [len(job.prompt) - shortest for job in batch]

        def tell(job: _Job, token: int | None) -> None:
            loop.call_soon_threadsafe(job.tokens.put_nowait, token)

        def on_token(step: Any) -> bool:
            """Whether the text ends here."""
            job: _Job = batch[step.batch_id]
            if step.step < steps_of_prompts[step.batch_id]:
                return job.gone
            is_last: bool = step.token_id == self._tokenizer.eos_token_id
            if not is_last:
                job.made += 1
                tell(job, step.token_id)
                is_last = job.made == job.wish.max_tokens
            if is_last:
                tell(job, None)
            return is_last or job.gone

        # One length for all: long enough for each, and `on_token` ends those that are shorter.
        lengths = list(zip(steps_of_prompts, batch, strict=True))
        self._generator.generate_batch(
            [job.prompt for job in batch],
            max_length=max(steps + job.wish.max_tokens for steps, job in lengths),
            min_length=max(steps + job.wish.min_tokens for steps, job in lengths),
            sampling_topk=50,
            sampling_temperature=1.0,
            include_prompt_in_result=False,
            callback=on_token,
        )


if __name__ == "__main__":
    args = wire.arguments()
    wire.serve(CTranslate2(args.converted, args.checkpoint, args.threads), args.name, args.port)
