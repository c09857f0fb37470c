"""The model cache against a reference that keeps everything in plain lists."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from gpt2serve.engine.model_cache import ModelCache, State
from gpt2serve.errors import ModelLoadFailed, ModelTooLarge

KEYS = [f"model-{n}" for n in range(6)]
BUDGET = 100
RETRY_MIN, RETRY_MAX = 1.0, 8.0


@dataclass
class Known:
    """What the reference knows of one model in the cache."""

    size: int
    state: State
    leases: int = 0
    pinned: bool = False
    asked: int = 0
    used: int = 0


@dataclass
class Reference:
    models: dict[str, Known] = field(default_factory=dict)
    #: (until, backoff) of failed loads; kept for ever, which the real one must not do.
    failed: dict[str, tuple[float, float]] = field(default_factory=dict)
    ticks: int = 0

    def tick(self) -> int:
        self.ticks += 1
        return self.ticks

    @property
    def memory(self) -> int:
        return sum(m.size for m in self.models.values() if m.state is not State.BLOCKED)

    def evictable(self) -> list[str]:
        """Least recently used first."""
        able = [
            key
            for key, m in self.models.items()
            if m.state is State.RESIDENT and not m.leases and not m.pinned
        ]
        return sorted(able, key=lambda key: self.models[key].used)

    def make_room(self, size: int) -> list[str] | None:
        """Who goes so that `size` bytes fit; None if even that does not help."""
        gone: list[str] = []
        free = BUDGET - self.memory
        for key in self.evictable():
            if free >= size:
                break
            gone.append(key)
            free += self.models[key].size
        return gone if free >= size else None


class ModelCacheMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.evicted: list[str] = []
        self.cache = ModelCache(
            BUDGET, retry_min=RETRY_MIN, retry_max=RETRY_MAX, on_evict=self.evicted.append
        )
        self.reference = Reference()
        self.now = 0.0

    # -- requests -----------------------------------------------------------------------------

    @rule(key=st.sampled_from(KEYS), size=st.integers(10, 60) | st.integers(1, 110))
    def acquire(self, key: str, size: int) -> None:
        self.now += 1e-6  # no two requests come at one instant of a monotonic clock
        reference = self.reference
        known = reference.models.get(key)
        until = reference.failed.get(key, (0.0, 0.0))[0]
        if known is None and self.now < until:
            with pytest.raises(ModelLoadFailed) as caught:
                self.cache.acquire(key, size, self.now)
            assert caught.value.retry_after == pytest.approx(until - self.now)
            return
        pinned = sum(m.size for m in reference.models.values() if m.pinned)
        if known is None and size > BUDGET - pinned:
            with pytest.raises(ModelTooLarge):
                self.cache.acquire(key, size, self.now)
            return
        if known is None:
            known = reference.models[key] = Known(size, State.BLOCKED, asked=reference.tick())
        known.leases += 1
        known.used = reference.tick()
        assert self.cache.acquire(key, size, self.now) is known.state

    @precondition(lambda self: any(m.leases for m in self.reference.models.values()))
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        models = self.reference.models
        key = data.draw(st.sampled_from(sorted(k for k, m in models.items() if m.leases)))
        known = models[key]
        known.leases -= 1
        self.cache.release(key)
        if not known.leases and not known.pinned and known.state is State.BLOCKED:
            del models[key]
        self._shed()

    @precondition(lambda self: any(m.leases for m in self.reference.models.values()))
    @rule(data=st.data())
    def pin(self, data: st.DataObject) -> None:
        # Pins are asked for by a request that holds a lease, and only a few fit.
        models = self.reference.models
        key = data.draw(st.sampled_from(sorted(k for k, m in models.items() if m.leases)))
        if sum(m.size for m in models.values() if m.pinned) + models[key].size > BUDGET // 2:
            return
        models[key].pinned = True
        self.cache.pin(key)

    # -- loads --------------------------------------------------------------------------------

    @rule()
    def start_loads(self) -> None:
        reference = self.reference
        expected, gone = [], []
        blocked = sorted(
            (k for k, m in reference.models.items() if m.state is State.BLOCKED),
            key=lambda k: reference.models[k].asked,
        )
        for key in blocked:
            victims = reference.make_room(reference.models[key].size)
            if victims is None:
                break  # nobody overtakes the one that waits longest
            for victim in victims:
                del reference.models[victim]
            gone += victims
            reference.models[key].state = State.LOADING
            expected.append(key)
        self.evicted.clear()
        assert self.cache.start_loads(self.now) == expected
        assert self.evicted == gone
        if expected:
            assert self.cache.used <= BUDGET

    @precondition(
        lambda self: any(m.state is State.LOADING for m in self.reference.models.values())
    )
    @rule(data=st.data(), share=st.sampled_from([50, 100, 100, 120, 200]))
    def loaded(self, data: st.DataObject, share: int) -> None:
        key = self._a_loading_one(data)
        known = self.reference.models[key]
        known.size = max(1, known.size * share // 100)
        known.state = State.RESIDENT
        self.reference.failed.pop(key, None)
        self.evicted.clear()
        self.cache.loaded(key, known.size)
        self._shed(clear=False)

    @precondition(
        lambda self: any(m.state is State.LOADING for m in self.reference.models.values())
    )
    @rule(data=st.data())
    def failed(self, data: st.DataObject) -> None:
        key = self._a_loading_one(data)
        del self.reference.models[key]
        _, before = self.reference.failed.get(key, (0.0, 0.0))
        backoff = min(before * 2 or RETRY_MIN, RETRY_MAX)
        self.reference.failed[key] = (self.now + backoff, backoff)
        self.cache.failed(key, "broken", self.now)
        with pytest.raises(ModelLoadFailed, match="broken"):
            self.cache.acquire(key, 1, self.now)

    @rule(key=st.sampled_from(KEYS))
    def evict(self, key: str) -> None:
        possible = key in self.reference.evictable()
        assert self.cache.evict(key) == possible
        if possible:
            del self.reference.models[key]

    @rule(seconds=st.sampled_from([0.25, 1.0, 3.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def wait_long(self) -> None:
        """All failures, and what was learnt from them, are forgotten."""
        self.now += 3 * RETRY_MAX
        self.reference.failed.clear()
        # It is the next request that sweeps.
        with pytest.raises(ModelTooLarge):
            self.cache.acquire("nobody", 10**9, self.now)
        assert not self.cache._failures

    # -- always -------------------------------------------------------------------------------

    @invariant()
    def agrees(self) -> None:
        self.cache.check_integrity()
        reference = self.reference
        assert self.cache.used == reference.memory
        if self.cache.used > BUDGET:
            assert not reference.evictable()
        resident = {k: m for k, m in reference.models.items() if m.state is State.RESIDENT}
        assert {k: e.size for k, e in self.cache.resident().items()} == {
            k: m.size for k, m in resident.items()
        }
        for key in KEYS:
            assert self.cache.state(key, self.now) == self._state(key)

    def _state(self, key: str) -> str:
        known = self.reference.models.get(key)
        if known is not None:
            return "resident" if known.state is State.RESIDENT else "loading"
        until = self.reference.failed.get(key, (0.0, 0.0))[0]
        return "failed" if self.now < until else "cold"

    def _a_loading_one(self, data: st.DataObject) -> str:
        models = self.reference.models
        loading = sorted(k for k, m in models.items() if m.state is State.LOADING)
        return data.draw(st.sampled_from(loading))

    def _shed(self, *, clear: bool = True) -> None:
        """What measured more than was predicted goes as soon as it can."""
        reference = self.reference
        if clear:
            self.evicted.clear()
        while reference.memory > BUDGET and reference.evictable():
            del reference.models[reference.evictable()[0]]


def test_cache_agrees_with_the_reference() -> None:
    run_state_machine_as_test(
        ModelCacheMachine,
        settings=settings(
            deadline=None, derandomize=True, max_examples=120, stateful_step_count=50
        ),
    )


def test_integrity_check_notices() -> None:
    cache: Any = ModelCache(10)
    cache.acquire("a", 5, 0.0)
    cache.start_loads(0.0)
    cache.loaded("a", 5)
    cache.check_integrity()
    cache.release("a")
    cache._entries["a"].size = 11
    with pytest.raises(AssertionError):
        cache.check_integrity()
