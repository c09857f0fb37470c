"""Which models are in memory: least recently used, counted in bytes. Pure policy.

    absent --acquire--> fetching --fetched--> blocked --room--> loading --loaded--> resident
             acquire of a package that is on the disk --> blocked
             loading --failed--> failed for a while --> absent
             resident --room, ttl, replaced, deleted, unload--> absent

A key is one version of one model, so two versions are two keys. A request holds a lease from
`acquire` to its last token, also while the model is fetched or loaded, and only models without
a lease are evicted. There is at most one load of a key at a time, however many requests wait
for it. Memory counts from `loading` on. What is `blocked` stands in a line for room and gets it
in the order in which it came.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Literal

from gpt2serve.engine.failures import Failures
from gpt2serve.errors import ModelLoadFailed, ModelTooLarge, ModelUnavailable

#: Why a model goes. The last three are orders: it goes when its leases have ended.
EvictReason = Literal["room", "ttl", "replaced", "deleted", "unload"]
RetireReason = Literal["replaced", "deleted"]


class State(Enum):
    FETCHING = "fetching"
    BLOCKED = "blocked"
    LOADING = "loading"
    RESIDENT = "resident"


@dataclass(slots=True)
class Entry:
    """One version of a model.

    size: bytes, predicted until it is loaded and measured afterwards. asked: when somebody
    first wanted it; since: when it came into its state. last_used: when a lease last began or
    ended. leaving: the order to go, if there is one.
    """

    size: int
    state: State
    asked: float
    since: float
    last_used: float
    leases: int = 0
    pinned: bool = False
    leaving: EvictReason | None = None

    @property
    def retired(self) -> bool:
        return self.leaving in ("replaced", "deleted")

    @property
    def has_memory(self) -> bool:
        return self.state in (State.LOADING, State.RESIDENT)

    @property
    def evictable(self) -> bool:
        return self.state is State.RESIDENT and not self.leases and not self.pinned


class ModelCache:
    """Owned by the engine thread. Times are in seconds of one monotonic clock.

    on_evict(key, reason) is called for each resident model that goes; on_gone(key) for
    everything that is forgotten, whatever state it was in and whatever the reason.
    """

    def __init__(
        self,
        budget: int,
        *,
        retry_min: float = 1.0,
        retry_max: float = 60.0,
        on_evict: Callable[[str, EvictReason], None] = lambda _key, _reason: None,
        on_gone: Callable[[str], None] = lambda _key: None,
        rank: Callable[[str], float] = lambda _key: 0.0,
    ) -> None:
        """`rank` orders who waits for room: the lowest first, then first come, first served."""
        self.budget = budget
        self._on_evict = on_evict
        self._on_gone = on_gone
        self._rank = rank
        #: In order of use: the first is the one whose last request came longest ago.
        self._entries: OrderedDict[str, Entry] = OrderedDict()
        #: Keys of blocked models, first come first; all of them are in `_entries`.
        self._line: dict[str, None] = {}
        #: When a model was last loaded: the first in line counts its wait from then on.
        self._turn = 0.0
        #: Who is held back, and for which key that is first in line.
        self._held: set[str] = set()
        self._held_for: str | None = None
        #: Bytes of resident models and of those being loaded.
        self.used = 0
        #: Of all models together.
        self.leases = 0
        self._failures = Failures(retry_min, retry_max)

    # -- what a request does --------------------------------------------------------------

    def acquire(self, key: str, size: int, now: float, *, local: bool = True) -> State:
        """Take a lease. All states but RESIDENT say that the caller has to wait.

        size: predicted, in bytes. local: whether the package is on the disk; if not, a model
        that is new here is FETCHING until `fetched`. Raises `ModelTooLarge` if it can never
        fit and `ModelUnavailable` while a failure is remembered; no lease is taken then.
        """
        entry = self._entries.get(key)
        if entry is None:
            self._failures.check(key, now)
            if size > self._room_at_most(key):
                raise self._too_large(key, size)
            state = State.BLOCKED if local else State.FETCHING
            entry = self._entries[key] = Entry(size, state, asked=now, since=now, last_used=now)
            if local:
                self._line[key] = None
        assert not entry.retired, f"{key} takes no new leases"  # noqa: S101
        self._lease(entry, 1, now)
        self._entries.move_to_end(key)
        return entry.state

    def release(self, key: str, now: float) -> None:
        """Give a lease back. What nobody waits for, and is not in memory yet, is forgotten.

        A model that was told to go goes with its last lease. If models measured more than was
        predicted, those that can go now do.
        """
        entry = self._entries[key]
        self._lease(entry, -1, now)
        self._settle(key, entry)
        self._make_room(0)

    def hold(self, key: str, now: float) -> bool:
        """Take a lease that is nobody's request on a model that is resident; False if it is not."""
        entry = self._entries.get(key)
        if entry is None or entry.state is not State.RESIDENT:
            return False
        self._lease(entry, 1, now)
        return True

    # -- orders, at any time; harmless if the key is not here -----------------------------

    def pin(self, key: str) -> None:
        """Never evict it to make room or for its age. Takes back an order to unload it."""
        entry = self._entries.get(key)
        if entry is not None and not entry.retired:
            entry.pinned, entry.leaving = True, None

    def unpin(self, key: str) -> None:
        entry = self._entries.get(key)
        if entry is not None:
            entry.pinned = False
            self._settle(key, entry)
            self._make_room(0)

    def retire(self, key: str, reason: RetireReason) -> None:
        """Replaced or deleted: no new leases, and it goes with its last one, pinned or not."""
        self._leave(key, reason)

    def reinstate(self, key: str) -> None:
        """What was retired or told to unload, and has leases left, is wanted after all."""
        entry = self._entries.get(key)
        if entry is not None:
            entry.leaving = None

    def unload(self, key: str) -> None:
        """It goes at the next moment without leases, pinned or not; until then it serves."""
        entry = self._entries.get(key)
        if entry is not None and not entry.retired:
            self._leave(key, "unload")

    def expire(self, now: float, ttl: float) -> None:
        """Evict what nobody has used for `ttl` seconds."""
        for key, entry in list(self._entries.items()):
            if entry.evictable and entry.last_used + ttl <= now:
                self._evict(key, "ttl")

    def next_expiry(self, ttl: float) -> float | None:
        """When `expire` will find something, if nothing is used until then."""
        idle = [e.last_used for e in self._entries.values() if e.evictable]
        return min(idle) + ttl if idle else None

    # -- what the engine does -------------------------------------------------------------

    def fetched(self, key: str, now: float) -> None:
        """The package is on the disk now, and the model stands in line for room."""
        self._change(key, State.BLOCKED, now)
        self._line[key] = None

    def fetch_again(self, key: str, now: float) -> None:
        """The files of a model that is LOADING were gone."""
        self._change(key, State.FETCHING, now)

    def start_loads(self, now: float) -> list[str]:
        """Make room for blocked models, in their order; returns those to load now."""
        started = []
        for key in sorted(self._line, key=self._rank):
            entry = self._entries[key]
            if entry.size > self._room_at_most(key):
                continue  # see `take_impossible`
            if not self._make_room(entry.size):
                break
            self._change(key, State.LOADING, now)
            del self._line[key]
            started.append(key)
        return started

    def take_impossible(self) -> dict[str, ModelTooLarge]:
        """Forget blocked models that cannot fit any more, for what was pinned meanwhile.

        Returns the error for those that waited; their leases end.
        """
        taken = {}
        for key in list(self._line):
            size = self._entries[key].size
            if size > self._room_at_most(key):
                taken[key] = self._too_large(key, size)
                self.forget(key)
        return taken

    def loaded(self, key: str, measured: int, now: float) -> None:
        """The load ended well and the model takes `measured` bytes.

        More than predicted may put the cache over its budget for a moment; models without
        a lease go until it is within again.
        """
        entry = self._change(key, State.RESIDENT, now)
        self._turn = now
        self._failures.worked(key)
        self._settle(key, entry)
        self.resize(key, measured)

    def resize(self, key: str, measured: int) -> None:
        """A resident model takes `measured` bytes from now on."""
        entry = self._entries.get(key)
        if entry is not None:
            self.used += measured - entry.size
            entry.size = measured
        self._make_room(0)

    def failed(self, key: str, message: str, now: float) -> ModelLoadFailed:
        """The fetch or load failed: all leases end, and requests are refused for a while.

        Returns the error for those that waited.
        """
        self.forget(key)
        return self._failures.failed(key, message, now)

    def unavailable(self, key: str, error: ModelUnavailable, now: float) -> None:
        """The package cannot be had now: all leases end; refused for `error.retry_after` only."""
        self.forget(key)
        self._failures.unavailable(key, error, now)

    def forget(self, key: str) -> None:
        """Take it out, whatever its state: all its leases end, and nothing is remembered."""
        entry = self._entries.pop(key)
        if entry.has_memory:
            self.used -= entry.size
        self.leases -= entry.leases
        self._line.pop(key, None)
        self._on_gone(key)

    # -- fairness -------------------------------------------------------------------------

    def held_back(self, patience: float, now: float) -> set[str]:
        """Resident models that must take no new work, for the first in line has waited enough.

        It waits `patience` seconds from when it came, or from when the one before it was loaded,
        so that each one in line has that long before it must make room in turn. Only as many
        models are held back as are needed, those with the fewest leases first: they are done
        soonest. Who is held back stays so until the first in line has its room; if the burden
        passed from one to another, it might never get it.
        """
        first = min(self._line, key=self._rank, default=None)
        if first is None or any(e.state is State.LOADING for e in self._entries.values()):
            return set()
        if now - max(self._entries[first].since, self._turn) <= patience:
            return set()
        if self._held_for != first:
            self._held_for, self._held = first, set()
        able = {
            key: entry
            for key, entry in self._entries.items()
            if entry.state is State.RESIDENT and not entry.pinned
        }
        self._held &= able.keys()
        missing = self.used + self._entries[first].size - self.budget
        missing -= sum(able[key].size for key in self._held)
        others = [key for key in able if key not in self._held]
        for key in sorted(others, key=lambda key: able[key].leases):
            if missing <= 0:
                break
            self._held.add(key)
            missing -= able[key].size
        return set(self._held)

    # -- what is asked --------------------------------------------------------------------

    @property
    def entries(self) -> dict[str, Entry]:
        """Everything that is here, in order of use, to look at."""
        return dict(self._entries)

    def get(self, key: str) -> Entry | None:
        """To look at, not to change."""
        return self._entries.get(key)

    def state(self, key: str, now: float) -> str:
        """`cold`, `fetching`, `loading` (or waiting to), `resident` or `failed`."""
        entry = self._entries.get(key)
        if entry is not None:
            return "loading" if entry.state is State.BLOCKED else entry.state.value
        return "cold" if self.failure(key, now) is None else "failed"

    def failure(self, key: str, now: float) -> str | None:
        """Why requests for it are refused now."""
        return self._failures.reason(key, now)

    def resident(self) -> dict[str, Entry]:
        return {k: e for k, e in self._entries.items() if e.state is State.RESIDENT}

    @property
    def fetching(self) -> int:
        """Models on their way to the disk."""
        return sum(e.state is State.FETCHING for e in self._entries.values())

    @property
    def waited_for_since(self) -> float | None:
        """When the first was asked for of the models that are not there yet; None if all are."""
        asked = (e.asked for e in self._entries.values() if e.state is not State.RESIDENT)
        return min(asked, default=None)

    def check_integrity(self) -> None:
        assert self.used == sum(e.size for e in self._entries.values() if e.has_memory)  # noqa: S101
        assert self.leases == sum(e.leases for e in self._entries.values())  # noqa: S101
        evictable = [e for e in self._entries.values() if e.evictable]
        assert not (self.used > self.budget and evictable), "over budget, and something could go"  # noqa: S101
        blocked = {k for k, e in self._entries.items() if e.state is State.BLOCKED}
        assert blocked == set(self._line)  # noqa: S101
        waits = [self._entries[key].since for key in self._line]
        assert waits == sorted(waits), waits  # noqa: S101
        for key, entry in self._entries.items():
            assert entry.leases >= 0, (key, entry)  # noqa: S101
            assert not (entry.pinned and entry.leaving), (key, entry)  # noqa: S101
            if entry.state is not State.LOADING and not entry.leases:
                # Nobody needs it: it is in memory because it may stay there, or it is pinned.
                assert entry.pinned or entry.state is State.RESIDENT, (key, entry)  # noqa: S101
                assert not entry.leaving, (key, entry)  # noqa: S101
            assert key not in self._failures or entry.state is not State.RESIDENT  # noqa: S101

    # -- inside ---------------------------------------------------------------------------

    def _change(self, key: str, state: State, now: float) -> Entry:
        entry = self._entries[key]
        before = entry.has_memory
        entry.state, entry.since = state, now
        self.used += (entry.has_memory - before) * entry.size
        return entry

    def _lease(self, entry: Entry, change: int, now: float) -> None:
        entry.leases += change
        entry.last_used = now
        self.leases += change

    def _leave(self, key: str, reason: EvictReason) -> None:
        entry = self._entries.get(key)
        if entry is not None:
            entry.leaving, entry.pinned = reason, False
            self._settle(key, entry)

    def _settle(self, key: str, entry: Entry) -> None:
        """Let go what nobody needs any more: its last lease, or what kept it, has ended."""
        if entry.leases or entry.pinned or entry.state is State.LOADING:
            return
        if entry.state is not State.RESIDENT:
            self.forget(key)
        elif entry.leaving:
            self._evict(key, entry.leaving)

    def _evict(self, key: str, reason: EvictReason) -> None:
        self._on_evict(key, reason)
        self.forget(key)

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
            if entry.evictable:
                victims.append(key)
                missing -= entry.size
        if missing > 0 and size:
            return False
        for key in victims:
            self._evict(key, "room")
        return True
