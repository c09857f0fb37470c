"""What leaves a disk cache: the rule alone, and the cache on a disk against a plain model of it."""

from __future__ import annotations

import contextlib
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from gpt2serve.engine.stores.disk_cache import KEEP_PARTS, OVERHEAD, DiskCache
from gpt2serve.engine.stores.disk_layout import NEVER
from gpt2serve.engine.stores.disk_policy import Entry, evict
from gpt2serve.errors import CorruptPackage, ModelTooLarge, ModelUnavailable, NotOnDisk
from gpt2serve.package import MANIFEST_FILE, Manifest, encode_manifest
from tests.engine_fakes import manifest as make_manifest

ENTRIES = st.lists(
    st.builds(
        Entry,
        name=st.uuids().map(str),
        bytes=st.integers(0, 50),
        used=st.integers(0, 5).map(float),
    ),
    max_size=12,
    unique_by=lambda entry: entry.name,
)


@given(entries=ENTRIES, excess=st.integers(-20, 300), data=st.data())
def test_the_least_recently_used_go_and_no_more_than_need(
    entries: list[Entry], excess: int, data: st.DataObject
) -> None:
    held = {e.name for e in entries if data.draw(st.booleans(), label=f"{e.name} is held")}
    gone: list[Entry] = []

    def remove(entry: Entry) -> bool:
        if entry.name in held:
            return False
        gone.append(entry)
        return True

    freed = evict(entries, excess, remove)
    assert freed == sum(entry.bytes for entry in gone)
    free = [entry for entry in entries if entry.name not in held]
    assert freed >= excess or len(gone) == len(free)
    kept = [entry for entry in free if entry not in gone]
    assert all(a.used <= b.used for a in gone for b in kept)
    if gone:
        assert freed - gone[-1].bytes < excess


# -- on a disk --------------------------------------------------------------------------------

MODELS = [f"m{n}" for n in range(6)]
BUDGET = 10_000


class BrokenOff(Exception):
    """A fetch that can be resumed."""


ENDS = st.sampled_from([None, None, None, BrokenOff, CorruptPackage])


@dataclass
class Known:
    """What the model of the cache knows of a package in it."""

    size: int
    used: float
    holds: list[contextlib.ExitStack] = field(default_factory=list)


class DiskCacheMachine(RuleBasedStateMachine):
    """Two caches over one folder, as of two processes, against a dictionary."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.now = 1000.0
        self.caches = [self._open(), self._open()]
        self.known: dict[str, Known] = {}
        self.parts: dict[str, Known] = {}

    def _open(self) -> DiskCache:
        root = Path(self.folder.name) / "cache"
        return DiskCache(root, BUDGET, store="s3://x", wall=lambda: self.now)

    def teardown(self) -> None:
        for package in self.known.values():
            for hold in package.holds:
                hold.close()
        self.folder.cleanup()

    @rule(model=st.sampled_from(MODELS), which=st.integers(0, 1), end=ENDS)
    def fetch(self, model: str, which: int, end: type[BaseException] | None) -> None:
        """Which ends well, breaks, or finds something corrupt."""
        self.now += 1
        cache, made = self.caches[which], manifest_of(model)
        if model in self.known:
            with cache.filling(cache.layout.package(model, made), size_of(made), fail) as folder:
                assert folder is None
            return
        fits = self._expect_room(model, size_of(made))
        if not fits:
            with pytest.raises(ModelUnavailable) as caught:
                fetch(cache, model, made, end)
            assert (caught.type is ModelTooLarge) == (size_of(made) > BUDGET)
            if model in self.parts:
                self.parts[model].used = self.now
            return
        self.parts.pop(model, None)
        if end is None:
            fetch(cache, model, made, end)
            self.known[model] = Known(size_of(made), self.now)
            return
        with pytest.raises(end):
            fetch(cache, model, made, end)
        if end is not CorruptPackage:
            self.parts[model] = Known(size_of(made), self.now)

    def _expect_room(self, model: str, size: int) -> bool:
        """Evict as the rule says; whether there is room then."""
        if size > BUDGET:
            return False
        others = {m: known for m, known in (self.known | self.parts).items() if m != model}
        excess = sum(known.size for known in others.values()) + size - BUDGET

        # No two models have one beginning, so they are in the order of their locks' names.
        for name in sorted(others, key=lambda name: (others[name].used, name)):
            if excess > 0 and not others[name].holds:
                excess -= others[name].size
                self.known.pop(name, None)
                self.parts.pop(name, None)
        return excess <= 0

    @rule(model=st.sampled_from(MODELS), which=st.integers(0, 1))
    def hold(self, model: str, which: int) -> None:
        self.now += 1
        cache, made = self.caches[which], manifest_of(model)
        stack = contextlib.ExitStack()
        holding = cache.hold(cache.layout.package(model, made), model, made)
        if model not in self.known:
            with pytest.raises(NotOnDisk):
                stack.enter_context(holding)
            return
        path = stack.enter_context(holding)
        assert (path / MANIFEST_FILE).read_bytes() == encode_manifest(made)
        self.known[model].holds.append(stack)
        self.known[model].used = self.now

    @precondition(lambda self: any(known.holds for known in self.known.values()))
    @rule(data=st.data())
    def let_go(self, data: st.DataObject) -> None:
        self.now += 1
        held = sorted(model for model, known in self.known.items() if known.holds)
        model = data.draw(st.sampled_from(held))
        known = self.known[model]
        known.holds.pop(data.draw(st.integers(0, len(known.holds) - 1))).close()
        if known.used != NEVER:
            known.used = self.now
        elif not known.holds:
            del self.known[model]

    @rule(model=st.sampled_from(MODELS), which=st.integers(0, 1))
    def demote(self, model: str, which: int) -> None:
        cache = self.caches[which]
        cache.demote(cache.layout.package(model, manifest_of(model)))
        if model in self.known:
            self.known[model].used = NEVER

    @rule(model=st.sampled_from(MODELS), which=st.integers(0, 1))
    def remove(self, model: str, which: int) -> None:
        cache = self.caches[which]
        removed = cache.remove(cache.layout.package(model, manifest_of(model)))
        known = self.known.get(model)
        assert removed == (known is None or not known.holds)
        if removed:
            self.known.pop(model, None)
            self.parts.pop(model, None)
        elif known is not None:
            known.used = NEVER

    @rule(which=st.integers(0, 1), later=st.sampled_from([0.0, KEEP_PARTS]))
    def restart(self, which: int, later: float) -> None:
        self.now += later
        self.caches[which] = self._open()
        for model, part in list(self.parts.items()):
            if self.now - part.used > KEEP_PARTS:
                del self.parts[model]

    @invariant()
    def what_is_there_is_what_should_be(self) -> None:
        cache = self.caches[0]
        assert set(cache.layout.models({"cpu-int8"})) == set(self.known)
        for model, known in self.known.items():
            made = manifest_of(model)
            (place,) = cache.layout.versions(model, "cpu-int8")
            assert place == cache.layout.package(model, made)
            assert sum(file.stat().st_size for file in place.path.iterdir()) <= known.size
            assert cache._is_whole(place.path, made)
        staged = {p.name.partition("@")[0] for p in cache.layout.staged()}
        assert staged == set(self.parts)
        everything = [*self.known.values(), *self.parts.values()]
        assert sum(known.size for known in everything) <= BUDGET


def manifest_of(model: str) -> Manifest:
    """Three or four of m0 to m4 have room, and m5 never has."""
    size = [1_000, 2_000, 2_000, 2_500, 4_000, 20_000][int(model[1:])]
    return make_manifest(model, files={"extra": b"x" * size})


def size_of(made: Manifest) -> int:
    files = sum(entry.bytes for entry in made.files.values())
    return files + len(encode_manifest(made)) + OVERHEAD


def fetch(cache: DiskCache, model: str, made: Manifest, end: type[BaseException] | None) -> None:
    place = cache.layout.package(model, made)
    with cache.filling(place, size_of(made), fail) as folder:
        assert folder is not None
        for name, entry in made.files.items():
            (folder / name).write_bytes(b"x" * entry.bytes)
        (folder / MANIFEST_FILE).write_bytes(encode_manifest(made))
        if end is not None:
            raise end("so it ends")
        cache.publish(place)


def fail(_there: int) -> Any:
    raise AssertionError("nobody is to be waited for")


TestDiskCacheMachine = DiskCacheMachine.TestCase
TestDiskCacheMachine.settings = settings(max_examples=120, stateful_step_count=50, deadline=None)
