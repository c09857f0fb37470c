"""The whole engine, threads and all, around a fake model: what must hold without a real one."""

from __future__ import annotations

import asyncio
import itertools
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gpt2serve import Engine, SamplingParams
from gpt2serve.engine import loader
from gpt2serve.engine.events import Generation, PromptTokens, TokenEvent
from gpt2serve.engine.kv_buffers import bytes_per_token
from gpt2serve.engine.loader import LoadResult
from gpt2serve.engine.messages import Call, Submit
from gpt2serve.engine.request import Request
from gpt2serve.errors import (
    CorruptPackage,
    EngineClosed,
    InvalidRequest,
    ModelLoadFailed,
    ModelTooLarge,
    Overloaded,
    RequestAborted,
    SettingsError,
    StepFailed,
)
from gpt2serve.package import MANIFEST_FILE, TOKENIZER_FILE, GenerationDefaults
from tests.engine_fakes import (
    DIMENSIONS,
    EOS,
    PATIENCE,
    FakeModels,
    FakeRunner,
    letters_tokenizer,
    make_request,
    write_package,
)
from tests.unit.model_life import publish
from tests.waiting import wait_until

MIB = 2**20
TOKENIZER = {TOKENIZER_FILE: letters_tokenizer()}


class Gate(FakeRunner):
    """A model whose steps wait until the test lets them through."""

    def __init__(self) -> None:
        super().__init__()
        self.open = threading.Event()
        self.reached = threading.Event()

    def _count(self) -> None:
        self.reached.set()
        assert self.open.wait(PATIENCE)
        super()._count()


def in_thread(function: Callable[[], Any]) -> tuple[threading.Thread, list[Any]]:
    """Run `function` beside the test; the list gets what it returned or raised."""
    outcome: list[Any] = []

    def work() -> None:
        try:
            outcome.append(function())
        except Exception as error:
            outcome.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread, outcome


def outcome_of(function: Callable[[], Any], timeout: float = PATIENCE) -> Any:
    """What `function` returned or raised; fails if it never came back."""
    thread, outcome = in_thread(function)
    thread.join(timeout)
    assert not thread.is_alive(), "somebody waits for ever"
    return outcome[0]


# -- life -------------------------------------------------------------------------------------


def test_generates(folder: Path, opened: Callable[..., Engine], models: FakeModels) -> None:
    publish(folder, "org/d")
    engine = opened()
    params = SamplingParams(seed=3, max_new_tokens=8, do_sample=True, num_return_sequences=2)
    result = engine.generate("org/d", "hello", params)
    assert result.model == "org/d"
    assert result.usage.prompt_tokens == 5
    assert [generation.index for generation in result.generations] == [0, 1]
    assert all(generation.text.startswith("hello") for generation in result.generations)
    assert engine.generate("org/d", "hello", params).generations == result.generations
    assert models.loaded == ["org/d"]
    stats = engine.stats()
    assert (stats.requests_running, stats.requests_waiting, stats.kv_cache_used_bytes) == (0, 0, 0)


def test_each_sequences_seed_makes_it_again_alone(opened: Callable[..., Engine]) -> None:
    engine = opened()
    many = engine.generate(
        "a", "hi", SamplingParams(seed=11, max_new_tokens=9, do_sample=True, num_return_sequences=4)
    )
    for generation in many.generations:
        alone = engine.generate(
            "a", "hi", SamplingParams(seed=generation.seed, max_new_tokens=9, do_sample=True)
        )
        assert alone.generations[0].text == generation.text


def test_close_is_idempotent_and_final(opened: Callable[..., Engine]) -> None:
    engine = opened()
    engine.close()
    engine.close()
    assert isinstance(outcome_of(lambda: engine.generate("a", "x")), EngineClosed)
    with pytest.raises(EngineClosed):
        engine.start()


def test_close_while_it_starts(
    opened: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = opened(preload=("a",), start=False)
    entered, go_on, start = threading.Event(), threading.Event(), engine._core.start

    def slow_start() -> None:
        entered.set()
        assert go_on.wait(PATIENCE)
        start()

    monkeypatch.setattr(engine._core, "start", slow_start)
    starting, started = in_thread(engine.start)
    assert entered.wait(PATIENCE)
    closing, closed = in_thread(engine.close)
    closing.join(0.05)  # it may not go past what has begun only half
    go_on.set()
    for thread in (starting, closing):
        thread.join(PATIENCE)
        assert not thread.is_alive()
    assert closed == [None]
    assert started[0] is None or isinstance(started[0], EngineClosed)


def test_loading_without_a_running_engine_is_an_error(opened: Callable[..., Engine]) -> None:
    # Nobody would ever answer.
    engine = opened(start=False)
    assert isinstance(outcome_of(lambda: engine.load("a"), 3), EngineClosed)
    engine.start()
    engine.load("a")
    engine.close()
    assert isinstance(outcome_of(lambda: engine.load("a"), 3), EngineClosed)


def test_close_ends_everyone_running_or_waiting(
    opened: Callable[..., Engine], models: FakeModels
) -> None:
    # "a" runs and fills the cache; "b" waits for room that the abort of "a" makes.
    engine = opened(model_cache_bytes=120)
    gate = Gate()
    models.make = lambda _: gate
    engine.start()
    requests = [in_thread(lambda model=model: engine.generate(model, "x")) for model in "aabc"]
    assert gate.reached.wait(PATIENCE)
    wait_until(lambda: engine.stats().requests_waiting >= 0 and engine._gate.admitted == 4)
    closing, _ = in_thread(engine.close)
    gate.open.set()
    for thread, outcome in requests:
        thread.join(PATIENCE)
        assert outcome, "a request never ended"
    closing.join(PATIENCE)
    assert not closing.is_alive()
    ends = [outcome[0] for _, outcome in requests]
    assert all(not isinstance(end, Exception) or isinstance(end, EngineClosed) for end in ends)
    assert isinstance(ends[2], EngineClosed)
    assert engine._gate.admitted == 0


def test_a_request_that_races_with_close_still_ends(
    opened: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    from gpt2serve.engine import engine as module

    engine = opened()
    prepared = engine.prepare("a", "x", SamplingParams(max_new_tokens=3))

    class Slow(module.Request):
        """Between being admitted and being handed over, the engine closes."""

        def become(self, *arguments: Any) -> None:
            # From another thread, and only as long as a lock may hold it up.
            in_thread(engine.close)[0].join(0.5)
            super().become(*arguments)

    monkeypatch.setattr(module, "Request", Slow)

    async def scenario() -> None:
        with pytest.raises(EngineClosed):
            await asyncio.wait_for(engine.submit(prepared, wants_tokens=False).result(), 5)

    asyncio.run(scenario())


def test_a_caller_whose_loop_is_gone_does_not_stop_the_engine(
    opened: Callable[..., Engine],
) -> None:
    engine = opened()
    hold = threading.Event()
    engine._core.inbox.put(Call(lambda: hold.wait(PATIENCE)))
    assert asyncio.run(engine.ping(0.01)) is False
    hold.set()
    assert asyncio.run(engine.ping(PATIENCE)) is True


def test_a_stuck_engine_thread_shows(opened: Callable[..., Engine]) -> None:
    """In numbers that keep growing although the thread that knows them is stuck."""
    engine = opened(start=False)
    assert engine.stats().unresponsive == 0
    assert engine.stats().requests_limit == engine.settings.max_queue
    assert not engine.takes_requests
    engine.start()
    assert engine.takes_requests
    hold = threading.Event()
    engine._core.inbox.put(Call(lambda: hold.wait(PATIENCE)))
    wait_until(lambda: engine.stats().unresponsive > 0.3)
    hold.set()
    wait_until(lambda: engine.stats().unresponsive == 0)
    engine.close()
    assert engine.stats().unresponsive == 0
    assert not engine.takes_requests


def test_a_stuck_load_shows_while_nothing_else_happens(
    opened: Callable[..., Engine], models: FakeModels
) -> None:
    engine = opened()
    may_load = threading.Event()
    models.make = lambda _: FakeRunner() if may_load.wait(PATIENCE) else None
    thread, _ = in_thread(lambda: engine.generate("a", "x", SamplingParams(max_new_tokens=2)))
    wait_until(lambda: engine.stats().oldest_load_wait > 0.3)
    assert engine.stats().unresponsive == 0, "the engine thread is idle"
    may_load.set()
    thread.join(PATIENCE)
    assert engine.stats().oldest_load_wait == 0


def test_drain(opened: Callable[..., Engine], models: FakeModels) -> None:
    engine = opened()
    gate = Gate()
    models.make = lambda _: gate
    engine.start()
    thread, outcome = in_thread(lambda: engine.generate("a", "x", SamplingParams(max_new_tokens=2)))
    assert gate.reached.wait(PATIENCE)
    assert asyncio.run(engine.drain(0.05)) is False
    with pytest.raises(EngineClosed):
        engine.generate("a", "y")
    gate.open.set()
    assert asyncio.run(engine.drain(PATIENCE)) is True
    thread.join(PATIENCE)
    assert not isinstance(outcome[0], Exception)


# -- admission --------------------------------------------------------------------------------


def test_the_queue_is_bounded_and_its_places_come_back(
    opened: Callable[..., Engine], models: FakeModels
) -> None:
    engine = opened(max_queue=2)
    gate = Gate()
    models.make = lambda _: gate
    engine.start()
    requests = [in_thread(lambda: engine.generate("a", "x")) for _ in range(2)]
    wait_until(lambda: engine._gate.admitted == 2)
    with pytest.raises(Overloaded) as caught:
        engine.generate("a", "x")
    assert caught.value.retry_after > 0
    gate.open.set()
    for thread, outcome in requests:
        thread.join(PATIENCE)
        assert not isinstance(outcome[0], Exception)
    engine.generate("a", "x")


@pytest.mark.parametrize(
    ("prompt", "params", "field"),
    [
        ("x" * 64, {}, "prompt"),
        ("x" * (64 * 128 + 1), {}, "prompt"),
        ("\ud800", {}, "prompt"),
        ("x", {"temperature": -1}, "temperature"),
        ("x", {"num_return_sequences": 33}, "num_return_sequences"),
        ("x" * 60, {"max_new_tokens": 5}, "max_new_tokens"),
    ],
)
def test_what_cannot_be_is_refused_before_it_is_queued(
    opened: Callable[..., Engine], prompt: str, params: dict[str, Any], field: str
) -> None:
    engine = opened()
    with pytest.raises(InvalidRequest) as caught:
        engine.generate("a", prompt, SamplingParams(**params))
    assert caught.value.field == field
    assert engine._gate.admitted == 0


def test_a_request_that_never_fits_into_the_kv_cache(opened: Callable[..., Engine]) -> None:
    engine = opened(kv_cache_bytes=16 * (128 + 64))
    with pytest.raises(ModelTooLarge, match="--kv-cache-bytes"):
        engine.generate("a", "x", SamplingParams(num_return_sequences=2, do_sample=True))
    engine.generate("a", "x")


@pytest.mark.parametrize(("slots", "together"), [(17, 16), (16, 8), (9, 8), (3, 2), (2, 1)])
def test_where_there_is_less_room_fewer_places_are_scored_together(
    opened: Callable[..., Engine], slots: int, together: int
) -> None:
    roomy, tight = opened(), opened(kv_cache_bytes=16 * (128 * slots + 64))
    params = SamplingParams(prompt_logprobs=True, max_new_tokens=3, seed=1, do_sample=True)
    prompt = "some words of a prompt"
    prepared = tight.prepare("a", prompt, params)
    assert prepared.scored_together == together
    result = tight.generate("a", prompt, params)
    assert result.prompt_tokens is not None
    assert [token.id for token in result.prompt_tokens] == prepared.prompt_ids
    assert result.prompt_tokens == roomy.generate("a", prompt, params).prompt_tokens


def test_a_prompt_that_cannot_be_scored_for_want_of_room(opened: Callable[..., Engine]) -> None:
    engine = opened(kv_cache_bytes=16 * (128 + 64))
    with pytest.raises(ModelTooLarge, match="--kv-cache-bytes"):
        engine.generate("a", "x", SamplingParams(prompt_logprobs=True))


# -- prompts ----------------------------------------------------------------------------------


def test_token_ids_say_what_their_text_says(opened: Callable[..., Engine]) -> None:
    engine = opened()
    params = SamplingParams(seed=3, max_new_tokens=8, do_sample=True)
    ids = engine.prepare("a", "hello").prompt_ids
    by_text, by_ids = (engine.generate("a", prompt, params) for prompt in ("hello", ids))
    assert by_ids.generations == by_text.generations
    assert by_ids.generations[0].text.startswith("hello")
    assert engine.prepare("a", ids).text_of(ids[1:3]) == "el"


def test_a_truncated_prompt_is_read_in_part_and_returned_whole(
    opened: Callable[..., Engine],
) -> None:
    engine = opened()
    params = SamplingParams(seed=3, max_new_tokens=8, do_sample=True, truncate=2)
    (whole,) = engine.generate("a", "hello", params).generations
    (part,) = engine.generate("a", "lo", params).generations
    assert whole.text == "hel" + part.text
    assert engine.generate("a", "x" * 100, params).usage.prompt_tokens == 2


def test_a_stream_tells_scores_first_whom_it_is_for_and_how_far_it_is(
    opened: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = opened()
    submitted: list[Submit] = []
    handle = engine._core._handlers[Submit]
    monkeypatch.setitem(
        engine._core._handlers, Submit, lambda message: submitted.append(message) or handle(message)
    )

    async def scenario() -> None:
        params = SamplingParams(prompt_logprobs=True, max_new_tokens=3, ignore_eos=True)
        stream = engine.submit(engine.prepare("a", "hello", params), wants_tokens=True, owner="me")
        await asyncio.wait_for(stream.started(), PATIENCE)
        begun = stream.timing()
        events = [event async for event in stream.events()]
        assert isinstance(events[0], PromptTokens)
        assert [type(event) for event in events[1:]] == [TokenEvent] * 3 + [Generation]
        assert (begun.queue_ms, begun.load_ms) == (stream.timing().queue_ms, begun.load_ms)
        assert stream.timing() == stream.timing()

    asyncio.run(scenario())
    assert [message.request.owner for message in submitted] == ["me"]


def test_prefix_and_empty_prompt(folder: Path, opened: Callable[..., Engine]) -> None:
    prefixed = GenerationDefaults(prefix="ab", max_length=6)
    write_package(folder, "prefixed", files=TOKENIZER, defaults=prefixed)
    engine = opened()
    prepared = engine.prepare("prefixed", "cd")
    assert prepared.prompt_ids == [2, 3, 4, 5]
    assert prepared.params.max_tokens == 4  # the prefix is not counted
    assert engine.prepare("a", "").prompt_ids == [EOS]
    assert engine.prepare("prefixed", "").prompt_ids == [2, 3]


# -- models -----------------------------------------------------------------------------------


def test_one_load_for_all_who_wait(opened: Callable[..., Engine], models: FakeModels) -> None:
    hold = threading.Event()

    def slow(_: str) -> FakeRunner:
        assert hold.wait(PATIENCE)
        return FakeRunner()

    models.make = slow
    engine = opened()
    requests = [in_thread(lambda: engine.generate("a", "x")) for _ in range(5)]
    wait_until(lambda: engine._gate.admitted == 5)
    hold.set()
    for thread, outcome in requests:
        thread.join(PATIENCE)
        assert not isinstance(outcome[0], Exception)
    assert models.loaded == ["a"]


def test_a_failed_load_ends_all_who_wait_and_is_forgotten_in_time(
    opened: Callable[..., Engine], models: FakeModels
) -> None:
    def broken(_: str) -> Any:
        raise CorruptPackage("truncated")

    models.make = broken
    engine = opened(load_retry_min=0.05, load_retry_max=0.1)
    first = outcome_of(lambda: engine.generate("a", "x"))
    assert isinstance(first, ModelLoadFailed)
    assert "truncated" in str(first)
    assert first.retry_after is not None
    models.make = lambda _: FakeRunner()
    time.sleep(0.2)
    assert not isinstance(outcome_of(lambda: engine.generate("a", "x")), Exception)
    assert engine._gate.admitted == 0


def test_a_broken_step_ends_its_batch_only(
    opened: Callable[..., Engine], models: FakeModels
) -> None:
    def make(model: str) -> FakeRunner:
        runner = FakeRunner()
        if model == "a":
            runner.fail_at = {2}
        return runner

    models.make = make
    engine = opened()
    params = SamplingParams(max_new_tokens=6, do_sample=True, seed=1)
    other, outcome = in_thread(lambda: engine.generate("b", "x", params))
    failed = outcome_of(lambda: engine.generate("a", "x", params))
    other.join(PATIENCE)
    assert isinstance(failed, StepFailed)
    assert not isinstance(outcome[0], Exception)
    # The model itself goes on, with nothing left over from before.
    assert engine.generate("a", "x", params).generations == outcome[0].generations
    assert engine.stats().kv_cache_used_bytes == 0


def test_models_that_measure_more_than_predicted_do_not_stop_the_engine(
    opened: Callable[..., Engine], models: FakeModels, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = iter(range(0, 10**6, 200))
    monkeypatch.setattr(loader, "heap_in_use", lambda: next(memory))
    engine = opened(model_cache_bytes=250)
    for model in "abcabc":
        result = outcome_of(lambda model=model: engine.generate(model, "x"))
        assert not isinstance(result, Exception), result
    wait_until(lambda: engine.stats().model_cache_used_bytes <= 250)
    assert asyncio.run(engine.ping(PATIENCE))


def test_cancelling_while_the_model_loads(
    opened: Callable[..., Engine], models: FakeModels
) -> None:
    hold = threading.Event()

    def slow(_: str) -> FakeRunner:
        assert hold.wait(PATIENCE)
        return FakeRunner()

    models.make = slow
    engine = opened()

    async def scenario() -> None:
        prepared = engine.prepare("a", "x", SamplingParams(max_new_tokens=3))
        one = engine.submit(prepared, wants_tokens=False)
        two = engine.submit(prepared, wants_tokens=False)
        one.cancel()
        one.cancel()
        with pytest.raises(RequestAborted):
            await asyncio.wait_for(one.result(), PATIENCE)
        hold.set()  # the load goes on for the other one
        await asyncio.wait_for(two.result(), PATIENCE)

    asyncio.run(scenario())
    assert models.loaded == ["a"]
    assert engine._gate.admitted == 0


def test_a_cancelled_wait_makes_room_for_the_next_at_once(
    folder: Path, opened: Callable[..., Engine], models: FakeModels
) -> None:
    class Slow(FakeRunner):
        def _count(self) -> None:
            time.sleep(0.02)
            super()._count()

    write_package(folder, "large", files=TOKENIZER, bytes_needed=900)
    models.make = lambda model: Slow() if model == "a" else FakeRunner()
    # "a" measures at least half of what was predicted, so "large" waits and "b" would fit.
    engine = opened(model_cache_bytes=940)
    long = SamplingParams(min_new_tokens=60, max_new_tokens=60)
    running, _ = in_thread(lambda: engine.generate("a", "x", long))
    wait_until(lambda: engine.stats().sequences_running == 1)

    async def scenario() -> None:
        short = SamplingParams(max_new_tokens=1)
        large = engine.submit(engine.prepare("large", "x", short), wants_tokens=False)
        small = engine.submit(engine.prepare("b", "x", short), wants_tokens=False)
        large.cancel()
        await asyncio.wait_for(small.result(), PATIENCE)
        assert running.is_alive(), "it waited until the running request ended"
        with pytest.raises(RequestAborted):
            await large.result()

    asyncio.run(scenario())
    assert models.loaded == ["a", "b"]


def test_preload_and_pin(opened: Callable[..., Engine], models: FakeModels) -> None:
    engine = opened(model_cache_bytes=250, preload=("b",), pin=("a",))
    assert models.loaded == ["a", "b"]
    engine.generate("c", "x")
    engine.generate("b", "x")
    states = {status.id: status.state for status in engine.list_models()}
    assert states["a"] == "resident"


def test_pinning_what_does_not_fit_stops_the_start(opened: Callable[..., Engine]) -> None:
    engine = opened(model_cache_bytes=90, pin=("a",), start=False)
    with pytest.raises(ModelTooLarge):
        engine.start()


# -- listing ----------------------------------------------------------------------------------


def test_pages_of_the_listing_lose_nothing(folder: Path, opened: Callable[..., Engine]) -> None:
    # "-" and "." sort before "/", so organisations and models interleave in awkward ways.
    for model in (
        "org/d",
        "user/x",
        "user-2/x",
        "user.b/x",
        "user-3",
        "usera",
        "User/y",
        "org/b.c",
    ):
        write_package(folder, model, files=TOKENIZER)
    engine = opened()
    everything = [status.id for status in engine.list_models(limit=1000)]
    assert len(everything) == 11
    for size in (1, 2, 3):
        seen: list[str] = []
        while page := engine.list_models(after=seen[-1] if seen else "", limit=size):
            seen += [status.id for status in page]
            assert len(seen) <= len(everything), "a model comes twice"
        assert seen == everything


def test_models_deleted_since_the_last_look_do_not_make_a_page_short(
    folder: Path, opened: Callable[..., Engine]
) -> None:
    engine = opened(store_refresh=1000.0)
    assert [status.id for status in engine.list_models(limit=1)] == ["a"]  # makes the index
    shutil.rmtree(folder / "b")
    a, b = engine.list_models(limit=2)
    assert (a.id, b.id) == ("a", "b")
    assert (b.state, b.bytes) == ("cold", 0)


def test_one_corrupt_package_does_not_hide_the_others(
    folder: Path, opened: Callable[..., Engine]
) -> None:
    publish(folder, "org/d")
    (folder / "b" / "cpu-int8" / MANIFEST_FILE).write_text("{")
    listed = [status.id for status in opened().list_models()]
    assert {"a", "c", "org/d"} <= set(listed)


def test_states(opened: Callable[..., Engine]) -> None:
    engine = opened()
    assert {status.state for status in engine.list_models()} == {"cold"}
    engine.generate("a", "x")
    states = {status.id: (status.state, status.bytes) for status in engine.list_models()}
    assert states["a"] == ("resident", 100)
    assert states["b"] == ("cold", 100)


def test_impossible_combinations_of_settings(folder: Path) -> None:
    with pytest.raises(SettingsError, match="precision"):
        Engine(folder, device="cpu", precision="fp16")
    with pytest.raises(SettingsError):
        Engine()
    with pytest.raises(SettingsError, match="no_such"):
        Engine(folder, no_such=1)


def test_a_busy_model_does_not_keep_the_kv_cache_from_another(
    opened: Callable[..., Engine], models: FakeModels
) -> None:
    # Room for two sequences of "a", or for one long one of "b". "a" never has less than one.
    chunk, patience, ticks = 16, 1.0, itertools.count()
    engine = opened(
        start=False,
        kv_cache_bytes=bytes_per_token(DIMENSIONS, "float32") * (2 * 32 + chunk + 4),
        prefill_chunk=chunk,
        model_max_wait=patience,
        clock=lambda: next(ticks) / 100,  # every look at it takes time, so every step does
    )
    core = engine._core  # its thread is not started: the test goes through the steps itself

    def submit(model: str, tokens: int) -> Request:
        package = engine._store.resolve(model)
        request = make_request([2, 3, 4], package=package, max_tokens=tokens, min_tokens=tokens)
        core._handle(Submit(request))
        if core.models.cache.state(package.key, 0.0) == "loading":
            core._handle(LoadResult(package, 0.0, FakeRunner(), 50))
        return request

    first = submit("a", 20)
    hot = [first, submit("a", 28)]
    core._step()
    cold = submit("b", 60)
    steps = 0
    while not cold.ended:
        if sum(not request.ended for request in hot) < 2:
            hot.append(submit("a", 20))
        core._step()
        core.check_integrity()
        steps += 1
        assert steps < 300, "it would wait for ever"
    assert cold.unfinished == []


def test_who_waits_for_room_that_was_pinned_away_is_told(
    opened: Callable[..., Engine], models: FakeModels
) -> None:
    gate = Gate()
    models.make = lambda model: gate if model == "a" else FakeRunner()
    # The fake takes no memory, so "a" counts with what was predicted: 100.
    engine = opened(model_cache_bytes=120)
    running, _ = in_thread(lambda: engine.generate("a", "abc", SamplingParams(max_new_tokens=2)))
    assert gate.reached.wait(PATIENCE)
    waiting, outcome = in_thread(lambda: engine.generate("b", "abc"))
    pinning, _ = in_thread(lambda: engine.load("a", pin=True))
    time.sleep(0.05)  # both are in the inbox before the step of "a" ends
    gate.open.set()
    for thread in (running, waiting, pinning):
        thread.join(PATIENCE)
        assert not thread.is_alive()
    assert isinstance(outcome[0], ModelTooLarge), outcome
