"""Models come and go: single flight, leases, least recently used, room, fairness of waiting."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gpt2serve import Engine, SamplingParams
from gpt2serve.engine.runner import Runner
from gpt2serve.errors import ModelTooLarge, RequestAborted
from tests.engine_driver import (
    JEFFERSON,
    REAGAN,
    WASHINGTON,
    Watcher,
    assert_idle,
    cancel,
    in_engine_thread,
    kv_bytes,
    open_engine,
    send,
)
from tests.waiting import wait_until

SHORT = SamplingParams(max_new_tokens=4, min_new_tokens=4, seed=3)
LONG = SamplingParams(max_new_tokens=240, min_new_tokens=240, seed=3)
PROMPT = "The people"


@pytest.fixture(autouse=True)
def exact_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Models this small measure anything; here each takes what was predicted."""
    monkeypatch.setattr("gpt2serve.engine.packer.counted", lambda _, predicted: predicted)


@pytest.fixture(scope="module")
def size(sample_store: Path) -> int:
    with open_engine(sample_store) as engine:
        sizes = {engine.describe(m).bytes_needed for m in (REAGAN, JEFFERSON, WASHINGTON)}
    (size,) = sizes
    return size


class SlowLoads:
    """Loads wait until they are let go; counts those that began."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.began: list[str] = []
        self.go = threading.Event()
        original = Runner.load.__func__  # type: ignore[attr-defined]

        def load(cls: type[Runner], package: Path, manifest: Any, **options: Any) -> Runner:
            self.began.append(manifest.id)
            assert self.go.wait(20)
            return original(cls, package, manifest, **options)

        monkeypatch.setattr(Runner, "load", classmethod(load))


def resident(engine: Engine) -> set[str]:
    return {status.id for status in engine.list_models() if status.state == "resident"}


def test_eight_cold_requests_are_one_load(
    sample_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = SlowLoads(monkeypatch)
    with open_engine(sample_store) as engine:
        sent = [send(engine, REAGAN, PROMPT, SHORT) for _ in range(8)]
        wait_until(lambda: bool(slow.began))
        # Waiters that give up take nothing from the others, be it the first one.
        for one in (sent[0], sent[3]):
            cancel(engine, one)
            assert isinstance(one.stream.wait().error, RequestAborted)
        slow.go.set()
        for one in sent[1:3] + sent[4:]:
            one.stream.finish()
        assert slow.began == [REAGAN]
        assert_idle(engine)


def test_a_load_that_nobody_waits_for_any_more_is_kept(
    sample_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = SlowLoads(monkeypatch)
    with open_engine(sample_store) as engine:
        one = send(engine, REAGAN, PROMPT, SHORT)
        wait_until(lambda: bool(slow.began))
        cancel(engine, one)
        one.stream.wait()
        slow.go.set()
        wait_until(lambda: resident(engine) == {REAGAN})
        engine.generate(REAGAN, PROMPT, SHORT)
        assert slow.began == [REAGAN]
        assert_idle(engine)


def test_a_load_does_not_stop_others_from_decoding(
    sample_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_engine(sample_store) as engine:
        engine.load(JEFFERSON)
        slow = SlowLoads(monkeypatch)
        cold = send(engine, REAGAN, PROMPT, SHORT)
        wait_until(lambda: bool(slow.began))
        engine.generate(JEFFERSON, PROMPT, LONG)
        assert not cold.stream.ended.is_set()
        slow.go.set()
        cold.stream.finish()


def test_the_least_recently_used_goes_first(sample_store: Path, size: int) -> None:
    with open_engine(sample_store, model_cache_bytes=int(2.5 * size)) as engine:
        for model in (REAGAN, JEFFERSON, REAGAN):
            engine.generate(model, PROMPT, SHORT)
        engine.generate(WASHINGTON, PROMPT, SHORT)
        assert resident(engine) == {REAGAN, WASHINGTON}
        engine.generate(JEFFERSON, PROMPT, SHORT)
        assert resident(engine) == {WASHINGTON, JEFFERSON}
        assert_idle(engine)


def test_what_is_used_or_waited_for_is_never_evicted(sample_store: Path, size: int) -> None:
    """Room for two: one decodes, one has a request that waits for KV cache, a third waits."""
    tight = {"model_cache_bytes": int(2.5 * size), "kv_cache_bytes": kv_bytes(1, 256, 140)}
    with open_engine(sample_store, model_max_wait=1000.0, **tight) as engine:
        first = send(engine, REAGAN, PROMPT, LONG)
        wait_until(lambda: first.stream.token_count > 0)
        second = send(engine, JEFFERSON, PROMPT, LONG)
        wait_until(lambda: resident(engine) == {REAGAN, JEFFERSON})
        third = send(engine, WASHINGTON, PROMPT, SHORT)
        wait_until(lambda: engine.stats().requests_waiting == 2)
        assert resident(engine) == {REAGAN, JEFFERSON}
        assert engine.stats().oldest_load_wait >= 0
        for one in (first, second, third):
            one.stream.finish()
        assert first.stream.ended_at < third.stream.ended_at
        assert_idle(engine)


def test_a_model_larger_than_the_budget_fails_at_once(sample_store: Path, size: int) -> None:
    """And evicts nothing: fp32 does not fit where int8 does."""
    with open_engine(sample_store, precision="fp32") as engine:
        large = engine.describe(REAGAN).bytes_needed
    assert large > 2 * size
    watcher = Watcher()
    for budget in (size - 1, size // 2):
        with (
            open_engine(sample_store, model_cache_bytes=budget, observer=watcher) as engine,
            pytest.raises(ModelTooLarge, match="model-cache-bytes"),
        ):
            engine.generate(REAGAN, PROMPT, SHORT)
    # Beside a pinned model there is room for none.
    with open_engine(
        sample_store, model_cache_bytes=int(1.5 * size), pin=(REAGAN,), observer=watcher
    ) as engine:
        with pytest.raises(ModelTooLarge):
            engine.generate(JEFFERSON, PROMPT, SHORT)
        assert resident(engine) == {REAGAN}
        assert_idle(engine)
    assert watcher.loads == [True]
    assert not watcher.evicted


def test_a_request_larger_than_the_kv_cache_fails_at_once(sample_store: Path) -> None:
    with open_engine(sample_store, kv_cache_bytes=kv_bytes(2, 64, 128)) as engine:
        with pytest.raises(ModelTooLarge, match="kv-cache-bytes"):
            engine.generate(REAGAN, PROMPT, LONG)
        engine.generate(REAGAN, PROMPT, SHORT)


def test_two_hot_models_and_room_for_one(sample_store: Path, size: int) -> None:
    """A B A B: nobody starves, and the longest wait is bounded by `model_max_wait`."""
    wait = 0.3
    waits: dict[str, float] = {REAGAN: 0.0, JEFFERSON: 0.0}
    rounds: dict[str, int] = {REAGAN: 0, JEFFERSON: 0}
    watcher = Watcher()
    with open_engine(
        sample_store,
        model_cache_bytes=int(1.3 * size),
        model_max_wait=wait,
        max_batch_size=4,
        observer=watcher,
    ) as engine:
        stop = time.monotonic() + 2.0

        def client(model: str) -> None:
            while time.monotonic() < stop:
                began = time.monotonic()
                engine.generate(model, PROMPT, SHORT)
                waits[model] = max(waits[model], time.monotonic() - began)
                rounds[model] += 1

        # Three clients a model keep it leased all the time.
        run_all([lambda m=model: client(m) for model in waits for _ in range(3)])  # type: ignore[misc]
        assert_idle(engine)
    assert all(count > 3 for count in rounds.values()), rounds
    # The wait, what runs already, the load; generous, as machines are busy.
    assert max(waits.values()) < wait + 3.0, waits
    # Grouped by model, not a swap for each request.
    assert len(watcher.evicted) < sum(rounds.values()) / 3


def run_all(functions: list[Callable[[], object]]) -> None:
    problems: list[BaseException] = []

    def run(function: Callable[[], object]) -> None:
        try:
            function()
        except BaseException as error:
            problems.append(error)

    threads = [threading.Thread(target=run, args=(f,), daemon=True) for f in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(40)
        assert not thread.is_alive(), "waits for ever"
    assert not problems, problems


def test_a_blocked_model_that_is_given_up_lets_the_others_go_on(
    sample_store: Path, size: int
) -> None:
    """B waits for room too long, so A's new requests are held back; then B's client leaves."""
    options = {"model_cache_bytes": int(1.3 * size), "model_max_wait": 0.0}
    with open_engine(sample_store, **options) as engine:
        running = send(engine, REAGAN, PROMPT, LONG)
        wait_until(lambda: running.stream.token_count > 0)
        blocked = send(engine, JEFFERSON, PROMPT, SHORT)
        held_back = send(engine, REAGAN, PROMPT, SHORT)
        wait_until(
            lambda: in_engine_thread(engine, lambda: len(engine._core.models._held_back)) == 1
        )
        cancel(engine, blocked)
        held_back.stream.finish()
        assert not running.stream.ended.is_set(), "it waited for what it had no need to wait for"
        cancel(engine, running)
        running.stream.wait()
        assert_idle(engine)
