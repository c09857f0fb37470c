"""Models that are published again, deleted or pinned: the whole engine around a fake model."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from gpt2serve import Engine
from gpt2serve.errors import (
    CorruptPackage,
    EngineClosed,
    ModelLoadFailed,
    ModelNotFound,
    ModelTooLarge,
    RequestAborted,
)
from gpt2serve.package import TOKENIZER_FILE, WEIGHTS_FILE
from tests.engine_driver import (
    Watcher,
    assert_idle,
    cancel,
    send,
    send_prepared,
)
from tests.engine_fakes import FakeModels, letters_tokenizer, write_package
from tests.unit.model_life import PARAMS, PATIENCE, HeldUp, publish, version_of
from tests.waiting import wait_until

# -- versions --------------------------------------------------------------------------------


def test_running_requests_end_on_the_old_version_and_new_ones_get_the_new(
    opened: Callable[..., Engine], folder: Path, models: FakeModels
) -> None:
    watcher = Watcher()
    engine = opened(observer=watcher)
    old = version_of(engine, "a")
    running = HeldUp(engine, "a")
    publish(folder, "a", 2)
    new = version_of(engine, "a")
    assert new != old
    assert engine.generate("a", "x", PARAMS).model_version == new
    status = engine.status("a")
    assert (status.version, status.old_versions, status.leases) == (new, 1, 1)
    assert watcher.evicted == []
    running.go()
    assert running.stream.finish().events[-1].model_version == old
    wait_until(lambda: engine.status("a").old_versions == 0)
    assert watcher.evicted == [("a", "replaced")]
    assert_idle(engine)


def test_an_idle_old_version_goes_when_the_new_one_is_noticed(
    opened: Callable[..., Engine], folder: Path, models: FakeModels
) -> None:
    watcher = Watcher()
    engine = opened(observer=watcher)
    engine.generate("a", "x", PARAMS)
    publish(folder, "a", 2)
    assert engine.list_models()[0].state == "cold"
    wait_until(lambda: watcher.evicted == [("a", "replaced")])
    assert engine.stats().models_resident == 0


def test_what_was_prepared_for_a_version_that_is_gone_is_prepared_again(
    opened: Callable[..., Engine], folder: Path, models: FakeModels
) -> None:
    engine = opened()
    engine.generate("a", "x", PARAMS)
    prepared = engine.prepare("a", "x", PARAMS)
    publish(folder, "a", 2)
    new = version_of(engine, "a")
    stream = send_prepared(engine, prepared).stream.finish()
    assert stream.events[-1].model_version == new
    assert models.loaded.count("a") == 2
    assert_idle(engine)


def test_token_ids_are_prepared_again_as_they_were_given(
    opened: Callable[..., Engine], folder: Path, models: FakeModels
) -> None:
    engine = opened()
    ids = [5, 6, 7, 8]
    prepared = engine.prepare("a", ids, msgspec.structs.replace(PARAMS, truncate=3))
    ids.append(0)
    publish(folder, "a", 2)
    new = version_of(engine, "a")
    sent = send_prepared(engine, prepared)
    assert sent.stream.finish().events[-1].model_version == new
    assert sent.request.prompt_ids == [6, 7, 8]
    assert sent.stream.generations[0].text.startswith("defg")


def test_who_waits_for_room_gets_the_version_of_then(
    opened: Callable[..., Engine], folder: Path, models: FakeModels
) -> None:
    watcher = Watcher()
    engine = opened(model_cache_bytes=120, observer=watcher)
    running = HeldUp(engine, "b")
    waiting = send(engine, "a", "x", PARAMS)
    loading = engine.start_load("a")
    wait_until(lambda: engine.status("a").state == "loading")
    publish(folder, "a", 2)
    new = version_of(engine, "a")
    running.go()
    running.stream.finish()
    assert waiting.stream.finish().events[-1].model_version == new
    loading.result(PATIENCE)
    assert watcher.loads == [True, True], "nobody needs the old one"
    assert_idle(engine)


def test_a_load_that_fails_as_the_package_was_replaced_is_no_failure(
    opened: Callable[..., Engine], folder: Path, models: FakeModels
) -> None:
    engine = opened(store_refresh=1000.0)
    version_of(engine, "a")
    publish(folder, "a", 2)
    # For this store the first version is the newest; only the load finds out.
    result = engine.generate("a", "x", PARAMS)
    assert result.model_version == version_of(engine, "a")
    assert models.loaded.count("a") == 1


def test_a_tokenizer_that_was_replaced_under_a_request(
    opened: Callable[..., Engine], folder: Path, models: FakeModels, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between looking at the manifest and reading the file beside it."""
    engine = opened(store_refresh=1000.0)
    version_of(engine, "a")
    shutil.rmtree(folder / "a")
    # Another file that says the same.
    files = {TOKENIZER_FILE: letters_tokenizer() + b" ", WEIGHTS_FILE: b"2"}
    write_package(folder, "a", files=files, bytes_needed=100)
    result = engine.generate("a", "x", PARAMS)
    assert result.model_version == version_of(engine, "a")
    # But what is only broken is an error still.
    (folder / "b" / "cpu-int8" / TOKENIZER_FILE).write_bytes(letters_tokenizer() + b"  ")
    with pytest.raises(CorruptPackage, match="tokenizer"):
        engine.generate("b", "x", PARAMS)


def test_a_version_that_comes_back_is_taken_back(
    opened: Callable[..., Engine], folder: Path, models: FakeModels
) -> None:
    engine = opened()
    old = version_of(engine, "a")
    running = HeldUp(engine, "a")
    publish(folder, "a", 2)
    engine.generate("a", "x", PARAMS)
    publish(folder, "a", 1)
    again = send(engine, "a", "x", PARAMS)
    running.go()
    assert running.stream.finish().events[-1].model_version == old
    assert again.stream.finish().events[-1].model_version == old
    wait_until(lambda: engine.status("a").old_versions == 0)
    assert models.loaded.count("a") == 2
    assert_idle(engine)


def test_a_deleted_model_is_not_found_but_ends_what_runs(
    opened: Callable[..., Engine], folder: Path, models: FakeModels
) -> None:
    watcher = Watcher()
    engine = opened(observer=watcher)
    running = HeldUp(engine, "a")
    prepared = engine.prepare("a", "x", PARAMS)
    shutil.rmtree(folder / "a")
    for ask in (engine.describe, engine.status, engine.load):
        with pytest.raises(ModelNotFound):
            ask("a")
    assert isinstance(send_prepared(engine, prepared).stream.wait().error, ModelNotFound)
    assert watcher.evicted == []
    running.go()
    running.stream.finish()
    wait_until(lambda: watcher.evicted == [("a", "deleted")])
    assert "a" not in {status.id for status in engine.list_models()}
    # And it can come again, as it was.
    publish(folder, "a")
    engine.generate("a", "x", PARAMS)
    assert_idle(engine)


def test_a_deleted_model_that_comes_back_while_it_runs(
    opened: Callable[..., Engine], folder: Path, models: FakeModels
) -> None:
    engine = opened()
    running = HeldUp(engine, "a")
    shutil.rmtree(folder / "a")
    with pytest.raises(ModelNotFound):
        engine.describe("a")
    publish(folder, "a")
    again = send(engine, "a", "x", PARAMS)
    wait_until(lambda: engine.status("a").leases == 2)
    running.go()
    running.stream.finish()
    again.stream.finish()
    assert models.loaded.count("a") == 1
    assert engine.status("a").state == "resident"


def test_requests_that_are_being_prepared_again_end_with_the_engine(
    opened: Callable[..., Engine], folder: Path, models: FakeModels
) -> None:
    engine = opened()
    prepared = [engine.prepare("a", "x", PARAMS) for _ in range(3)]
    engine.generate("a", "x", PARAMS)
    publish(folder, "a", 2)
    version_of(engine, "a")
    hold = threading.Event()
    engine._core.fetcher.aside(lambda: hold.wait(PATIENCE) and None)
    sent = [send_prepared(engine, one) for one in prepared]
    cancel(engine, sent[0])
    wait_until(lambda: engine.stats().requests_waiting == 3)
    threading.Timer(0.05, hold.set).start()
    engine.close()
    for one in sent:
        assert isinstance(one.stream.wait().error, EngineClosed | RequestAborted)
        assert one.stream.terminals == 1
    assert engine._gate.admitted == 0


# -- pins ------------------------------------------------------------------------------------


def test_a_pin_belongs_to_the_model_and_survives_versions(
    opened: Callable[..., Engine], folder: Path, models: FakeModels
) -> None:
    watcher = Watcher()
    engine = opened(model_cache_bytes=250, observer=watcher)
    engine.pin("a")
    publish(folder, "a", 2)
    version_of(engine, "a")  # somebody notices
    wait_until(lambda: watcher.evicted == [("a", "replaced")])
    assert models.loaded.count("a") == 2, "it is loaded though nobody asked for it"
    for model in "bcbc":
        engine.generate(model, "x", PARAMS)
    status = engine.status("a")
    assert (status.state, status.pinned) == ("resident", True)
    engine.unpin("a")
    for model in "bc":
        engine.generate(model, "x", PARAMS)
    status = engine.status("a")
    assert (status.state, status.pinned) == ("cold", False)
    assert_idle(engine)


def test_the_new_version_of_a_pinned_model_comes_before_the_old_one_goes(
    opened: Callable[..., Engine], folder: Path, models: FakeModels
) -> None:
    watcher = Watcher()
    engine = opened(model_cache_bytes=250, observer=watcher)
    engine.pin("a")
    models.go.clear()
    publish(folder, "a", 2)
    version_of(engine, "a")
    wait_until(lambda: engine.status("a").state == "loading")
    assert engine.stats().models_resident == 1
    assert watcher.evicted == []
    models.go.set()
    wait_until(lambda: watcher.evicted == [("a", "replaced")])
    assert engine.status("a").state == "resident"


def test_a_pinned_model_that_goes_back_to_the_version_before(
    opened: Callable[..., Engine], folder: Path, models: FakeModels
) -> None:
    engine = opened()
    engine.pin("a")
    running = HeldUp(engine, "a")
    for version in (2, 1):
        publish(folder, "a", version)
        expected = version_of(engine, "a")
        wait_until(lambda: engine.status("a").state == "resident")
    running.go()
    assert running.stream.finish().events[-1].model_version == expected
    wait_until(lambda: engine.stats().models_resident == 1)
    assert models.loaded == ["a", "a"]
    assert engine.generate("a", "x", PARAMS).model_version == expected


def test_a_pin_outlives_a_deletion(
    opened: Callable[..., Engine], folder: Path, models: FakeModels
) -> None:
    engine = opened(model_cache_bytes=250)
    engine.pin("a")
    shutil.rmtree(folder / "a")
    with pytest.raises(ModelNotFound):
        engine.describe("a")
    wait_until(lambda: engine.stats().models_resident == 0)
    publish(folder, "a", 2)
    for model in "abcbc":
        engine.generate(model, "x", PARAMS)
    status = engine.status("a")
    assert (status.state, status.pinned) == ("resident", True)


def test_without_room_for_both_the_old_version_goes_first(
    opened: Callable[..., Engine], folder: Path, models: FakeModels
) -> None:
    watcher = Watcher()
    engine = opened(model_cache_bytes=150, observer=watcher)
    engine.pin("a")
    running = HeldUp(engine, "a")
    publish(folder, "a", 2)
    new = version_of(engine, "a")
    wait_until(lambda: engine.status("a").old_versions == 1)
    assert models.loaded.count("a") == 1
    running.go()
    running.stream.finish()
    wait_until(lambda: engine.status("a").state == "resident")
    assert watcher.evicted == [("a", "replaced")]
    assert engine.status("a").pinned
    assert engine.generate("a", "x", PARAMS).model_version == new
    assert_idle(engine)


def test_a_load_that_fails_pins_nothing(opened: Callable[..., Engine], models: FakeModels) -> None:
    engine = opened(load_retry_min=0.0)
    models.errors = [CorruptPackage("broken")]
    with pytest.raises(ModelLoadFailed, match="broken"):
        engine.pin("a")
    assert not engine.status("a").pinned
    engine.generate("a", "x", PARAMS)
    assert not engine.status("a").pinned


def test_a_server_whose_model_cannot_be_loaded_at_start_does_not_start(
    opened: Callable[..., Engine], models: FakeModels
) -> None:
    models.errors = [CorruptPackage("broken")]
    with pytest.raises(ModelLoadFailed, match="broken"):
        opened(preload=("a",))
    with pytest.raises(ModelNotFound):
        opened(pin=("never",))
    with pytest.raises(ModelTooLarge):
        opened(model_cache_bytes=150, pin=("a", "b"))
    engine = opened(preload=("a",), pin=("b",))
    states = {s.id: (s.state, s.pinned) for s in engine.list_models()}
    assert states == {"a": ("resident", False), "b": ("resident", True), "c": ("cold", False)}
