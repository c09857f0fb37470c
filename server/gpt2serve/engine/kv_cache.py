"""Accounting of the KV cache: who holds how many bytes of one budget. Pure policy.

A model's batch keeps its keys and values in one rectangle of `slots` by `length`, both
powers of two that grow with what is live, so that growing happens rarely. A sequence is
only admitted if the rectangle that it needs *at its greatest length* fits: nothing that
was admitted ever runs out of room.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from typing import NamedTuple


class KVShape(NamedTuple):
    """Sequences, and tokens of each, that a batch has room for."""

    slots: int
    length: int


NOTHING = KVShape(0, 0)


def power_of_two(n: int) -> int:
    """The smallest power of two that is not below `n`; 0 for 0."""
    return 1 << (n - 1).bit_length() if n > 0 else 0


def rectangle(lengths: Iterable[int], *, context_length: int, max_slots: int) -> KVShape:
    """The shape for sequences that grow to `lengths` tokens. Powers of two, up to the limits."""
    lengths = list(lengths)
    if not lengths:
        return NOTHING
    return KVShape(
        slots=min(power_of_two(len(lengths)), max_slots),
        length=min(power_of_two(max(lengths)), context_length),
    )


def resized(current: KVShape, needed: KVShape) -> KVShape:
    """The shape to have next: grow as needed; shrink when less than a quarter is needed.

    The gap between the two keeps a batch whose size swings from copying its cache each time.
    """
    if needed == NOTHING:
        return NOTHING

    def side(now: int, wanted: int) -> int:
        return wanted if wanted > now or wanted * 4 <= now else now

    return KVShape(side(current.slots, needed.slots), side(current.length, needed.length))


def kv_tokens(shape: KVShape, beside: int, chunk: int) -> int:
    """Tokens that a batch of `shape` has room for, and prompts beside it, in whole chunks."""
    return shape.slots * shape.length + whole_chunks(beside, chunk)


#: Slots in which a prompt is scored have room for that many tokens together, about; more slots
#: make a step cheaper for each, but with long prompts reading keys and values is what costs.
SCORED_TOKENS = 2048
MOST_SCORED = 16


def scored_together(prompt_tokens: int, chunk: int) -> int:
    """How many places of a prompt are scored in one step at most, each in a slot of its own."""
    return max(2, min(SCORED_TOKENS // whole_chunks(prompt_tokens, chunk), MOST_SCORED))


def prompt_room(prompt_tokens: int, chunk: int, scored: int = 0) -> int:
    """Tokens of KV cache that a prompt takes beside the batch while it is being read.

    scored: places that are scored together.
    """
    return (1 + scored) * whole_chunks(prompt_tokens, chunk)


def whole_chunks(tokens: int, chunk: int) -> int:
    """`tokens`, rounded up to a multiple of `chunk`."""
    return -(-tokens // chunk) * chunk


class KVPool:
    """One budget in bytes for the KV caches of all models."""

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self._held: dict[Hashable, int] = {}

    @property
    def used(self) -> int:
        return sum(self._held.values())

    def fits(self, owner: Hashable, size: int) -> bool:
        """Whether `owner` may hold `size` bytes in place of what it holds now."""
        return self.used - self._held.get(owner, 0) + size <= self.budget

    def hold(self, owner: Hashable, size: int) -> bool:
        """Let `owner` hold `size` bytes in all; 0 gives everything back. False changes nothing."""
        if not self.fits(owner, size):
            return False
        if size:
            self._held[owner] = size
        else:
            self._held.pop(owner, None)
        return True

    def check_integrity(self) -> None:
        assert all(size > 0 for size in self._held.values()), self._held  # noqa: S101
        assert 0 <= self.used <= self.budget, (self.used, self.budget)  # noqa: S101
