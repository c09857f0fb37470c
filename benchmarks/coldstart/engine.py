"""The engine in a process of its own, told what to load and watched while it does.

A model is made cold as in life: other models push it out of the model cache. They are tiny, and
the cache has room for the one large model only.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from typing import Any

from benchmarks.coldstart.eviction import evict
from benchmarks.coldstart.memory import trim
from benchmarks.coldstart.phases import Span, split
from benchmarks.peers import TOP_K

#: Threads that pack.
PACKERS = "gpt2serve-pack"
#: A thread of the engine's frees models; who evicts one does not wait for that.
FREEING_SECONDS = 0.3


class Engine:
    """The far side of a `Worker`.

    budget: bytes of the model cache. packed_first: load models in the simple way, as one session
    that is packed before it computes anything.
    """

    def __init__(
        self,
        store: str,
        budget: int,
        precision: str,
        threads: int,
        packed_first: bool = False,  # noqa: FBT001, FBT002 - called by keyword, from JSON
    ) -> None:
        import gpt2serve

        if packed_first:
            _pack_first()
        self._sampling = gpt2serve.SamplingParams
        self._token = gpt2serve.TokenEvent
        self._watch = Watch(packing_first=packed_first)
        self._engine = gpt2serve.Engine(
            store, precision=precision, threads=threads, model_cache_bytes=budget
        )
        self._engine.start()

    def start(self, model: str, prompt: str, tokens: int) -> dict[str, Any]:
        """Seconds to the "first" token and until "done", and the "phases" of the first."""
        if self._state(model) != "cold":
            raise RuntimeError(f"{model} is {self._state(model)}.")
        self._watch.spans.clear()
        begin, moments = asyncio.run(self._stream(model, prompt, tokens))
        if len(moments) != tokens:
            raise RuntimeError(f"Asked for {tokens} tokens, got {len(moments)}.")
        return {
            "first": moments[0] - begin,
            "done": moments[-1] - begin,
            "phases": split(self._watch.spans, begin, moments[0]),
        }

    async def _stream(self, model: str, prompt: str, tokens: int) -> tuple[float, list[float]]:
        params = self._sampling(
            max_new_tokens=tokens, min_new_tokens=tokens, do_sample=True, top_k=TOP_K, top_p=1.0
        )
        begin = time.perf_counter()
        moments = [
            time.perf_counter()
            async for event in self._engine.stream(model, prompt, params)
            if isinstance(event, self._token)
        ]
        return begin, moments

    def stop(self, model: str) -> None:
        """Returns when the model's memory was given back."""
        evict(model, self._state, self._engine.load)
        time.sleep(FREEING_SECONDS)
        trim()

    def _state(self, model: str) -> str:
        states = {one.id: one.state for one in self._engine.list_models(limit=1000)}
        return states[model]

    def close(self) -> None:
        self._engine.close()


def _pack_first() -> None:
    from gpt2serve.engine import loader, runner

    for module in (loader, runner):
        module.can_be_unpacked = lambda *_: False  # type: ignore[attr-defined]


class Watch:
    """Notes when the engine is in which phase, around the calls that make it up.

    Packing beside the first tokens is none: it is what is going on in the background.
    """

    def __init__(self, *, packing_first: bool) -> None:
        import onnxruntime

        from gpt2serve.engine.runner import Runner
        from gpt2serve.engine.stores.folder_store import FolderStore

        self.spans: list[Span] = []
        self._packing_first = packing_first
        self._over(FolderStore, "_verify", "check")
        self._over(onnxruntime.InferenceSession, "__init__", "session")
        self._over(Runner, "warm_up", "warm-up")
        self._over(onnxruntime.InferenceSession, "run_with_iobinding", "prefill")

    def _over(self, owner: type, name: str, phase: str) -> None:
        original: Callable[..., Any] = getattr(owner, name)

        def timed(*args: Any, **options: Any) -> Any:
            begin = time.perf_counter()
            try:
                return original(*args, **options)
            finally:
                if packing_first or not threading.current_thread().name.startswith(PACKERS):
                    self.spans.append((phase, begin, time.perf_counter()))

        packing_first = self._packing_first
        setattr(owner, name, timed)
