"""The model cache against a reference that keeps everything in plain lists."""

from __future__ import annotations

from collections.abc import Callable
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
from gpt2serve.errors import ModelLoadFailed, ModelTooLarge, ModelUnavailable

KEYS = [f"model-{n}" for n in range(6)]
BUDGET = 100
RETRY_MIN, RETRY_MAX = 1.0, 8.0
WITH_MEMORY = (State.LOADING, State.RESIDENT)


@dataclass
class Known:
    """What the reference knows of one model in the cache."""

    size: int
    state: State
    leases: int = 0
    pinned: bool = False
    leaving: str = ""
    #: Ticks: when it came into the line, and when it was last asked for.
    lined_up: int = 0
    asked: int = 0
    #: Seconds: when a lease last began or ended, and when it came into its state.
    used: float = 0.0
    since: float = 0.0

    @property
    def retired(self) -> bool:
        return self.leaving in ("replaced", "deleted")


@dataclass
class Reference:
    models: dict[str, Known] = field(default_factory=dict)
    #: (until, backoff) of failed loads.
    failed: dict[str, tuple[float, float]] = field(default_factory=dict)
    ticks: int = 0
    turn: float = 0.0

    def tick(self) -> int:
        self.ticks += 1
        return self.ticks

    @property
    def memory(self) -> int:
        return sum(m.size for m in self.models.values() if m.state in WITH_MEMORY)

    def line(self) -> list[str]:
        blocked = [k for k, m in self.models.items() if m.state is State.BLOCKED]
        return sorted(blocked, key=lambda k: self.models[k].lined_up)

    def evictable(self) -> list[str]:
        """Least recently used first."""
        able = [
            key
            for key, m in self.models.items()
            if m.state is State.RESIDENT and not m.leases and not m.pinned
        ]
        return sorted(able, key=lambda key: self.models[key].asked)

    def room_for(self, key: str) -> int:
        return BUDGET - sum(m.size for k, m in self.models.items() if m.pinned and k != key)

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
        self.reference = Reference()
        #: What went since the last rule began, as the cache told it and as it should be.
        self.evicted: list[tuple[str, str]] = []
        self.gone: list[str] = []
        self.expected: list[tuple[str, str]] = []
        self.expected_gone: list[str] = []
        self.cache = ModelCache(
            BUDGET,
            retry_min=RETRY_MIN,
            retry_max=RETRY_MAX,
            on_evict=self._on_evict,
            on_gone=self.gone.append,
        )
        self.now = 0.0

    def _on_evict(self, key: str, reason: str) -> None:
        assert not self.cache.entries[key].leases, "evicted while somebody uses it"
        self.evicted.append((key, reason))

    # -- requests -----------------------------------------------------------------------------

    @rule(
        key=st.sampled_from(KEYS),
        size=st.integers(10, 60) | st.integers(1, 110),
        local=st.booleans(),
    )
    def acquire(self, key: str, size: int, local: bool) -> None:
        self.now += 1e-6  # no two requests come at one instant of a monotonic clock
        reference = self.reference
        known = reference.models.get(key)
        until = reference.failed.get(key, (0.0, 0.0))[0]
        if known is None and self.now < until:
            with pytest.raises(ModelUnavailable) as caught:
                self.cache.acquire(key, size, self.now, local=local)
            assert caught.value.retry_after == pytest.approx(until - self.now)
            return
        if known is None:
            # What failed long ago counts as never having failed.
            old = [k for k, f in reference.failed.items() if self.now > f[0] + RETRY_MAX]
            for other in old:
                del reference.failed[other]
        if known is None and size > reference.room_for(key):
            with pytest.raises(ModelTooLarge):
                self.cache.acquire(key, size, self.now, local=local)
            return
        if known is not None and known.retired:
            with pytest.raises(AssertionError):
                self.cache.acquire(key, size, self.now, local=local)
            return
        if known is None:
            state = State.BLOCKED if local else State.FETCHING
            known = reference.models[key] = Known(
                size, state, lined_up=reference.tick(), since=self.now
            )
        known.leases += 1
        known.asked = reference.tick()
        known.used = self.now
        assert self.cache.acquire(key, size, self.now, local=local) is known.state

    @precondition(lambda self: any(m.leases for m in self.reference.models.values()))
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        self._release(self._one(data, lambda m: m.leases > 0))

    def _release(self, key: str) -> None:
        self.now += 1e-6
        self.reference.models[key].leases -= 1
        self.reference.models[key].used = self.now
        self._settle(key)
        self._shed()
        self.cache.release(key, self.now)

    @rule(key=st.sampled_from(KEYS), size=st.integers(10, 40), leased=st.booleans())
    def serve(self, key: str, size: int, leased: bool) -> None:
        """All the way at once, so that the cache is mostly full."""
        models = self.reference.models
        if key in models or self._state(key) == "failed" or size > self.reference.room_for(key):
            return
        self.acquire(key, size, local=True)
        self.start_loads()
        if key in models and models[key].state is State.LOADING:
            self._load(key, size)
        if key in models and not leased:
            self._release(key)

    @rule(key=st.sampled_from(KEYS))
    def hold(self, key: str) -> None:
        """A lease that is nobody's request: it says nothing about use."""
        known = self.reference.models.get(key)
        possible = known is not None and known.state is State.RESIDENT
        assert self.cache.hold(key, self.now) == possible
        if known is not None and possible:
            known.leases += 1
            known.used = self.now

    @rule(key=st.sampled_from(KEYS), size=st.integers(1, 80))
    def resize(self, key: str, size: int) -> None:
        known = self.reference.models.get(key)
        if known is None or known.state is not State.RESIDENT:
            return
        known.size = size
        self._shed()
        self.cache.resize(key, size)

    # -- orders -------------------------------------------------------------------------------

    @rule(key=st.sampled_from(KEYS))
    def pin(self, key: str) -> None:
        models = self.reference.models
        known = models.get(key)
        if known is not None and not known.retired:
            if sum(m.size for m in models.values() if m.pinned) + known.size > BUDGET // 2:
                return  # only a few fit
            known.pinned, known.leaving = True, ""
        self.cache.pin(key)

    @rule(key=st.sampled_from(KEYS))
    def unpin(self, key: str) -> None:
        if key in self.reference.models:
            self.reference.models[key].pinned = False
            self._settle(key)
            self._shed()
        self.cache.unpin(key)

    @rule(key=st.sampled_from(KEYS), reason=st.sampled_from(["replaced", "deleted"]))
    def retire(self, key: str, reason: Any) -> None:
        self._leave(key, reason)
        self.cache.retire(key, reason)

    @rule(key=st.sampled_from(KEYS))
    def unload(self, key: str) -> None:
        known = self.reference.models.get(key)
        if known is not None and not known.retired:
            self._leave(key, "unload")
        self.cache.unload(key)

    @rule(key=st.sampled_from(KEYS))
    def reinstate(self, key: str) -> None:
        if key in self.reference.models:
            self.reference.models[key].leaving = ""
        self.cache.reinstate(key)

    @rule(ttl=st.sampled_from([0.5, 2.0, 5.0]))
    def expire(self, ttl: float) -> None:
        models = self.reference.models
        due = [models[key].used + ttl for key in self.reference.evictable()]
        assert self.cache.next_expiry(ttl) == (min(due) if due else None)
        for key in self.reference.evictable():
            if models[key].used + ttl <= self.now:
                self._evict(key, "ttl")
        self.cache.expire(self.now, ttl)
        after = self.cache.next_expiry(ttl)
        assert after is None or after > self.now

    # -- fetches and loads --------------------------------------------------------------------

    @precondition(lambda self: self._any(State.FETCHING))
    @rule(data=st.data())
    def fetched(self, data: st.DataObject) -> None:
        self.now += 1e-6
        key = self._one(data, lambda m: m.state is State.FETCHING)
        known = self.reference.models[key]
        known.state, known.since = State.BLOCKED, self.now
        known.lined_up = self.reference.tick()
        self.cache.fetched(key, self.now)

    @precondition(lambda self: self._any(State.FETCHING, State.LOADING))
    @rule(data=st.data(), retry_after=st.sampled_from([None, 0.5, 3.0]))
    def unavailable(self, data: st.DataObject, retry_after: float | None) -> None:
        key = self._one(data, lambda m: m.state in (State.FETCHING, State.LOADING))
        self._forget(key)
        _, before = self.reference.failed.get(key, (0.0, 0.0))
        until = self.now + (retry_after or 0.0)
        self.reference.failed[key] = (until, before or RETRY_MIN / 2)
        self.cache.unavailable(key, ModelUnavailable("away", retry_after=retry_after), self.now)

    @precondition(lambda self: self._any(State.LOADING))
    @rule(data=st.data())
    def fetch_again(self, data: st.DataObject) -> None:
        key = self._one(data, lambda m: m.state is State.LOADING)
        if not self.reference.models[key].leases and not self.reference.models[key].pinned:
            return  # the engine forgets it instead
        self.reference.models[key].state = State.FETCHING
        self.cache.fetch_again(key, self.now)

    @rule()
    def start_loads(self) -> None:
        reference = self.reference
        impossible = {
            k for k in reference.line() if reference.models[k].size > reference.room_for(k)
        }
        loads = []
        for key in reference.line():
            if key in impossible:
                continue
            victims = reference.make_room(reference.models[key].size)
            if victims is None:
                break  # nobody overtakes the one that waits longest
            for victim in victims:
                self._evict(victim, "room")
            reference.models[key].state = State.LOADING
            loads.append(key)
        assert self.cache.start_loads(self.now) == loads
        assert not loads or self.cache.used <= BUDGET
        # Orders may have gone out to some meanwhile, but who waits loses nothing of it.
        assert set(self.cache.take_impossible()) == impossible
        for key in [k for k in self.gone if k in impossible]:
            self._forget(key)

    @precondition(lambda self: self._any(State.LOADING))
    @rule(data=st.data(), share=st.sampled_from([50, 100, 100, 120, 200]))
    def loaded(self, data: st.DataObject, share: int) -> None:
        key = self._one(data, lambda m: m.state is State.LOADING)
        self._load(key, max(1, self.reference.models[key].size * share // 100))

    def _load(self, key: str, size: int) -> None:
        self.now += 1e-6
        known = self.reference.models[key]
        known.size, known.state = size, State.RESIDENT
        self.reference.turn = self.now
        self.reference.failed.pop(key, None)
        self._settle(key)
        self._shed()
        self.cache.loaded(key, size, self.now)

    @precondition(lambda self: self._any(State.FETCHING, State.LOADING))
    @rule(data=st.data())
    def failed(self, data: st.DataObject) -> None:
        key = self._one(data, lambda m: m.state in (State.FETCHING, State.LOADING))
        self._forget(key)
        _, before = self.reference.failed.get(key, (0.0, 0.0))
        backoff = min(before * 2 or RETRY_MIN, RETRY_MAX)
        self.reference.failed[key] = (self.now + backoff, backoff)
        self.cache.failed(key, "broken", self.now)
        assert self.cache.failure(key, self.now) == "broken"
        with pytest.raises(ModelLoadFailed, match="broken"):
            self.cache.acquire(key, 1, self.now)

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
        assert self.evicted == self.expected
        assert self.gone == self.expected_gone
        for told in (self.evicted, self.expected, self.gone, self.expected_gone):
            told.clear()  # type: ignore[attr-defined]
        reference = self.reference
        assert self.cache.used == reference.memory
        assert self.cache.leases == sum(m.leases for m in reference.models.values())
        if self.cache.used > BUDGET:
            assert not reference.evictable()
        assert {
            k: (e.size, e.state, e.leases, e.pinned, e.leaving or "")
            for k, e in self.cache.entries.items()
        } == {
            k: (m.size, m.state, m.leases, m.pinned, m.leaving) for k, m in reference.models.items()
        }
        for key in KEYS:
            assert self.cache.state(key, self.now) == self._state(key)

    @invariant()
    def holds_back_as_many_as_are_needed(self) -> None:
        reference = self.reference
        line = reference.line()
        for patience in (0.0, 1.5):
            held = self.cache.held_back(patience, self.now)
            waited = line and self.now - max(reference.models[line[0]].since, reference.turn)
            if not line or waited <= patience or self._any(State.LOADING):
                assert not held
                continue
            missing = reference.memory + reference.models[line[0]].size - BUDGET
            models = {k: m for k, m in reference.models.items() if k in held}
            assert all(m.state is State.RESIDENT and not m.pinned for m in models.values())
            if sum(m.size for m in models.values()) < missing:
                rest = [m for k, m in reference.models.items() if k not in held]
                assert all(m.state is not State.RESIDENT or m.pinned for m in rest)

    def _state(self, key: str) -> str:
        known = self.reference.models.get(key)
        if known is not None:
            return {State.FETCHING: "fetching", State.RESIDENT: "resident"}.get(
                known.state, "loading"
            )
        until = self.reference.failed.get(key, (0.0, 0.0))[0]
        return "failed" if self.now < until else "cold"

    def _any(self, *states: State) -> bool:
        return any(m.state in states for m in self.reference.models.values())

    def _one(self, data: st.DataObject, which: Callable[[Known], bool]) -> str:
        models = self.reference.models
        return data.draw(st.sampled_from(sorted(k for k, m in models.items() if which(m))))

    def _leave(self, key: str, reason: str) -> None:
        known = self.reference.models.get(key)
        if known is not None:
            known.leaving, known.pinned = reason, False
            self._settle(key)

    def _settle(self, key: str) -> None:
        known = self.reference.models[key]
        if known.leases or known.pinned or known.state is State.LOADING:
            return
        if known.state is State.RESIDENT:
            if known.leaving:
                self._evict(key, known.leaving)
        else:
            self._forget(key)

    def _shed(self) -> None:
        """What measured more than was predicted goes as soon as it can."""
        reference = self.reference
        while reference.memory > BUDGET and reference.evictable():
            self._evict(reference.evictable()[0], "room")

    def _evict(self, key: str, reason: str) -> None:
        self.expected.append((key, reason))
        self._forget(key)

    def _forget(self, key: str) -> None:
        self.expected_gone.append(key)
        del self.reference.models[key]


def test_cache_agrees_with_the_reference() -> None:
    run_state_machine_as_test(
        ModelCacheMachine,
        settings=settings(
            deadline=None, derandomize=True, max_examples=400, stateful_step_count=60
        ),
    )


def test_integrity_check_notices() -> None:
    cache: Any = ModelCache(10)
    cache.acquire("a", 5, 0.0)
    cache.start_loads(0.0)
    cache.loaded("a", 5, 0.0)
    cache.check_integrity()
    cache.release("a", 0.0)
    cache._entries["a"].size = 11
    with pytest.raises(AssertionError):
        cache.check_integrity()
