"""When a model is packed, and who waits for it: the whole engine around a fake model."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gpt2serve import Engine, SamplingParams
from gpt2serve.engine import loader, packer
from gpt2serve.engine.worker import STEPS_WORTH_PACKING
from gpt2serve.package import TOKENIZER_FILE
from tests.engine_driver import Sent, cancel, in_engine_thread, send
from tests.engine_fakes import FakeRunner, letters_tokenizer, write_package
from tests.waiting import wait_until

PATIENCE = 20.0
#: Enough steps, and end-of-text does not come before.
LONG = SamplingParams(max_new_tokens=40, min_new_tokens=40, do_sample=True, seed=1)
SHORT = SamplingParams(max_new_tokens=3, do_sample=True, seed=1)


class Packable(FakeRunner):
    """`pack` waits until the test lets it go, and fails if it is told to."""

    def __init__(self) -> None:
        super().__init__(packed=False)
        self.begun = threading.Event()
        self.go = threading.Event()
        self.fails = False
        self.packs = 0
        #: Steps that were made before the packed form was used.
        self.unpacked_steps: int | None = None

    def pack(self, run: object) -> object:
        self.packs += 1
        self.begun.set()
        assert self.go.wait(PATIENCE)
        if self.fails:
            raise MemoryError("no room")
        return object()

    def use(self, form: object) -> None:
        super().use(form)
        self.unpacked_steps = self.steps


class Models:
    """Stands for `Runner`; keeps what it has loaded, by id."""

    def __init__(self) -> None:
        self.loaded: dict[str, Packable] = {}
        self.prepared: dict[str, Packable] = {}

    def load(self, package: Path, manifest: Any, **_: Any) -> Packable:
        made = self.prepared.pop(manifest.id, None) or Packable()
        made.manifest = manifest
        self.loaded[manifest.id] = made
        return made


@pytest.fixture
def models(monkeypatch: pytest.MonkeyPatch) -> Models:
    made = Models()
    monkeypatch.setattr(loader, "Runner", made)
    monkeypatch.setattr(packer, "heap_in_use", lambda: 0)
    return made


@pytest.fixture
def engine(tmp_path: Path, models: Models) -> Iterator[Engine]:
    for model in ("a", "b", "c"):
        files = {TOKENIZER_FILE: letters_tokenizer()}
        write_package(tmp_path, model, files=files, bytes_needed=100)
    engine = Engine(tmp_path, model_cache_bytes=250, kv_cache_bytes=2**20, device="cpu")
    engine.start()
    yield engine
    for model in models.loaded.values():
        model.go.set()
    engine.close()


def after_begun(engine: Engine, models: Models, model: str = "a") -> tuple[Sent, Packable]:
    """A long request whose model is being packed."""
    sent = send(engine, model, "x", LONG)
    wait_until(lambda: model in models.loaded)
    runner = models.loaded[model]
    assert runner.begun.wait(PATIENCE)
    return sent, runner


def test_the_first_token_does_not_wait_but_the_others_do(engine: Engine, models: Models) -> None:
    """The one model that has work leaves the cores to its packing."""
    sent, runner = after_begun(engine, models)
    wait_until(lambda: sent.stream.token_count == 1)
    in_engine_thread(engine, lambda: None)
    assert sent.stream.token_count == 1
    assert not sent.stream.ended.is_set()
    runner.go.set()
    sent.stream.finish()
    assert runner.unpacked_steps == 1
    assert runner.packs == 1


def test_the_text_is_the_same_as_without(engine: Engine, models: Models) -> None:
    sent, runner = after_begun(engine, models)
    wait_until(lambda: sent.stream.token_count == 1)
    runner.go.set()
    packed_from_the_second_token = sent.stream.finish().outcome(1)
    assert send(engine, "a", "x", LONG).stream.finish().outcome(1) == packed_from_the_second_token


def test_another_request_gets_its_first_token_meanwhile(engine: Engine, models: Models) -> None:
    _, runner = after_begun(engine, models)
    other = send(engine, "a", "y", LONG)
    wait_until(lambda: other.stream.token_count >= 1)
    assert not runner.packed


def test_beside_other_models_an_unpacked_one_goes_on(engine: Engine, models: Models) -> None:
    first, runner = after_begun(engine, models, "a")
    wait_until(lambda: first.stream.token_count == 1)
    # It goes on for longer than the first one, which would wait again if it were alone.
    longer = SamplingParams(max_new_tokens=62, min_new_tokens=62, do_sample=True, seed=1)
    other = send(engine, "b", "x", longer)
    first.stream.finish()
    other.stream.finish()
    # The second one's turn to be packed had not come.
    assert (runner.packs, models.loaded["b"].packs) == (1, 0)


def test_short_requests_are_not_worth_it_until_there_were_many(
    engine: Engine, models: Models
) -> None:
    engine.generate("a", "x", SHORT)
    runner = models.loaded["a"]
    runner.go.set()
    assert (runner.packed, runner.packs) == (False, 0)
    for _ in range(STEPS_WORTH_PACKING):
        engine.generate("a", "xy", SHORT)
    wait_until(lambda: runner.packed)
    assert runner.packs == 1


def test_what_is_loaded_ahead_is_packed_before_it_counts_as_loaded(
    engine: Engine, models: Models
) -> None:
    models.prepared["a"] = ready = Packable()
    ready.go.set()
    engine.load("a")
    assert ready.packed
    assert ready.steps == 0


def test_without_a_packed_form_the_model_goes_on(engine: Engine, models: Models) -> None:
    models.prepared["a"] = runner = Packable()
    runner.fails = True
    runner.go.set()
    send(engine, "a", "x", LONG).stream.finish()
    send(engine, "a", "x", LONG).stream.finish()
    assert runner.packs == 1
    assert runner.unpacked_steps is None


def test_a_model_that_is_being_packed_is_not_evicted(engine: Engine, models: Models) -> None:
    first, runner = after_begun(engine, models, "a")
    wait_until(lambda: first.stream.token_count == 1)
    cancel(engine, first)
    first.stream.wait()
    engine.generate("b", "x", SHORT)
    # There is room for two: "b" goes, although "a" was used before it.
    engine.generate("c", "x", SHORT)
    assert _resident(engine) == {"a", "c"}
    runner.go.set()
    wait_until(lambda: runner.packed)
    engine.generate("b", "x", SHORT)
    assert _resident(engine) == {"b", "c"}


def test_idle_models_let_go_of_their_pages(engine: Engine, models: Models) -> None:
    engine.generate("a", "x", SHORT)
    wait_until(lambda: models.loaded["a"].rested > 0)


def _resident(engine: Engine) -> set[str]:
    return {one.id for one in engine.list_models() if one.state == "resident"}
