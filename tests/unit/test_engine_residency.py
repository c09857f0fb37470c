"""Orders, time to live, and what is told of models: the whole engine around a fake model."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from gpt2serve import Engine
from gpt2serve.engine import core as core_module
from gpt2serve.engine.messages import Ask
from gpt2serve.engine.status import ModelStatus
from gpt2serve.engine.store import Package
from gpt2serve.errors import (
    CorruptPackage,
    EngineClosed,
    InvalidRequest,
    ModelLoadFailed,
    ModelNotFound,
    PackageReplaced,
    RequestAborted,
)
from gpt2serve.package import ModelCard
from tests.engine_driver import (
    Watcher,
    assert_idle,
    in_engine_thread,
    send,
)
from tests.engine_fakes import FakeModels, write_package
from tests.unit.model_life import PARAMS, PATIENCE, Far, HeldUp, publish, version_of
from tests.waiting import wait_until

# -- unload ----------------------------------------------------------------------------------


def test_unload_waits_for_requests_and_serves_those_that_come_meanwhile(
    opened: Callable[..., Engine], models: FakeModels
) -> None:
    watcher = Watcher()
    engine = opened(observer=watcher)
    running = HeldUp(engine, "a")
    gone = engine.start_unload("a")
    late = send(engine, "a", "x", PARAMS)
    wait_until(lambda: engine.status("a").leases == 2)
    assert not gone.done()
    running.go()
    running.stream.finish()
    late.stream.finish()
    gone.result(PATIENCE)
    assert engine.status("a").state == "cold"
    assert watcher.evicted == [("a", "unload")]
    assert models.loaded.count("a") == 1
    engine.unload("a")  # it is out already
    engine.unload("never-heard-of")
    assert_idle(engine)


def test_unload_takes_the_pin_away(opened: Callable[..., Engine], models: FakeModels) -> None:
    engine = opened()
    engine.pin("a")
    engine.unload("a")
    status = engine.status("a")
    assert (status.state, status.pinned) == ("cold", False)


@pytest.mark.parametrize("again", [Engine.start_load, lambda e, m: e.start_load(m, pin=True)])
def test_the_later_order_counts(
    opened: Callable[..., Engine],
    models: FakeModels,
    again: Callable[[Engine, str], Future[None]],
) -> None:
    engine = opened()
    running = HeldUp(engine, "a")
    gone = engine.start_unload("a")
    again(engine, "a").result(PATIENCE)
    with pytest.raises(RequestAborted, match="loaded again"):
        gone.result(PATIENCE)
    running.go()
    running.stream.finish()
    assert engine.status("a").state == "resident"


def test_unload_means_all_versions(
    opened: Callable[..., Engine], folder: Path, models: FakeModels
) -> None:
    watcher = Watcher()
    engine = opened(observer=watcher)
    running = HeldUp(engine, "a")
    publish(folder, "a", 2)
    engine.generate("a", "x", PARAMS)
    gone = engine.start_unload("a")
    wait_until(lambda: watcher.evicted == [("a", "unload")])  # the new one is idle
    assert not gone.done()
    running.go()
    running.stream.finish()
    gone.result(PATIENCE)
    assert watcher.evicted == [("a", "unload"), ("a", "replaced")]


def test_unload_while_it_loads(opened: Callable[..., Engine], models: FakeModels) -> None:
    engine = opened()
    models.go.clear()
    sent = send(engine, "a", "x", PARAMS)
    wait_until(lambda: engine.status("a").state == "loading")
    gone = engine.start_unload("a")
    in_engine_thread(engine, lambda: None)
    models.go.set()
    sent.stream.finish()
    gone.result(PATIENCE)
    assert engine.status("a").state == "cold"


def test_orders_to_an_engine_that_is_closed(
    opened: Callable[..., Engine], models: FakeModels
) -> None:
    engine = opened()
    running = HeldUp(engine, "a")
    gone = engine.start_unload("a")
    engine.close()
    running.stream.wait()
    assert isinstance(gone.exception(PATIENCE), EngineClosed | None)
    for order in (engine.start_unload, engine.unpin, engine.start_load):
        with pytest.raises(EngineClosed):
            order("a")
    assert [status.id for status in engine.list_models()] == ["a", "b", "c"]


# -- time to live ----------------------------------------------------------------------------


def test_models_that_are_idle_for_long_go_by_themselves(
    opened: Callable[..., Engine], models: FakeModels
) -> None:
    watcher = Watcher()
    engine = opened(observer=watcher, model_ttl=0.05)
    engine.pin("b")
    engine.generate("a", "x", PARAMS)
    # Nobody says anything to the engine any more; it wakes up on its own.
    wait_until(lambda: engine.stats().models_resident == 1)
    assert watcher.evicted == [("a", "ttl")]
    engine.unpin("b")
    wait_until(lambda: watcher.evicted == [("a", "ttl"), ("b", "ttl")])
    assert_idle(engine)


def test_a_busy_engine_lets_idle_models_go_too(
    opened: Callable[..., Engine], models: FakeModels
) -> None:
    now = 1000.0
    watcher = Watcher()
    engine = opened(observer=watcher, model_ttl=10.0, clock=lambda: now)
    engine.generate("a", "x", PARAMS)
    now += 9.0
    engine.generate("b", "x", PARAMS)
    assert watcher.evicted == []
    now += 1.0
    engine.generate("b", "x", PARAMS)
    wait_until(lambda: watcher.evicted == [("a", "ttl")])


def test_an_idle_engine_without_a_time_to_live_sleeps(
    opened: Callable[..., Engine], models: FakeModels, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Inbox:
        """Writes down how long the engine is ready to sleep."""

        def __init__(self, inner: Any) -> None:
            self._inner = inner
            self.timeouts: list[float | None] = []

        def get(self, *, timeout: float | None = -1) -> Any:
            if timeout != -1:
                self.timeouts.append(timeout)
                return self._inner.get(timeout=timeout)
            return self._inner.get()

        def __getattr__(self, name: str) -> Any:
            return getattr(self._inner, name)

    monkeypatch.setattr(core_module, "KEEP_MEMORY_SECONDS", 0.01)
    engine = opened(start=False)
    inbox = Inbox(engine._core.inbox)
    engine._core.inbox = inbox  # type: ignore[assignment]
    engine.start()
    engine.generate("a", "x", PARAMS)
    wait_until(lambda: inbox.timeouts[-1] is None)


# -- what is told ----------------------------------------------------------------------------


def test_a_page_is_one_way_to_the_engine_and_back(
    opened: Callable[..., Engine], models: FakeModels, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = opened()
    engine.generate("b", "x", PARAMS)
    asked: list[Any] = []
    monkeypatch.setattr(Ask, "run", lambda self, run=Ask.run: (asked.append(self), run(self)))
    engine._core._handlers[Ask] = Ask.run
    page = engine.list_models()
    assert len(asked) == 1
    assert [(one.id, one.state) for one in page] == [
        ("a", "cold"),
        ("b", "resident"),
        ("c", "cold"),
    ]
    assert [one.id for one in engine.list_models(after="a", limit=1)] == ["b"]


def test_status(
    opened: Callable[..., Engine], models: FakeModels, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    engine = opened(clock=lambda: now, load_retry_min=5.0)
    monkeypatch.setattr("gpt2serve.engine.engine.time.time", lambda: 2e9 + now)
    cold = ModelStatus(
        id="a", state="cold", bytes=100, version=version_of(engine, "a"), card=ModelCard()
    )
    assert engine.status("a") == cold
    now += 1.0
    engine.generate("a", "x", PARAMS)
    used = 2e9 + now
    now += 1.0
    assert engine.status("a").last_used == used
    engine.unload("a")
    assert engine.status("a").last_used == used, "still true when it is out of memory"
    models.errors = [CorruptPackage("broken")]
    with pytest.raises(ModelLoadFailed):
        engine.generate("b", "x", PARAMS)
    failed = engine.status("b")
    assert failed.state == "failed"
    assert "broken" in str(failed.error)
    now += 5.0
    assert engine.status("b").error is None
    with pytest.raises(ModelNotFound):
        engine.status("never")


def test_of_a_store_behind_a_url_only_what_is_known_is_told(
    opened: Callable[..., Engine], models: FakeModels, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = opened()
    engine.generate("a", "x", PARAMS)
    monkeypatch.setattr(engine._listing, "_local", False)

    def never(_: str) -> Package:
        raise AssertionError("a list must not ask a network about each model")

    monkeypatch.setattr(engine._store, "resolve", never)
    listed = {one.id: one for one in engine.list_models()}
    assert (listed["a"].state, listed["a"].bytes) == ("resident", 100)
    assert (listed["b"].state, listed["b"].bytes, listed["b"].version) == ("cold", 0, None)


def test_only_models_that_are_warm(opened: Callable[..., Engine], models: FakeModels) -> None:
    engine = opened()
    assert engine.list_models(state="resident") == []
    engine.generate("c", "x", PARAMS)
    engine.generate("a", "x", PARAMS)
    assert [one.id for one in engine.list_models(state="resident")] == ["a", "c"]
    assert [one.id for one in engine.list_models(state="resident", after="a")] == ["c"]
    assert [one.id for one in engine.list_models(state="resident", search="C")] == ["c"]
    assert engine.list_models(state="loading") == []
    with pytest.raises(InvalidRequest, match="fetching, loading, resident"):
        engine.list_models(state="cold")


def test_titles_in_a_list_and_in_a_search(folder: Path, opened: Callable[..., Engine]) -> None:
    card = ModelCard(title="Somebody", handle="@who", example_prompts=("x",))
    write_package(folder, "e", card=card)
    engine = opened()
    (found,) = engine.list_models(search="e", limit=1)
    assert found.card == ModelCard(title="Somebody", handle="@who")
    engine._store._finder.join()
    assert [one.id for one in engine.list_models(search="@wh somebody")] == ["e"]


def test_what_is_reported(opened: Callable[..., Engine], models: FakeModels) -> None:
    class All(Watcher):
        def __init__(self) -> None:
            super().__init__()
            self.told: list[tuple[Any, ...]] = []

        def on_model_wanted(self, model: str, *, hit: bool) -> None:
            self.told.append(("wanted", model, hit))

        def on_fetch(self, model: str, seconds: float, size: int, *, ok: bool) -> None:
            self.told.append(("fetch", model, size, ok))

        def on_load(self, model: str, phases: Any, *, ok: bool) -> None:
            self.told.append(("load", model, ok))

    watcher = All()
    engine = opened(observer=watcher, load_retry_min=0.0)
    far = Far(engine._store)
    far.errors = [PackageReplaced("a")]
    with pytest.raises(PackageReplaced):  # and yet the store has the same still
        engine.generate("a", "x", PARAMS)
    models.errors = [CorruptPackage("broken")]
    with pytest.raises(ModelLoadFailed):
        engine.generate("a", "x", PARAMS)
    engine.generate("a", "x", PARAMS)
    engine.generate("a", "x", PARAMS)
    assert watcher.told == [
        ("wanted", "a", False),
        ("fetch", "a", 3, False),
        ("wanted", "a", False),
        ("fetch", "a", 3, True),
        ("load", "a", False),
        ("wanted", "a", False),
        ("load", "a", True),
        ("wanted", "a", True),
    ]
    assert engine.stats().leases == 0
