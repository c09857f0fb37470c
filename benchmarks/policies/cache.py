"""A cache in bytes with leases and any policy, and the requests that wait for it. Pure.

Has the part of `gpt2serve.engine.model_cache.ModelCache` that a simulation needs, with the same
rules: what is leased is never evicted; models that wait for room get it first come, first served;
nothing is evicted for a model that cannot have its room yet.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Protocol

from benchmarks.policies.policy import Policy
from gpt2serve.engine.model_cache import State


class Cache(Protocol):
    """What the simulation needs of a cache; `ModelCache` is one.

    now: seconds of the trace's clock.
    """

    def acquire(self, key: str, size: int, now: float) -> State:
        """Take a lease; the model is there only if this is RESIDENT."""

    def start_loads(self, now: float) -> list[str]:
        """What has room now, and is to be loaded."""

    def loaded(self, key: str, measured: int, now: float) -> None:
        """The load has ended, and the model takes `measured` bytes."""

    def release(self, key: str, now: float) -> None:
        """Give a lease back."""


@dataclass(slots=True)
class _Entry:
    size: int
    state: State = State.BLOCKED
    leases: int = 0


class PolicyCache:
    """Models are as large as was predicted, and none is larger than the budget."""

    def __init__(self, budget: int, policy: Policy) -> None:
        self.budget = budget
        self._policy = policy
        self._entries: dict[str, _Entry] = {}
        self._blocked: OrderedDict[str, None] = OrderedDict()
        #: Bytes that are loaded or being loaded, and those of them that could go.
        self._used = self._unleased = 0

    def acquire(self, key: str, size: int, now: float) -> State:
        del now
        entry = self._entries.get(key)
        if entry is None:
            entry = self._entries[key] = _Entry(size)
            self._blocked[key] = None
            self._policy.insert(key, size)
        else:
            self._policy.hit(key)
        if self._free(key):
            self._unleased -= entry.size
        entry.leases += 1
        return entry.state

    def start_loads(self, now: float) -> list[str]:
        del now
        started = []
        while self._blocked:
            key = next(iter(self._blocked))
            entry = self._entries[key]
            if not self._make_room(entry.size):
                break
            del self._blocked[key]
            entry.state = State.LOADING
            self._used += entry.size
            started.append(key)
        return started

    def loaded(self, key: str, measured: int, now: float) -> None:
        del now
        entry = self._entries[key]
        assert measured == entry.size, "models are as large as was predicted"
        entry.state = State.RESIDENT
        if self._free(key):
            self._unleased += entry.size

    def release(self, key: str, now: float) -> None:
        del now
        entry = self._entries[key]
        entry.leases -= 1
        if self._free(key):
            self._unleased += entry.size

    def check_integrity(self) -> None:
        there = [one for one in self._entries.values() if one.state is not State.BLOCKED]
        assert self._used == sum(one.size for one in there) <= self.budget
        free = [one.size for key, one in self._entries.items() if self._free(key)]
        assert self._unleased == sum(free)
        assert all(one.leases >= 0 for one in self._entries.values())

    def _free(self, key: str) -> bool:
        entry = self._entries[key]
        return entry.state is State.RESIDENT and not entry.leases

    def _make_room(self, size: int) -> bool:
        missing = self._used + size - self.budget
        if missing > self._unleased:
            return False
        while missing > 0:
            key = self._policy.victim(self._free)
            assert self._free(key), f"{key} is in use"
            gone = self._entries.pop(key).size
            self._used -= gone
            self._unleased -= gone
            missing -= gone
        return True
