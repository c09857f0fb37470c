"""What the engine tells about itself: events as they happen, and a snapshot at any time."""

from __future__ import annotations

from typing import Literal, Protocol

import msgspec

from gpt2serve.engine.events import FinishReason, Timing, Usage

StepKind = Literal["prefill", "decode"]


class RequestSummary(msgspec.Struct, frozen=True, kw_only=True):
    """A request that has ended. `error` is the error's code, None for success."""

    model: str
    error: str | None
    finish_reasons: tuple[FinishReason, ...]
    usage: Usage
    timing: Timing


class EngineStats(msgspec.Struct, frozen=True, kw_only=True):
    """The engine at the end of its last step, and in seconds how long some things take by now.

    Waiting requests are those that have no slot yet, for whatever reason. Leases are requests
    and others that use a model or wait for it. `unresponsive` is the time since the engine thread
    looked for messages, 0 while it waits for one: a thread that is stuck shows here.
    What is about the disk cache is None for a store that needs none.
    """

    requests_running: int = 0
    requests_waiting: int = 0
    requests_limit: int = 0
    sequences_running: int = 0
    kv_cache_used_bytes: int = 0
    kv_cache_limit_bytes: int = 0
    model_cache_used_bytes: int = 0
    model_cache_limit_bytes: int = 0
    models_resident: int = 0
    models_fetching: int = 0
    leases: int = 0
    oldest_load_wait: float = 0.0
    unresponsive: float = 0.0
    disk_cache_used_bytes: int | None = None
    disk_cache_limit_bytes: int | None = None
    store_reachable: bool = True


class Observer(Protocol):
    """Called in the engine thread: must return at once and must not raise.

    `model` is an id that the store has, or had.
    """

    def on_request_finished(self, summary: RequestSummary) -> None: ...

    def on_step(self, kind: StepKind, rows: int, seconds: float) -> None: ...

    def on_model_wanted(self, model: str, *, hit: bool) -> None:
        """A request came for a model that was resident (`hit`) or not."""

    def on_fetch(self, model: str, seconds: float, size: int, *, ok: bool) -> None:
        """A package of `size` bytes came from the store to the disk, or as much as came of it."""

    def on_load(self, model: str, seconds: float, *, ok: bool) -> None:
        """A load ended: the model can work, or it could not be loaded."""

    def on_pack(self, model: str, seconds: float, *, ok: bool) -> None:
        """A model that can work already was packed, or could not be."""

    def on_first_run(self, model: str, seconds: float) -> None:
        """A model made its first step since it was loaded."""

    def on_evict(self, model: str, reason: str) -> None:
        """`reason`: room, ttl, replaced, deleted or unload."""


class NoObserver:
    """For engines that nobody watches."""

    def on_request_finished(self, summary: RequestSummary) -> None: ...

    def on_step(self, kind: StepKind, rows: int, seconds: float) -> None: ...

    def on_model_wanted(self, model: str, *, hit: bool) -> None: ...

    def on_fetch(self, model: str, seconds: float, size: int, *, ok: bool) -> None: ...

    def on_load(self, model: str, seconds: float, *, ok: bool) -> None: ...

    def on_pack(self, model: str, seconds: float, *, ok: bool) -> None: ...

    def on_first_run(self, model: str, seconds: float) -> None: ...

    def on_evict(self, model: str, reason: str) -> None: ...
