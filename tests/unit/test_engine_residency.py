"""How models come, go, change and are steered: the whole engine around a fake model."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from gpt2serve import Engine, SamplingParams
from gpt2serve.engine import core as core_module
from gpt2serve.engine import loader
from gpt2serve.engine.fetcher import FETCHES, size_of
from gpt2serve.engine.messages import Ask
from gpt2serve.engine.status import ModelStatus
from gpt2serve.engine.store import ModelStore, Package
from gpt2serve.engine.worker import ModelWorker
from gpt2serve.errors import (
    CorruptPackage,
    EngineClosed,
    InvalidRequest,
    ModelLoadFailed,
    ModelNotFound,
    ModelTooLarge,
    NotOnDisk,
    PackageReplaced,
    RequestAborted,
    StoreUnavailable,
)
from gpt2serve.package import TOKENIZER_FILE, WEIGHTS_FILE, ModelCard
from tests.engine_driver import (
    Watcher,
    assert_idle,
    cancel,
    in_engine_thread,
    send,
    send_prepared,
)
from tests.engine_fakes import FakeRunner, letters_tokenizer, write_package
from tests.waiting import wait_until

PATIENCE = 8.0
PARAMS = SamplingParams(max_new_tokens=3, do_sample=True, seed=1)


class HeldUp:
    """A request whose model makes no step until `go`; the engine goes on meanwhile."""

    def __init__(self, engine: Engine, model: str) -> None:
        self._engine = engine
        self._going = False
        engine.generate(model, "x", PARAMS)
        in_engine_thread(engine, lambda: self._hold(engine._core.models.workers, model))
        self.stream = send(engine, model, "x", PARAMS).stream
        wait_until(lambda: engine.status(model).leases == 1)

    def _hold(self, workers: dict[str, ModelWorker], model: str) -> None:
        (worker,) = (w for key, w in workers.items() if key.startswith(f"{model}/"))
        step = worker.step
        worker.step = lambda: step() if self._going else False  # type: ignore[method-assign]

    def go(self) -> None:
        def go() -> None:
            self._going = True

        in_engine_thread(self._engine, go)


class Models:
    """Stands for `Runner`; keeps the ids of what it has loaded."""

    def __init__(self) -> None:
        self.loaded: list[str] = []
        self.errors: list[Exception] = []
        self.go = threading.Event()
        self.go.set()

    def load(self, package: Path, manifest: Any, **_: Any) -> FakeRunner:
        assert self.go.wait(PATIENCE)
        if self.errors:
            raise self.errors.pop(0)
        made = FakeRunner()
        made.manifest = manifest
        self.loaded.append(manifest.id)
        return made


@pytest.fixture
def models(monkeypatch: pytest.MonkeyPatch) -> Models:
    made = Models()
    monkeypatch.setattr(loader, "Runner", made)
    monkeypatch.setattr(loader, "heap_in_use", lambda: 0)
    return made


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for model in ("a", "b", "c"):
        publish(tmp_path, model)
    return tmp_path


@pytest.fixture
def opened(folder: Path, models: Models) -> Iterator[Callable[..., Engine]]:
    engines: list[Engine] = []

    def make(*, start: bool = True, **options: Any) -> Engine:
        room = {"model_cache_bytes": 1000, "kv_cache_bytes": 2**20, "device": "cpu"}
        engine = Engine(folder, **(room | {"store_refresh": 0.0} | options))
        engine._warm_up = lambda: None  # type: ignore[method-assign]
        engines.append(engine)
        if start:
            engine.start()
        return engine

    yield make
    models.go.set()
    for engine in engines:
        engine.close()


def publish(folder: Path, model: str, version: int = 1, size: int = 100) -> None:
    """A package whose weights say which version they are."""
    files = {TOKENIZER_FILE: letters_tokenizer(), WEIGHTS_FILE: f"{model} {version}".encode()}
    # As an exporter does it: new files take the place of the old ones.
    shutil.rmtree(folder / model, ignore_errors=True)
    write_package(folder, model, files=files, bytes_needed=size)


def version_of(engine: Engine, model: str) -> str:
    return engine.describe(model).version


# -- packages that must be fetched -----------------------------------------------------------


class Far:
    """Makes a store one whose packages are not on the disk; its network does what a test says."""

    def __init__(self, store: ModelStore) -> None:
        self._resolve, self._hold = store.resolve, store.hold
        self.fetches: list[str] = []
        self.here: set[str] = set()
        self.errors: list[Exception] = []
        self.go = threading.Event()
        self.go.set()
        store.resolve = self.resolve  # type: ignore[method-assign]
        store.fetch = self.fetch  # type: ignore[method-assign, assignment]
        store.hold = self.hold  # type: ignore[method-assign, assignment]

    def resolve(self, model: str) -> Package:
        package = self._resolve(model)
        return replace(package, local=package.key in self.here)

    def fetch(self, package: Package, progress: Callable[[int, int], None]) -> Package:
        self.fetches.append(package.model)
        progress(3, size_of(package))
        assert self.go.wait(PATIENCE)
        if self.errors:
            raise self.errors.pop(0)
        self.here.add(package.key)
        return replace(package, local=True)

    def hold(self, package: Package) -> Any:
        if package.key not in self.here:
            raise NotOnDisk(package.model)
        return self._hold(package)


def test_what_is_not_on_the_disk_is_fetched_once_and_then_loaded(
    opened: Callable[..., Engine], models: Models
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


def test_a_fetch_holds_up_nobody(opened: Callable[..., Engine], models: Models) -> None:
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
    opened: Callable[..., Engine], folder: Path, models: Models
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
    opened: Callable[..., Engine], models: Models
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
    opened: Callable[..., Engine], models: Models
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
    opened: Callable[..., Engine], models: Models
) -> None:
    engine = opened()
    far = Far(engine._store)
    far.errors = [CorruptPackage("weights differ")]
    with pytest.raises(ModelLoadFailed, match="weights differ"):
        engine.generate("a", "x", PARAMS)
    assert "weights differ" in str(engine.status("a").error)


def test_what_has_gone_from_the_disk_is_fetched_again_once(
    opened: Callable[..., Engine], models: Models
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


def test_closing_ends_who_waits_for_a_fetch(opened: Callable[..., Engine], models: Models) -> None:
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


# -- versions --------------------------------------------------------------------------------


def test_running_requests_end_on_the_old_version_and_new_ones_get_the_new(
    opened: Callable[..., Engine], folder: Path, models: Models
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
    opened: Callable[..., Engine], folder: Path, models: Models
) -> None:
    watcher = Watcher()
    engine = opened(observer=watcher)
    engine.generate("a", "x", PARAMS)
    publish(folder, "a", 2)
    assert engine.list_models()[0].state == "cold"
    wait_until(lambda: watcher.evicted == [("a", "replaced")])
    assert engine.stats().models_resident == 0


def test_what_was_prepared_for_a_version_that_is_gone_is_prepared_again(
    opened: Callable[..., Engine], folder: Path, models: Models
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
    opened: Callable[..., Engine], folder: Path, models: Models
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
    opened: Callable[..., Engine], folder: Path, models: Models
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
    opened: Callable[..., Engine], folder: Path, models: Models
) -> None:
    engine = opened(store_refresh=1000.0)
    version_of(engine, "a")
    publish(folder, "a", 2)
    # For this store the first version is the newest; only the load finds out.
    result = engine.generate("a", "x", PARAMS)
    assert result.model_version == version_of(engine, "a")
    assert models.loaded.count("a") == 1


def test_a_tokenizer_that_was_replaced_under_a_request(
    opened: Callable[..., Engine], folder: Path, models: Models, monkeypatch: pytest.MonkeyPatch
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
    opened: Callable[..., Engine], folder: Path, models: Models
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
    opened: Callable[..., Engine], folder: Path, models: Models
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
    opened: Callable[..., Engine], folder: Path, models: Models
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
    opened: Callable[..., Engine], folder: Path, models: Models
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
    opened: Callable[..., Engine], folder: Path, models: Models
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
    opened: Callable[..., Engine], folder: Path, models: Models
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
    opened: Callable[..., Engine], folder: Path, models: Models
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
    opened: Callable[..., Engine], folder: Path, models: Models
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
    opened: Callable[..., Engine], folder: Path, models: Models
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


def test_a_load_that_fails_pins_nothing(opened: Callable[..., Engine], models: Models) -> None:
    engine = opened(load_retry_min=0.0)
    models.errors = [CorruptPackage("broken")]
    with pytest.raises(ModelLoadFailed, match="broken"):
        engine.pin("a")
    assert not engine.status("a").pinned
    engine.generate("a", "x", PARAMS)
    assert not engine.status("a").pinned


def test_a_server_whose_model_cannot_be_loaded_at_start_does_not_start(
    opened: Callable[..., Engine], models: Models
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


# -- unload ----------------------------------------------------------------------------------


def test_unload_waits_for_requests_and_serves_those_that_come_meanwhile(
    opened: Callable[..., Engine], models: Models
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


def test_unload_takes_the_pin_away(opened: Callable[..., Engine], models: Models) -> None:
    engine = opened()
    engine.pin("a")
    engine.unload("a")
    status = engine.status("a")
    assert (status.state, status.pinned) == ("cold", False)


@pytest.mark.parametrize("again", [Engine.start_load, lambda e, m: e.start_load(m, pin=True)])
def test_the_later_order_counts(
    opened: Callable[..., Engine],
    models: Models,
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
    opened: Callable[..., Engine], folder: Path, models: Models
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


def test_unload_while_it_loads(opened: Callable[..., Engine], models: Models) -> None:
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


def test_orders_to_an_engine_that_is_closed(opened: Callable[..., Engine], models: Models) -> None:
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
    opened: Callable[..., Engine], models: Models
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
    opened: Callable[..., Engine], models: Models
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
    opened: Callable[..., Engine], models: Models, monkeypatch: pytest.MonkeyPatch
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
    opened: Callable[..., Engine], models: Models, monkeypatch: pytest.MonkeyPatch
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
    opened: Callable[..., Engine], models: Models, monkeypatch: pytest.MonkeyPatch
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
    opened: Callable[..., Engine], models: Models, monkeypatch: pytest.MonkeyPatch
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


def test_only_models_that_are_warm(opened: Callable[..., Engine], models: Models) -> None:
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


def test_what_is_reported(opened: Callable[..., Engine], models: Models) -> None:
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
