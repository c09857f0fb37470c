"""Packages that are not on the disk: the whole engine around a fake model."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from gpt2serve import Engine
from gpt2serve.engine.fetcher import FETCHES, size_of
from gpt2serve.errors import (
    CorruptPackage,
    EngineClosed,
    ModelLoadFailed,
    NotOnDisk,
    RequestAborted,
    StoreUnavailable,
)
from tests.engine_driver import (
    assert_idle,
    cancel,
    send,
)
from tests.engine_fakes import FakeModels
from tests.unit.model_life import PARAMS, PATIENCE, Far, publish
from tests.waiting import wait_until


def test_what_is_not_on_the_disk_is_fetched_once_and_then_loaded(
    opened: Callable[..., Engine], models: FakeModels
) -> None:
    engine = opened()
    far = Far(engine._store)
    far.go.clear()
    sent = [send(engine, "a", "x", PARAMS) for _ in range(3)]
    wait_until(lambda: far.fetches == ["a"])
    status = engine.status("a")
    assert (status.state, status.leases, status.bytes) == ("fetching", 3, 100)
    assert (status.fetched_bytes, status.fetch_total_bytes) == (
        3,
        size_of(engine._store.resolve("a")),
    )
    assert engine.stats().models_fetching == 1
    assert engine.stats().model_cache_used_bytes == 0, "it takes no memory yet"
    far.go.set()
    for one in sent:
        one.stream.finish()
    assert far.fetches == ["a"]
    status = engine.status("a")
    assert (status.state, status.fetched_bytes, status.fetch_total_bytes) == (
        "resident",
        None,
        None,
    )
    assert_idle(engine)


def test_a_fetch_holds_up_nobody(opened: Callable[..., Engine], models: FakeModels) -> None:
    engine = opened()
    engine.load("b")
    far = Far(engine._store)
    far.here.add(engine._store.resolve("b").key)
    far.go.clear()
    slow = send(engine, "a", "x", PARAMS)
    engine.generate("b", "x", PARAMS)
    assert not slow.stream.ended.is_set()
    far.go.set()
    slow.stream.finish()


def test_a_fetch_that_nobody_waits_for_is_dropped_unless_it_has_begun(
    opened: Callable[..., Engine], folder: Path, models: FakeModels
) -> None:
    for n in range(FETCHES + 1):
        publish(folder, f"m{n}")
    engine = opened()
    far = Far(engine._store)
    far.go.clear()
    sent = [send(engine, f"m{n}", "x", PARAMS) for n in range(FETCHES)]
    wait_until(lambda: len(far.fetches) == FETCHES)
    late = send(engine, f"m{FETCHES}", "x", PARAMS)
    for one in (late, sent[0]):
        cancel(engine, one)
        assert isinstance(one.stream.wait().error, RequestAborted)
    far.go.set()
    for one in sent[1:]:
        one.stream.finish()
    assert len(far.fetches) == FETCHES
    # What had begun is on the disk now, and not in memory.
    assert engine._store.resolve("m0").local
    assert engine.status("m0").state == "cold"
    assert_idle(engine)


def test_who_comes_back_while_it_is_fetched_finds_the_same_fetch(
    opened: Callable[..., Engine], models: FakeModels
) -> None:
    engine = opened()
    far = Far(engine._store)
    far.go.clear()
    first = send(engine, "a", "x", PARAMS)
    wait_until(lambda: far.fetches == ["a"])
    cancel(engine, first)
    first.stream.wait()
    second = send(engine, "a", "x", PARAMS)
    wait_until(lambda: engine.status("a").leases == 1)
    far.go.set()
    second.stream.finish()
    assert far.fetches == ["a"]


def test_a_store_that_is_away_says_when_to_come_back(
    opened: Callable[..., Engine], models: FakeModels
) -> None:
    now = 1000.0
    engine = opened(clock=lambda: now)
    far = Far(engine._store)
    far.errors = [StoreUnavailable("no answer", retry_after=7.0)]
    for _ in range(2):
        stream = send(engine, "a", "x", PARAMS).stream.wait()
        assert isinstance(stream.error, StoreUnavailable)
        assert stream.error.retry_after == 7.0
    assert far.fetches == ["a"]
    status = engine.status("a")
    assert (status.state, status.error) == ("failed", "no answer")
    now += 7.0
    assert engine.status("a").state == "cold"
    engine.generate("a", "x", PARAMS)
    assert_idle(engine)


def test_a_fetch_of_what_is_corrupt_is_a_failure_of_the_model(
    opened: Callable[..., Engine], models: FakeModels
) -> None:
    engine = opened()
    far = Far(engine._store)
    far.errors = [CorruptPackage("weights differ")]
    with pytest.raises(ModelLoadFailed, match="weights differ"):
        engine.generate("a", "x", PARAMS)
    assert "weights differ" in str(engine.status("a").error)


def test_what_has_gone_from_the_disk_is_fetched_again_once(
    opened: Callable[..., Engine], models: FakeModels
) -> None:
    engine = opened(load_retry_min=0.0)
    far = Far(engine._store)
    engine.generate("a", "x", PARAMS)
    engine.unload("a")
    resolve = far.resolve
    # The store thinks that it is there, and it is not.
    engine._store.resolve = lambda m: replace(resolve(m), local=True)  # type: ignore[method-assign]
    far.here.clear()
    engine.generate("a", "x", PARAMS)
    assert far.fetches == ["a", "a"]
    engine.unload("a")
    far.here.clear()
    # Evicted at once, as often as it is fetched: that is no reason to try for ever.
    engine._store.fetch = lambda package, _: package  # type: ignore[method-assign, assignment, misc]
    with pytest.raises(NotOnDisk):
        engine.generate("a", "x", PARAMS)
    assert_idle(engine)


def test_closing_ends_who_waits_for_a_fetch(
    opened: Callable[..., Engine], models: FakeModels
) -> None:
    engine = opened()
    far = Far(engine._store)
    far.go.clear()
    sent = [send(engine, model, "x", PARAMS) for model in ("a", "a", "b")]
    loading = engine.start_load("c")
    wait_until(lambda: len(far.fetches) == 3)
    closing = threading.Thread(target=engine.close)
    closing.start()
    for one in sent:
        assert isinstance(one.stream.wait().error, EngineClosed)
        assert one.stream.terminals == 1
    with pytest.raises(EngineClosed):
        loading.result(PATIENCE)
    far.go.set()
    closing.join(PATIENCE)
    assert not closing.is_alive()
