"""One server in the simulation: the real one's decisions, with measured times for its work.

Which models are in memory is decided by the server's own `ModelCache`. The rest follows
`gpt2serve.engine.core`: messages are handled between two steps; one engine step at a time, of
the model that has had the least computing time; one load at a time, beside the steps.

Not in it: KV cache as a limit, prompts longer than a chunk, the spread of step times.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

from benchmarks.fleet.batch import Batch
from benchmarks.fleet.loader import NEVER, Loader
from benchmarks.fleet.times import Curve, ServerTimes
from gpt2serve.engine.model_cache import EvictReason, ModelCache, State


class Ledger(Protocol):
    """Requests by number: what a replica must know of them, and whom it tells what happens."""

    models: list[int]
    prompts: list[int]
    outputs: list[int]

    def wanted(self, request: int, *, hit: bool) -> None: ...

    def first_token(self, request: int, now: float) -> None: ...

    def ended(self, request: int, now: float) -> None: ...


@dataclass(frozen=True)
class Settings:
    """As `gpt2serve.settings.EngineSettings` has them."""

    cache_bytes: int
    max_queue: int = 256
    max_batch_size: int = 32
    prefill_chunk: int = 128
    model_max_wait: float = 2.0


class Replica:
    """`next` is when something happens here by itself; `advance` lets it happen."""

    def __init__(self, times: ServerTimes, settings: Settings, ledger: Ledger) -> None:
        self.next = NEVER
        self.admitted = 0
        self.steps = self.loads = 0
        self.busy_seconds = 0.0
        self.cache = ModelCache(settings.cache_bytes, on_evict=self._evicted)
        self._times, self._settings, self._ledger = times, settings, ledger
        self._decode, self._prefill = Curve(times.decode), Curve(times.prefill)
        self._inbox: deque[int | str] = deque()
        self._batches: dict[str, Batch] = {}
        self._working: list[Batch] = []
        self._loading: dict[str, list[int]] = {}
        self._held_back: deque[int] = deque()
        self._stepping: Batch | None = None
        self._step_seconds = 0.0
        self._step_rows = 0
        self._step_end = NEVER
        self._loader = Loader(times)

    # -- from outside ---------------------------------------------------------------------

    def warm(self, models: Iterable[int], was_here: Callable[[int], bool]) -> None:
        """Put models into memory, the least recently used first.

        was_here: whether this process has had another model before.
        """
        self._loader.was_here = was_here
        for model in models:
            self.cache.acquire(str(model), self._times.model_bytes, 0.0)
            for started in self.cache.start_loads(0.0):
                self._make_resident(started, 0.0)
            self._loader.known.add(str(model))
            self.cache.release(str(model), 0.0)

    def arrive(self, request: int, now: float) -> bool:
        """False if the queue is full."""
        if self.admitted >= self._settings.max_queue:
            return False
        self.admitted += 1
        self._inbox.append(request)
        if self._stepping is None:
            self._work(now)
        return True

    def advance(self) -> None:
        """What happens at `next`."""
        now = self.next
        if self._loader.end <= now:
            self._inbox.append(self._loader.finish(now))
            self.loads += 1
            if self._stepping is None:
                self._work(now)
            else:
                self._plan_next()
            return
        self._end_step(now)
        self._work(now)

    def requests(self) -> list[int]:
        """All that were admitted and have not ended."""
        waiting = [request for requests in self._loading.values() for request in requests]
        running = [request for batch in self._batches.values() for request in batch.requests()]
        inbox = [message for message in self._inbox if isinstance(message, int)]
        return running + waiting + list(self._held_back) + inbox

    # -- the engine thread ----------------------------------------------------------------

    def _work(self, now: float) -> None:
        while self._inbox:
            message = self._inbox.popleft()
            if isinstance(message, int):
                self._submit(message, now)
            else:
                self._loaded(message, now)
        if self._working:
            self._begin_step(min(self._working, key=_virtual_time), now)
        else:
            self._step_end = NEVER
            self._loader.pace(now, beside_steps=False)
        self._plan_next()

    def _begin_step(self, batch: Batch, now: float) -> None:
        rows, prompt_tokens = batch.begin()
        seconds = self._prefill.at(prompt_tokens) if prompt_tokens else self._decode.at(rows)
        if self._loader.busy:
            seconds *= self._times.step_slowdown
        self._stepping, self._step_rows, self._step_seconds = batch, rows, seconds
        self._step_end = now + seconds
        self.steps += 1
        self.busy_seconds += seconds
        self._loader.pace(now, beside_steps=True)

    def _end_step(self, now: float) -> None:
        batch, self._stepping = self._stepping, None
        assert batch is not None
        first, ended = batch.end()
        batch.virtual_time += self._step_seconds / self._step_rows
        if not batch.has_work:
            self._working.remove(batch)
        for request in first:
            self._ledger.first_token(request, now)
        for request in ended:
            self.admitted -= 1
            self._ledger.ended(request, now)
            self.cache.release(self._key(request), now)
        if ended:
            self._start_loads(now)

    def _submit(self, request: int, now: float) -> None:
        if self._key(request) in self._to_hold_back(now):
            self._held_back.append(request)
        else:
            self._acquire(request, now)
            self._start_loads(now)

    def _key(self, request: int) -> str:
        return str(self._ledger.models[request])

    def _to_hold_back(self, now: float) -> set[str]:
        return self.cache.held_back(self._settings.model_max_wait, now)

    def _acquire(self, request: int, now: float) -> None:
        key = self._key(request)
        state = self.cache.acquire(key, self._times.model_bytes, now)
        self._ledger.wanted(request, hit=state is State.RESIDENT)
        if state is State.RESIDENT:
            self._begin(request, key)
        else:
            self._loading.setdefault(key, []).append(request)

    def _begin(self, request: int, key: str) -> None:
        batch = self._batches[key]
        if not batch.has_work:
            # As in the server: an idle model has no claim to the time that it did not use.
            busy = min((other.virtual_time for other in self._working), default=0.0)
            batch.virtual_time = max(batch.virtual_time, busy)
            self._working.append(batch)
        ledger = self._ledger
        batch.add(request, ledger.prompts[request], ledger.outputs[request])

    # -- models ---------------------------------------------------------------------------

    def _start_loads(self, now: float) -> None:
        going_on = True
        while going_on:
            for key in self.cache.start_loads(now):
                self._loader.load(key, now)
            going_on = self._admit_held_back(now)

    def _admit_held_back(self, now: float) -> bool:
        """Those that need not be held back any more; False if there are none."""
        if not self._held_back:
            return False
        keys = self._to_hold_back(now)
        free = [request for request in self._held_back if self._key(request) not in keys]
        self._held_back = deque(r for r in self._held_back if self._key(r) in keys)
        for request in free:
            self._acquire(request, now)
        return bool(free)

    def _loaded(self, key: str, now: float) -> None:
        self._make_resident(key, now)
        for request in self._loading.pop(key):
            self._begin(request, key)
        self._start_loads(now)

    def _make_resident(self, key: str, now: float) -> None:
        self._batches[key] = Batch(
            max_batch_size=self._settings.max_batch_size, chunk=self._settings.prefill_chunk
        )
        self.cache.loaded(key, self._times.model_bytes, now)

    def _evicted(self, key: str, _reason: EvictReason) -> None:
        del self._batches[key]

    def _plan_next(self) -> None:
        self.next = min(self._step_end, self._loader.end)


def _virtual_time(batch: Batch) -> float:
    return batch.virtual_time
