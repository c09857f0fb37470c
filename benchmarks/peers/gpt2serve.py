"""This project's engine in the caller's process, as a server uses it: one request a prompt.

Set up with its defaults, but for the number of threads and the batch size, whose default is
smaller than the largest batch that is measured. It takes texts, so its tokenising is in its time.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

from benchmarks.peers import LARGEST_BATCH, TOP_K, timing


class Peer:
    device = "cpu"

    def __init__(self, precision: str, threads: int) -> None:
        import gpt2serve

        self._gpt2serve = gpt2serve
        self._options: dict[str, Any] = {
            "device": self.device,
            "precision": precision,
            "threads": threads,
            "max_batch_size": LARGEST_BATCH,
        }
        self._engine: Any = None
        self._model = ""

    def load(self, assets: dict[str, Any]) -> dict[str, float]:
        """ "start" is the engine's own start, which a server does once; not in "seconds"."""
        begin = time.perf_counter()
        self._steps = Steps()
        self._engine = self._gpt2serve.Engine(
            assets["store"], observer=self._steps, **self._options
        )
        self._engine.start()
        started = time.perf_counter()
        self._model = assets["model"]
        self._engine.load(self._model, pin=True)
        return {"seconds": time.perf_counter() - started, "start": started - begin}

    def unload(self) -> None:
        if self._engine is not None:
            self._engine.close()
            self._engine = None

    def generate(
        self, prompts: list[dict[str, Any]], tokens: int, seeds: list[int] | None = None
    ) -> dict[str, Any]:
        self._steps.clear()
        begin = time.perf_counter()
        results = asyncio.run(self._generate(prompts, tokens, seeds))
        end = time.perf_counter()
        for prompt, result in zip(prompts, results, strict=True):
            if result.usage.prompt_tokens != len(prompt["ids"]):
                raise RuntimeError(f"A prompt became {result.usage.prompt_tokens} tokens.")
        seconds, steps = self._steps.together(len(prompts))
        made = {
            "seconds": end - begin,
            "first_seconds": self._steps.all_begun - begin,
            "decode_seconds": seconds,
            "decode_steps": steps,
            "lengths": [result.generations[0].tokens for result in results],
            "ids": [ids_of(result) for result in results],
        }
        return timing.check(made, len(prompts), tokens)

    async def _generate(
        self, prompts: list[dict[str, Any]], tokens: int, seeds: list[int] | None
    ) -> list[Any]:
        prepared = []
        for number, prompt in enumerate(prompts):
            params = self._gpt2serve.SamplingParams(
                max_new_tokens=tokens,
                min_new_tokens=tokens,
                do_sample=True,
                temperature=1.0,
                top_k=TOP_K,
                top_p=1.0,
                seed=seeds[number] if seeds else None,
                details=seeds is not None,
            )
            prepared.append(self._engine.prepare(self._model, prompt["text"], params))
        streams = [self._engine.submit(one, wants_tokens=False) for one in prepared]
        return [await stream.result() for stream in streams]

    def close(self) -> None:
        self.unload()


class CudaPeer(Peer):
    """Not measured yet. docs/gpu.md says how to install it."""

    device = "cuda"


def ids_of(result: Any) -> list[int]:
    """Token ids of the first text; they are there if the request asked for details."""
    return [token.id for token in result.generations[0].details or ()]


class Steps:
    """When the engine ended each step: an observer, called in the engine's thread."""

    def __init__(self) -> None:
        self._ended: list[tuple[str, int, float]] = []

    def clear(self) -> None:
        self._ended.clear()

    @property
    def all_begun(self) -> float:
        """When the last prompt had its first token."""
        return max(moment for kind, _, moment in self._ended if kind == "prefill")

    def together(self, rows: int) -> tuple[float, int]:
        """Seconds in which `rows` texts grew together, and the number of steps."""
        full = [n for n, step in enumerate(self._ended) if step[:2] == ("decode", rows)]
        if not full:
            return 0.0, 0
        return self._ended[full[-1]][2] - self._ended[full[0] - 1][2], len(full)

    def on_step(self, kind: str, rows: int, seconds: float) -> None:
        del seconds
        self._ended.append((kind, rows, time.perf_counter()))

    def on_request_finished(self, summary: object) -> None: ...

    def on_model_wanted(self, model: str, *, hit: bool) -> None: ...

    def on_fetch(self, model: str, seconds: float, size: int, *, ok: bool) -> None: ...

    def on_load(self, model: str, seconds: float, *, ok: bool) -> None: ...

    def on_pack(self, model: str, seconds: float, *, ok: bool) -> None: ...

    def on_first_run(self, model: str, seconds: float) -> None: ...

    def on_evict(self, model: str, reason: str) -> None: ...
