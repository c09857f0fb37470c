"""Accounting of the KV cache."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from gpt2serve.engine.kv_cache import NOTHING, KVPool, KVShape, power_of_two, rectangle, resized

QUICK = settings(deadline=None, derandomize=True, max_examples=300)
sides = st.integers(1, 1024)


@pytest.mark.parametrize(
    ("n", "power"), [(-1, 0), (0, 0), (1, 1), (2, 2), (3, 4), (4, 4), (5, 8), (1024, 1024)]
)
def test_power_of_two(n: int, power: int) -> None:
    assert power_of_two(n) == power


@QUICK
@given(st.lists(st.integers(1, 1000), max_size=24), st.integers(1, 40), st.integers(1, 1000))
def test_a_rectangle_holds_every_sequence(lengths: list[int], slots: int, context: int) -> None:
    lengths = [min(length, context) for length in lengths[:slots]]
    shape = rectangle(lengths, context_length=context, max_slots=slots)
    if not lengths:
        assert shape == NOTHING
        return
    assert len(lengths) <= shape.slots <= slots
    assert max(lengths) <= shape.length <= context
    # No more than needed: a power of two that half of would not do, or the limit.
    for side, needed, limit in (
        (shape.slots, len(lengths), slots),
        (shape.length, max(lengths), context),
    ):
        assert side == limit or (side & (side - 1) == 0 and side // 2 < needed)


@QUICK
@given(st.builds(KVShape, sides, sides), st.builds(KVShape, sides, sides))
def test_resizing_is_enough_and_lazy(now: KVShape, needed: KVShape) -> None:
    target = resized(now, needed)
    for side, wanted, before in zip(target, needed, now, strict=True):
        assert side >= wanted
        if wanted > before or wanted <= before / 4:
            assert side == wanted
        else:
            assert side == before
    # It settles: what was resized is not resized again for the same need.
    assert resized(target, needed) == target


def test_a_batch_that_swings_is_not_copied_each_time() -> None:
    shape = KVShape(8, 64)
    for slots in (5, 4, 8, 3, 7, 4):
        need = rectangle([40] * slots, context_length=64, max_slots=8)
        assert resized(shape, need) == shape
    assert resized(shape, KVShape(2, 64)) == KVShape(2, 64)
    assert resized(shape, NOTHING) == NOTHING
    assert resized(NOTHING, KVShape(1, 32)) == KVShape(1, 32)


class PoolMachine(RuleBasedStateMachine):
    """Against a plain dictionary."""

    BUDGET = 100

    def __init__(self) -> None:
        super().__init__()
        self.pool = KVPool(self.BUDGET)
        self.held: dict[str, int] = {}

    @rule(owner=st.sampled_from("abc"), size=st.integers(0, 120))
    def hold(self, owner: str, size: int) -> None:
        others = sum(held for other, held in self.held.items() if other != owner)
        possible = others + size <= self.BUDGET
        assert self.pool.fits(owner, size) == possible
        assert self.pool.hold(owner, size) == possible
        if possible:
            self.held[owner] = size

    @invariant()
    def agrees(self) -> None:
        self.pool.check_integrity()
        assert self.pool.used == sum(self.held.values()) <= self.BUDGET


def test_pool_never_exceeds_its_budget() -> None:
    run_state_machine_as_test(
        PoolMachine, settings=settings(deadline=None, derandomize=True, max_examples=60)
    )


def test_integrity_check_notices() -> None:
    pool: Any = KVPool(10)
    pool._held["a"] = 11
    with pytest.raises(AssertionError):
        pool.check_integrity()
