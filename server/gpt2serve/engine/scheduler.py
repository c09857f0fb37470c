"""What one model does next. Pure policy.

    waiting --Prefill--------------------> running --finish--> gone
            --PrefillChunk ... (long) ---/
                     (Score ...) -------/

Requests of one owner join in the order in which they came, as soon as there are slots and KV
cache for them at their greatest length; of several owners, the one who has had the least
computing time comes first, and all take turns. Prompts that fit into one chunk are prefilled
together, padded to the longest; a longer one goes chunk by chunk, and only one at a time.
While sequences are running, every second step is a decode step, so that no prompt stalls
them for more than one chunk; short prompts and chunks of a long one take turns. A prompt that
is to be scored goes the way of long ones, however long it is, and is scored in steps after that.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Collection
from dataclasses import dataclass

from gpt2serve.engine.kv_cache import KVShape, rectangle
from gpt2serve.engine.request import Request, Sequence
from gpt2serve.engine.shares import OF_A_BATCH, leaves_room


@dataclass(frozen=True, slots=True)
class Prefill:
    """Run whole prompts together."""

    requests: list[Request]


@dataclass(frozen=True, slots=True)
class PrefillChunk:
    """Run tokens [start, stop) of one long prompt. `last` says that it is then read."""

    request: Request
    start: int
    stop: int

    @property
    def last(self) -> bool:
        return self.stop == self.request.prompt_length


@dataclass(frozen=True, slots=True)
class Score:
    """Score the tokens after those at [start, stop) of the long prompt, which has been read."""

    request: Request
    start: int
    stop: int

    @property
    def last(self) -> bool:
        return self.stop == self.request.prompt_length - 1


@dataclass(frozen=True, slots=True)
class Decode:
    """One token more for every running sequence."""


Plan = Prefill | PrefillChunk | Score | Decode


class Scheduler:
    """One model's queue and batch. A running sequence's slot is its index in `running`."""

    def __init__(
        self,
        *,
        max_batch_size: int,
        prefill_chunk: int,
        context_length: int,
        kv_fits: Callable[[KVShape, int], bool],
        seconds: Callable[[str], float] = lambda _: 0.0,
    ) -> None:
        """`kv_fits(shape, beside)`: whether the KV cache may have that size, in tokens.

        `seconds(owner)`: of computing, that the owner has had.
        """
        self.waiting: deque[Request] = deque()
        self.running: list[Sequence] = []
        self.long: Request | None = None
        #: Tokens of it that were read, and places that were scored.
        self.long_done = 0
        self.long_scored = 0
        self._max_batch_size = max_batch_size
        self._chunk = prefill_chunk
        self._context_length = context_length
        self._kv_fits = kv_fits
        self._seconds = seconds
        #: Nobody who waits could join when we looked, and nothing has changed since.
        self._full = False
        self._decode_next = False
        self._chunk_next = False

    @property
    def has_work(self) -> bool:
        return bool(self.running or self.waiting or self.long)

    @property
    def steps_left(self) -> int:
        """Decode steps until all that has come so far has ended, at most."""
        left = [sequence.max_length - sequence.length for sequence in self.running]
        coming = [*self.waiting, *([self.long] if self.long else [])]
        return max(left + [request.params.max_tokens for request in coming], default=0)

    @property
    def claimants(self) -> set[str]:
        """Owners for whom a step would be made: who only waits for others to end is none."""
        owners = self.running_owners
        if owners and self._full:
            return owners
        return owners.union(request.owner for request in self.waiting)

    @property
    def running_owners(self) -> set[str]:
        """Owners who have slots, or whose long prompt is being read."""
        owners = {sequence.request.owner for sequence in self.running}
        return owners | {self.long.owner} if self.long is not None else owners

    def add(self, request: Request) -> None:
        self.waiting.append(request)
        self._full = False

    def schedule(self) -> Plan | None:
        """The next step; None if there is nothing to do, or no room to do it yet."""
        if self._decode_next and self.running:
            self._decode_next = False
            return Decode()
        plan = self._prefill()
        self._decode_next = plan is not None
        if plan is None and self.running:
            return Decode()
        return plan

    def shape(self, extra: list[Request] | None = None) -> KVShape:
        """KV cache for what is running or being prefilled, and for `extra` requests."""
        joining = ([self.long] if self.long else []) + (extra or [])
        lengths = [sequence.max_length for sequence in self.running]
        for request in joining:
            lengths += [request.max_length] * len(request.sequences)
        return rectangle(
            lengths, context_length=self._context_length, max_slots=self._max_batch_size
        )

    def join(self, request: Request) -> list[int]:
        """The prompt is done: its sequences run from now on; returns their slots."""
        if request is self.long:
            self.long = None
        first = len(self.running)
        self.running += request.sequences
        return list(range(first, len(self.running)))

    def leave(self, leaving: Collection[Sequence]) -> list[tuple[int, int]]:
        """Take sequences out of the batch; the last ones that stay fill the slots they leave.

        Returns (from, to) of each that moved, which its KV cache must follow.
        """
        slots = [slot for slot, sequence in enumerate(self.running) if sequence not in leaving]
        staying = len(slots)
        moves = list(
            zip(
                (slot for slot in slots if slot >= staying),
                sorted(set(range(staying)).difference(slots)),
                strict=True,
            )
        )
        for from_slot, to_slot in moves:
            self.running[to_slot] = self.running[from_slot]
        del self.running[staying:]
        self._full = False
        return moves

    def drop(self, request: Request) -> None:
        """Forget a request that is not running yet."""
        if request is self.long:
            self.long = None
        elif request in self.waiting:
            self.waiting.remove(request)
        self._full = False

    def check_integrity(self) -> None:
        live = [*self.running, *(self.long.sequences if self.long else [])]
        assert len(live) <= self._max_batch_size, len(live)  # noqa: S101
        assert len(set(map(id, live))) == len(live), "a sequence has two slots"  # noqa: S101
        assert all(s.finish_reason is None for s in live), "a finished one runs"  # noqa: S101
        assert self.long not in self.waiting  # noqa: S101

    # -- inside ---------------------------------------------------------------------------

    def _prefill(self) -> Plan | None:
        line = self._line()
        if self.long is None and line and self._is_long(line[0]):
            self._begin_long(line)
        if self.long is not None and self._chunk_next:
            return self._next_chunk()
        requests = self._take_short(line)
        if requests:
            self._chunk_next = True
            return Prefill(requests)
        if self.long is not None:
            return self._next_chunk()
        self._full = bool(self.waiting)
        return None

    def _line(self) -> list[Request]:
        """Who waits, in the order in which to join: one of each owner, a second of each, ...

        Who has had the least computing time comes first. An owner who has to leave room to others
        is not in it, and so keeps nobody waiting.
        """
        if not any(request.owner for request in self.waiting):
            return list(self.waiting)
        turns: Counter[str] = Counter()
        limited: set[str] = set()
        line: list[tuple[int, float, int]] = []
        for number, request in enumerate(self.waiting):
            owner = request.owner
            if not turns[owner] and self._is_limited(request, []):
                limited.add(owner)
            if owner not in limited:
                line.append((turns[owner], self._seconds(owner), number))
            turns[owner] += 1
        if len(turns) > 1:
            line.sort()
        return [self.waiting[number] for _, _, number in line]

    def _is_limited(self, request: Request, joining: list[Request]) -> bool:
        """Whether its owner has so much of the batch that no more leaves enough to others."""
        if not request.owner:
            return False
        coming = [*joining, *([self.long] if self.long is not None else [])]
        slots = [s.request for s in self.running] + [s.request for r in coming for s in r.sequences]
        has = sum(other.owner == request.owner for other in slots)
        free = self._max_batch_size - len(slots)
        return not leaves_room(has, len(request.sequences), free, OF_A_BATCH)

    def _is_long(self, request: Request) -> bool:
        return request.prompt_length > self._chunk or request.scored_together > 0

    def _begin_long(self, line: list[Request]) -> None:
        if self._fit([line[0]]):
            self.long = line.pop(0)
            self.long_done = self.long_scored = 0
            self.waiting.remove(self.long)

    def _next_chunk(self) -> PrefillChunk | Score:
        assert self.long is not None  # noqa: S101
        tokens = self.long.prompt_length
        self._chunk_next = False
        if self.long_done < tokens:
            start = self.long_done
            self.long_done = min(start + self._chunk, tokens)
            return PrefillChunk(self.long, start, self.long_done)
        start = self.long_scored
        self.long_scored = min(start + self.long.scored_together, tokens - 1)
        return Score(self.long, start, self.long_scored)

    def _take_short(self, line: list[Request]) -> list[Request]:
        """The next short prompts that fit together into one chunk; they leave the queue.

        They may overtake a long prompt that waits for another long one, but nothing
        overtakes a request that waits for room.
        """
        taken: list[Request] = []
        limited: set[str] = set()
        longest = 0
        for request in line:
            if self._is_long(request):
                if self.long is None:
                    break
                continue
            if request.owner in limited or self._is_limited(request, taken):
                limited.add(request.owner)
                continue
            longest = max(longest, request.prompt_length)
            if (len(taken) + 1) * longest > self._chunk or not self._fit([*taken, request]):
                break
            taken.append(request)
        for request in taken:
            self.waiting.remove(request)
        return taken

    def _fit(self, joining: list[Request]) -> bool:
        slots = len(self.running) + sum(len(request.sequences) for request in joining)
        if self.long is not None:
            slots += len(self.long.sequences)
        if slots > self._max_batch_size:
            return False
        prompts = [*joining, self.long] if self.long is not None else joining
        beside = max(request.prompt_room(self._chunk) for request in prompts)
        return self._kv_fits(self.shape(joining), beside)
