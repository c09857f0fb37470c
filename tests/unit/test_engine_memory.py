"""Blocks of host memory that are kept and found again."""

from __future__ import annotations

import mmap

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from gpt2serve.engine.memory import HostMemory, size_class

PAGE = mmap.PAGESIZE


@given(st.integers(1, 2**40))
def test_a_class_is_enough_and_little_more(size: int) -> None:
    block = size_class(size)
    assert block >= size
    assert block % PAGE == 0
    assert block <= size + max(size // 8, PAGE)
    assert size_class(block) == block


@given(st.integers(1, 2**40), st.integers(1, 2**40))
def test_classes_are_in_order(a: int, b: int) -> None:
    low, high = sorted((a, b))
    assert size_class(low) <= size_class(high)


def test_a_block_is_found_again_by_its_size() -> None:
    memory = HostMemory()
    block = memory.take(100 * PAGE)
    memory.give(block)
    assert memory.take(400 * PAGE) is not block
    assert memory.take(100 * PAGE - 5) is block
    assert memory.kept == 0


def test_what_was_used_longest_ago_goes_first() -> None:
    memory = HostMemory()
    blocks = {pages: memory.take(pages * PAGE) for pages in (8, 16, 24)}
    for block in blocks.values():
        memory.give(block)
    memory.give(memory.take(8 * PAGE))
    memory.trim(32 * PAGE)
    assert memory.kept == 32 * PAGE
    assert memory.take(8 * PAGE) is blocks[8]
    assert memory.take(24 * PAGE) is blocks[24]


class KeptMemory(RuleBasedStateMachine):
    """No block is in two hands, and what is kept is counted."""

    def __init__(self) -> None:
        super().__init__()
        self.memory = HostMemory()
        self.used: list[mmap.mmap] = []
        self.free: list[mmap.mmap] = []

    @rule(pages=st.integers(1, 40))
    def take(self, pages: int) -> None:
        block = self.memory.take(pages * PAGE)
        assert len(block) >= pages * PAGE
        assert all(block is not other for other in self.used)
        self.free = [other for other in self.free if other is not block]
        self.used.append(block)

    @precondition(lambda self: self.used)
    @rule(data=st.data())
    def give(self, data: st.DataObject) -> None:
        block = self.used.pop(data.draw(st.integers(0, len(self.used) - 1)))
        self.memory.give(block)
        self.free.append(block)

    @rule(pages=st.integers(0, 60))
    def trim(self, pages: int) -> None:
        before = self.memory.kept
        self.memory.trim(pages * PAGE)
        assert self.memory.kept <= max(pages * PAGE, 0)
        if before <= pages * PAGE:
            assert self.memory.kept == before
        else:
            kept = {id(b) for blocks in self.memory._free.values() for b in blocks}
            self.free = [block for block in self.free if id(block) in kept]

    @invariant()
    def kept_is_counted(self) -> None:
        assert self.memory.kept == sum(map(len, self.free))


TestKeptMemory = KeptMemory.TestCase


def test_no_memory_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OSError, match="memory"):
        HostMemory().take(2**62)
