"""Which models are in memory: least recently used, counted in bytes. Pure policy.

    absent --acquire--> (blocked | loading) --loaded--> resident --evicted--> absent
                              loading --failed--> failed for a while --> absent

A request holds a lease from `acquire` to its last token, also while the model is loading.
Only resident models without a lease are evicted. There is at most one load of a model at a
time, however many requests wait for it. A model that waits for room is `blocked`; blocked
models get room in the order in which they came.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum

from gpt2serve.errors import ModelLoadFailed, ModelTooLarge


class State(Enum):
    BLOCKED = "blocked"
    LOADING = "loading"
    RESIDENT = "resident"


@dataclass(slots=True)
class Entry:
    """One model. `size` is predicted in bytes until it is loaded, measured afterwards."""

    size: int
    state: State
    leases: int = 0
    pinned: bool = False
    since: float = 0.0


@dataclass(slots=True)
class Failure:
    message: str
    until: float
    backoff: float


class ModelCache:
    """Owned by the engine thread. Times are in seconds of one monotonic clock."""

    def __init__(
        self,
        budget: int,
        *,
        retry_min: float = 1.0,
        retry_max: float = 60.0,
        on_evict: Callable[[str], None] | None = None,
    ) -> None:
        self.budget = budget
        self._retry_min = retry_min
        self._retry_max = retry_max
        self._on_evict = on_evict
        #: In order of use: the first is the least recently used.
        self._entries: OrderedDict[str, Entry] = OrderedDict()
        self._failures: dict[str, Failure] = {}

    # -- what a request does --------------------------------------------------------------

    def acquire(self, key: str, size: int, now: float) -> State:
        """Take a lease. BLOCKED and LOADING say that the caller has to wait.

        `size` is the predicted size in bytes. Raises `ModelTooLarge` if it can never fit
        and `ModelLoadFailed` while a failed load is remembered; no lease is taken then.
        """
        entry = self._entries.get(key)
        if entry is None:
            self._refuse_failed(key, now)
            if size > self._room_at_most(key):
                raise self._too_large(key, size)
            entry = self._entries[key] = Entry(size, State.BLOCKED, since=now)
        entry.leases += 1
        self._entries.move_to_end(key)
        return entry.state

    def release(self, key: str) -> None:
        """Give a lease back. A blocked model that nobody waits for is forgotten.

        If models measured more than was predicted, those that can go now do.
        """
        entry = self._entries[key]
        entry.leases -= 1
        if entry.leases == 0 and entry.state is State.BLOCKED and not entry.pinned:
            del self._entries[key]
        self._make_room(0)

    def hold(self, key: str) -> None:
        """Take a lease on a model that is resident, which nobody's request needs."""
        self._entries[key].leases += 1

    def pin(self, key: str) -> None:
        """Never evict `key`, which must have been acquired."""
        self._entries[key].pinned = True

    # -- what the engine does -------------------------------------------------------------

    def start_loads(self, now: float) -> list[str]:
        """Make room for blocked models, first come, first served; returns those to load now."""
        started = []
        for key, entry in self._blocked():
            if entry.size > self._room_at_most(key):
                continue  # see `take_impossible`
            if not self._make_room(entry.size):
                break
            entry.state, entry.since = State.LOADING, now
            started.append(key)
        return started

    def take_impossible(self) -> dict[str, ModelTooLarge]:
        """Forget blocked models that cannot fit any more, for what was pinned meanwhile.

        Returns the error for those that waited; their leases end.
        """
        taken = {}
        for key, entry in self._blocked():
            if entry.size > self._room_at_most(key):
                taken[key] = self._too_large(key, entry.size)
                del self._entries[key]
        return taken

    def loaded(self, key: str, measured: int) -> None:
        """The load ended well and the model takes `measured` bytes.

        More than predicted may put the cache over its budget for a moment; models without
        a lease go until it is within again.
        """
        entry = self._entries[key]
        entry.size, entry.state = measured, State.RESIDENT
        self._failures.pop(key, None)
        self._make_room(0)

    def failed(self, key: str, message: str, now: float) -> ModelLoadFailed:
        """The load failed: all leases end, and requests are refused for a while.

        Returns the error for those that waited.
        """
        del self._entries[key]
        before = self._failures.get(key)
        backoff = min(before.backoff * 2 if before else self._retry_min, self._retry_max)
        self._failures[key] = Failure(message, now + backoff, backoff)
        return ModelLoadFailed(message, retry_after=backoff)

    def evict(self, key: str) -> bool:
        """Evict `key` if it is resident and nobody has a lease."""
        entry = self._entries.get(key)
        if entry is None or entry.state is not State.RESIDENT or entry.leases or entry.pinned:
            return False
        del self._entries[key]
        if self._on_evict is not None:
            self._on_evict(key)
        return True

    # -- what is asked --------------------------------------------------------------------

    @property
    def used(self) -> int:
        """Bytes of resident models and of those being loaded."""
        return sum(e.size for e in self._entries.values() if e.state is not State.BLOCKED)

    def state(self, key: str, now: float) -> str:
        """`cold`, `loading` (or waiting to), `resident` or `failed`."""
        entry = self._entries.get(key)
        if entry is not None:
            return "resident" if entry.state is State.RESIDENT else "loading"
        failure = self._failures.get(key)
        return "failed" if failure and now < failure.until else "cold"

    def resident(self) -> dict[str, Entry]:
        return {k: e for k, e in self._entries.items() if e.state is State.RESIDENT}

    def longest_wait(self, now: float) -> float:
        """Seconds since the oldest model that is blocked or loading began to wait."""
        waits = (now - e.since for e in self._entries.values() if e.state is not State.RESIDENT)
        return max(waits, default=0.0)

    def blocked_longer_than(self, seconds: float, now: float) -> bool:
        return any(now - entry.since > seconds for _, entry in self._blocked())

    def check_integrity(self) -> None:
        loaded = [e for e in self._entries.values() if e.state is not State.BLOCKED]
        evictable = [e for e in loaded if e.state is State.RESIDENT and not (e.leases or e.pinned)]
        over = self.used > self.budget
        assert not (over and evictable), "over budget, and something could go"  # noqa: S101
        for key, entry in self._entries.items():
            assert entry.leases >= 0, (key, entry)  # noqa: S101
            if entry.state is State.BLOCKED:
                assert entry.leases or entry.pinned, (key, entry)  # noqa: S101
            assert key not in self._failures or entry.state is not State.RESIDENT  # noqa: S101

    # -- inside ---------------------------------------------------------------------------

    def _blocked(self) -> Iterable[tuple[str, Entry]]:
        waiting = [(k, e) for k, e in self._entries.items() if e.state is State.BLOCKED]
        return sorted(waiting, key=lambda item: item[1].since)

    def _room_at_most(self, key: str) -> int:
        """Bytes that `key` could ever get: all but what others have pinned."""
        return self.budget - sum(
            entry.size for other, entry in self._entries.items() if entry.pinned and other != key
        )

    def _too_large(self, key: str, size: int) -> ModelTooLarge:
        return ModelTooLarge(
            f"{key} needs {size:,} bytes, and at most {self._room_at_most(key):,} of the model "
            "cache can be given to it; raise --model-cache-bytes."
        )

    def _make_room(self, size: int) -> bool:
        """Evict until `size` bytes more fit; evicts nothing if that cannot be reached."""
        missing = self.used + size - self.budget
        victims = []
        for key, entry in self._entries.items():
            if missing <= 0:
                break
            if entry.state is State.RESIDENT and not entry.leases and not entry.pinned:
                victims.append(key)
                missing -= entry.size
        if missing > 0 and size:
            return False
        for key in victims:
            self.evict(key)
        return True

    def _refuse_failed(self, key: str, now: float) -> None:
        failure = self._failures.get(key)
        if failure and now < failure.until:
            raise ModelLoadFailed(failure.message, retry_after=failure.until - now)
        # A failure that is over keeps its backoff until the next load ends; others are
        # forgotten here, so that the memory of failures stays bounded.
        for other in [k for k, f in self._failures.items() if now > f.until + self._retry_max]:
            del self._failures[other]
