"""One server in the simulation: the real one's decisions, with measured times for its work.

Which models are in memory is decided by the server's own `ModelCache`, whose turn it is by its
`Turns`. The rest follows `gpt2serve.engine.core`, `residency` and `packing`: messages are handled
between two steps; one engine step at a time; beside the steps one load at a time, and one model
is packed at a time.

Not in it: KV cache as a limit, prompts longer than a chunk, the spread of step times.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from benchmarks.fleet.batch import Batch
from benchmarks.fleet.loader import NEVER, Loader, Packer
from benchmarks.fleet.times import Curve, ServerTimes
from gpt2serve.engine.model_cache import EvictReason, ModelCache, State
from gpt2serve.engine.turns import Turns, virtual_seconds
from gpt2serve.engine.worker import STEPS_WORTH_PACKING


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
        self._unpacked_decode = Curve(times.unpacked_decode)
        self._unpacked_prefill = Curve(times.unpacked_prefill)
        #: Requests, and what else is to be done between two steps.
        self._inbox: deque[int | Callable[[float], None]] = deque()
        self._turns = Turns()
        self._batches: dict[str, Batch] = {}
        self._working: list[Batch] = []
        self._unpacked: dict[str, Batch] = {}
        #: The model that is being packed.
        self._packing: str | None = None
        self._loading: dict[str, list[int]] = {}
        self._held_back: deque[int] = deque()
        self._stepping: Batch | None = None
        self._step_seconds = 0.0
        self._step_rows = 0
        self._step_end = NEVER
        self._loader = Loader(times)
        self._packer = Packer(times)

    # -- from outside ---------------------------------------------------------------------

    def warm(self, models: Iterable[int], was_here: Callable[[int], bool]) -> None:
        """Put packed models into memory, the least recently used first.

        was_here: whether this process has had another model before.
        """
        self._loader.was_here = was_here
        for model in models:
            self.cache.acquire(str(model), self._times.model_bytes, 0.0)
            for started in self.cache.start_loads(0.0):
                self._make_resident(started, 0.0, packed=True)
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
            self._inbox.append(partial(self._loaded, self._loader.finish(now)))
            self.loads += 1
        elif self._packer.end <= now:
            self._packer.finish()
            self._inbox.append(self._packed)
        else:
            self._end_step(now)
        if self._stepping is None:
            self._work(now)
        else:
            self._plan_next()

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
                message(now)
        batch = self._next_batch()
        if batch is not None:
            self._begin_step(batch, now)
        else:
            self._step_end = NEVER
            self._packer.pace(now, beside_steps=False)
        self._plan_next()

    def _next_batch(self) -> Batch | None:
        """Whose turn it is; None also if the only model with work is packed sooner without."""
        order = self._turns.order(self._working)
        if not order:
            return None
        packing = self._batches[self._packing] if self._packing is not None else None
        waits = len(order) == 1 and order[0] is packing and order[0].can_wait
        return None if waits else order[0]

    def _begin_step(self, batch: Batch, now: float) -> None:
        rows, prompt_tokens = batch.begin()
        if batch.packed:
            seconds = self._prefill.at(prompt_tokens) if prompt_tokens else self._decode.at(rows)
        elif prompt_tokens:
            seconds = self._unpacked_prefill.at(prompt_tokens)
        else:
            seconds = self._unpacked_decode.at(rows)
        if self._packer.busy:
            seconds *= self._times.step_beside_packing
        self._stepping, self._step_rows, self._step_seconds = batch, rows, seconds
        self._step_end = now + seconds
        self.steps += 1
        self.busy_seconds += seconds
        self._packer.pace(now, beside_steps=True)

    def _end_step(self, now: float) -> None:
        batch, self._stepping = self._stepping, None
        assert batch is not None
        first, ended = batch.end()
        begun, seconds = batch.virtual_time, self._step_seconds
        batch.virtual_time += virtual_seconds(seconds, self._step_rows)
        self._turns.spent(batch, self._working, packed=batch.packed, begun=begun, seconds=seconds)
        if not batch.has_work:
            self._working.remove(batch)
        for request in first:
            self._ledger.first_token(request, now)
        for request in ended:
            self.admitted -= 1
            self._ledger.ended(request, now)
            self.cache.release(str(self._ledger.models[request]), now)
        if ended:
            self._advance_models(now)
        self._start_packing(now)

    def _submit(self, request: int, now: float) -> None:
        self._admit(request, now)
        self._advance_models(now)

    def _admit(self, request: int, now: float) -> None:
        key = str(self._ledger.models[request])
        if key in self._to_hold_back(now):
            self._held_back.append(request)
            return
        state = self.cache.acquire(key, self._times.model_bytes, now)
        self._ledger.wanted(request, hit=state is State.RESIDENT)
        if state is State.RESIDENT:
            self._begin(request, key, now)
        else:
            self._loading.setdefault(key, []).append(request)

    def _to_hold_back(self, now: float) -> set[str]:
        return self.cache.held_back(self._settings.model_max_wait, now)

    def _begin(self, request: int, key: str, now: float) -> None:
        batch = self._batches[key]
        if not batch.has_work:
            # As in the server: an idle model has no claim to the time that it did not use.
            self._turns.begin(batch)
            self._working.append(batch)
        ledger = self._ledger
        batch.add(request, ledger.prompts[request], ledger.outputs[request])
        self._start_packing(now)

    # -- models ---------------------------------------------------------------------------

    def _advance_models(self, now: float) -> None:
        """Let begin what can begin now."""
        going_on = True
        while going_on:
            for key in self.cache.start_loads(now):
                self._loader.load(key, now)
            going_on = self._admit_held_back(now)

    def _admit_held_back(self, now: float) -> bool:
        """Those that need not be held back any more; False if there are none."""
        if not self._held_back:
            return False
        keys, models = self._to_hold_back(now), self._ledger.models
        free = [request for request in self._held_back if str(models[request]) not in keys]
        self._held_back = deque(r for r in self._held_back if str(models[r]) in keys)
        for request in free:
            self._admit(request, now)
        return bool(free)

    def _loaded(self, key: str, now: float) -> None:
        self._make_resident(key, now, packed=False)
        for request in self._loading.pop(key):
            self._begin(request, key, now)
        self._advance_models(now)

    def _make_resident(self, key: str, now: float, *, packed: bool) -> None:
        batch = self._batches[key] = Batch(
            max_batch_size=self._settings.max_batch_size,
            chunk=self._settings.prefill_chunk,
            packed=packed,
        )
        if not packed:
            self._unpacked[key] = batch
        self.cache.loaded(key, self._times.model_bytes, now)

    def _start_packing(self, now: float) -> None:
        """Of the models for which it is worth it, the one that gains most."""
        if self._packing is not None or not self._unpacked:
            return
        gains = {key: batch.steps_to_gain for key, batch in self._unpacked.items()}
        key = max(gains, key=gains.__getitem__)
        if gains[key] >= STEPS_WORTH_PACKING and self.cache.hold(key, now):
            self._packing = key
            self._packer.pack(now)

    def _packed(self, now: float) -> None:
        key, self._packing = self._packing, None
        assert key is not None
        self._unpacked.pop(key).packed = True
        self.cache.release(key, now)
        self._start_packing(now)
        self._advance_models(now)

    def _evicted(self, key: str, _reason: EvictReason) -> None:
        del self._batches[key]
        self._unpacked.pop(key, None)

    def _plan_next(self) -> None:
        self.next = min(self._step_end, self._loader.end, self._packer.end)
