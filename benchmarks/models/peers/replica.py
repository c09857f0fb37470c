"""What a Ray Serve replica does with its models, without Ray: threads, and who waited for what."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from benchmarks.models.peers.wire import Loaded, Model, Wish, answer


class Replica:
    """Whatever blocks runs in threads, as Ray Serve asks for.

    Loads have a thread of their own, so that they run beside texts; one is enough, since Ray
    loads one model at a time. Texts have one too, because each computes with all cores.
    """

    def __init__(self, load: Callable[[str], Model]) -> None:
        self._load = load
        self._loading = ThreadPoolExecutor(1)
        self._computing = ThreadPoolExecutor(1)

    async def load(self, model_id: str) -> Loaded:
        loop = asyncio.get_running_loop()
        return Loaded(await loop.run_in_executor(self._loading, self._load, model_id))

    async def answer(self, wish: Wish, get: Callable[[], Awaitable[Loaded]]) -> dict[str, Any]:
        """get: gives the model, which `load` has loaded, now or some time ago."""
        asked = time.perf_counter()
        loaded = await get()
        loop = asyncio.get_running_loop()
        made = await loop.run_in_executor(self._computing, loaded.model.generate, wish)
        return answer(wish, made, loaded.waited(asked))
