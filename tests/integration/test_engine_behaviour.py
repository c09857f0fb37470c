"""What a caller sees: sequences, seeds, stop strings, streams, limits, life and end."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from gpt2serve import Engine, Generation, SamplingParams, TokenEvent
from gpt2serve.engine.messages import Call
from gpt2serve.engine.runner import Runner
from gpt2serve.errors import EngineClosed, InvalidRequest, ModelNotFound, Overloaded
from tests.engine_driver import (
    JEFFERSON,
    REAGAN,
    WASHINGTON,
    Sent,
    Watcher,
    assert_idle,
    cancel,
    in_engine_thread,
    open_engine,
    send,
)
from tests.waiting import wait_until

SHORT = SamplingParams(max_new_tokens=5, min_new_tokens=5, seed=3)
LONG = SamplingParams(max_new_tokens=240, min_new_tokens=240, seed=3)
PROMPT = "The people"


@pytest.fixture(scope="module")
def watcher() -> Watcher:
    return Watcher()


@pytest.fixture(scope="module")
def engine(sample_store: Path, watcher: Watcher) -> Iterator[Engine]:
    with open_engine(sample_store, observer=watcher) as engine:
        yield engine


def test_sequences_of_one_prompt_are_prefilled_once(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.load(REAGAN)
    original = Runner.prefill
    rows: list[int] = []

    def counted(self: Runner, batch: Any, prompts: Any, past: int) -> Any:
        rows.append(len(prompts))
        return original(self, batch, prompts, past)

    monkeypatch.setattr(Runner, "prefill", counted)
    params = SamplingParams(num_return_sequences=8, do_sample=True, max_new_tokens=6, seed=1)
    result = engine.generate(REAGAN, PROMPT, params)
    assert rows == [1]
    assert len({generation.text for generation in result.generations}) > 3
    assert result.usage.prompt_tokens == engine.prepare(REAGAN, PROMPT).prompt_tokens
    assert result.usage.completion_tokens == sum(g.tokens for g in result.generations)


def test_each_sequence_can_be_made_again_from_its_seed(engine: Engine) -> None:
    params = {"do_sample": True, "max_new_tokens": 15}
    result = engine.generate(
        REAGAN, PROMPT, SamplingParams(num_return_sequences=5, seed=77, **params)
    )
    assert result.generations[0].seed == 77
    assert len({generation.seed for generation in result.generations}) == 5
    for generation in result.generations:
        again = SamplingParams(seed=generation.seed, **params)
        assert engine.generate(REAGAN, PROMPT, again).generations[0].text == generation.text


def test_without_a_seed_each_request_gets_its_own(engine: Engine) -> None:
    params = SamplingParams(do_sample=True, max_new_tokens=10)
    seeds = {engine.generate(REAGAN, PROMPT, params).generations[0].seed for _ in range(5)}
    assert len(seeds) == 5


def test_stop_strings_cut_the_text_where_they_begin(engine: Engine) -> None:
    params = {"max_new_tokens": 40, "min_new_tokens": 40, "do_sample": True, "seed": 5}
    full = engine.generate(
        REAGAN, PROMPT, SamplingParams(return_full_text=False, **params)
    ).generations[0]
    assert full.finish_reason == "length"
    for start in (3, 11, 25):
        stop = full.text[start : start + 4]
        cut = engine.generate(
            REAGAN, PROMPT, SamplingParams(return_full_text=False, stop=(stop,), **params)
        ).generations[0]
        assert cut.finish_reason == "stop"
        assert cut.text == full.text[: full.text.index(stop)]
        assert cut.tokens < full.tokens


def test_pieces_of_a_stream_make_up_the_text(engine: Engine) -> None:
    params = SamplingParams(
        num_return_sequences=3, do_sample=True, max_new_tokens=40, seed=9, details=True,
        stop=("the",), return_full_text=False,
    )  # fmt: skip
    events = asyncio.run(_collect(engine, REAGAN, params))
    generations = [event for event in events if isinstance(event, Generation)]
    assert sorted(generation.index for generation in generations) == [0, 1, 2]
    for generation in generations:
        own = [e for e in events if e.index == generation.index]
        assert own[-1] is generation, "something came after a sequence's end"
        tokens = [event.token for event in own if isinstance(event, TokenEvent)]
        assert "".join(token.text for token in tokens) == generation.text
        assert len(tokens) == generation.tokens
        assert generation.details == tuple(tokens)
        assert all(token.logprob <= 0 for token in tokens)
    whole = engine.generate(REAGAN, PROMPT, params)
    assert list(whole.generations) == sorted(generations, key=lambda g: g.index)


async def _collect(engine: Engine, model: str, params: SamplingParams) -> list[Any]:
    return [event async for event in engine.stream(model, PROMPT, params)]


def test_streams_in_two_event_loops(engine: Engine) -> None:
    params = {
        model: SamplingParams(max_new_tokens=20, seed=n)
        for n, model in enumerate((REAGAN, JEFFERSON))
    }
    alone = {m: asyncio.run(_collect(engine, m, params[m])) for m in params}
    got: dict[str, list[Any]] = {}

    def run(model: str) -> None:
        async def several() -> list[Any]:
            return await asyncio.gather(*(_collect(engine, model, params[model]) for _ in range(4)))

        got[model] = asyncio.run(several())

    threads = [threading.Thread(target=run, args=(model,)) for model in params]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    for model, events in alone.items():
        assert got[model] == [events] * 4


def test_leaving_the_loop_cancels(engine: Engine, watcher: Watcher) -> None:
    async def leave() -> None:
        async with aclosing(engine.stream(REAGAN, PROMPT, LONG)) as stream:
            async for _ in stream:
                break
        # The loop lives on, as a server's does; the request must not.
        for _ in range(1000):
            if engine.stats().requests_running == 0 and engine._gate.admitted == 0:
                return
            await asyncio.sleep(0.005)

    watcher.finished.clear()
    asyncio.run(leave())
    wait_until(lambda: len(watcher.finished) == 1)
    assert watcher.finished[0].error == "aborted"
    assert watcher.finished[0].usage.completion_tokens < 240
    assert_idle(engine)


def test_a_cancelled_task_cancels_its_request(engine: Engine, watcher: Watcher) -> None:
    async def leave() -> None:
        task = asyncio.ensure_future(_collect(engine, REAGAN, LONG))
        await asyncio.to_thread(wait_until, lambda: engine.stats().requests_running == 1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.sleep(0.05)

    watcher.finished.clear()
    asyncio.run(leave())
    wait_until(lambda: len(watcher.finished) == 1)
    assert watcher.finished[0].error == "aborted"


def test_a_loop_that_is_closed_is_not_missed(engine: Engine) -> None:
    """A stream is dropped together with its loop; the engine goes on."""

    async def begin() -> Any:
        return engine.submit(engine.prepare(REAGAN, PROMPT, SHORT), wants_tokens=True)

    asyncio.run(begin())
    engine.generate(REAGAN, PROMPT, SHORT)
    wait_until(lambda: engine._gate.admitted == 0)
    assert_idle(engine)


# -- fairness -----------------------------------------------------------------------------------


@pytest.mark.parametrize("sequences", [1, 3])
def test_a_long_prompt_stalls_others_for_one_chunk_at_most(
    sample_store: Path, sequences: int
) -> None:
    watcher = Watcher()
    with open_engine(sample_store, observer=watcher, prefill_chunk=16) as engine:
        hundred = SamplingParams(max_new_tokens=100, min_new_tokens=100)
        running = send(engine, REAGAN, PROMPT, hundred)
        wait_until(lambda: running.stream.token_count > 3)
        watcher.steps.clear()
        params = SamplingParams(
            max_new_tokens=4, num_return_sequences=sequences, do_sample=True, seed=1
        )
        long = send(engine, REAGAN, "peace and commerce " * 60, params)
        short = send(engine, REAGAN, "We", SHORT)
        assert long.request.prompt_length > 8 * 16
        for one in (running, long, short):
            one.stream.finish()
    kinds = [kind for kind, _ in watcher.steps]
    assert kinds.count("prefill") >= 9
    stalls = [n for n in range(1, len(kinds)) if kinds[n] == kinds[n - 1] == "prefill"]
    assert not stalls, kinds
    # Nor does the short prompt wait for the whole of the long one.
    assert short.stream.ended_at < long.stream.ended_at


def test_models_take_turns(sample_store: Path) -> None:
    """One model's long requests do not hold up another's short one."""
    with open_engine(sample_store, max_batch_size=2) as engine:
        for model in (REAGAN, JEFFERSON):
            engine.load(model)
        long = [send(engine, REAGAN, PROMPT, LONG) for _ in range(6)]
        wait_until(lambda: long[0].stream.token_count > 3)
        send(engine, JEFFERSON, PROMPT, SHORT).stream.finish()
        assert not long[0].stream.ended.is_set()
        for one in long:
            cancel(engine, one)
        for one in long:
            one.stream.wait()
        assert_idle(engine)


# -- admission, drain, ping ---------------------------------------------------------------------


def test_more_than_max_queue_is_refused_and_places_come_back(sample_store: Path) -> None:
    with open_engine(sample_store, max_queue=3) as engine:
        sent = [send(engine, REAGAN, PROMPT, LONG) for _ in range(3)]
        with pytest.raises(Overloaded) as caught:
            engine.generate(JEFFERSON, PROMPT, SHORT)
        assert caught.value.retry_after > 0
        cancel(engine, sent[0])
        sent[0].stream.wait()
        wait_until(lambda: engine._gate.admitted == 2)
        engine.generate(REAGAN, PROMPT, SHORT)
        # What is refused for its own sake takes no place.
        for _ in range(5):
            with pytest.raises(InvalidRequest):
                engine.generate(REAGAN, PROMPT, SamplingParams(top_p=2.0))
            with pytest.raises(ModelNotFound):
                engine.generate("nobody", PROMPT)
        engine.generate(REAGAN, PROMPT, SHORT)
        for one in sent[1:]:
            cancel(engine, one)
        wait_until(lambda: engine._gate.admitted == 0)
        assert_idle(engine)


def test_drain_ends_what_runs_and_takes_nothing_new(sample_store: Path) -> None:
    with open_engine(sample_store) as engine:
        sent = [send(engine, model, PROMPT, LONG) for model in (REAGAN, JEFFERSON)]

        async def drain() -> tuple[bool, bool]:
            early = await engine.drain(0.0)
            with pytest.raises(EngineClosed):
                engine.submit(engine.prepare(REAGAN, PROMPT, SHORT), wants_tokens=True)
            return early, await engine.drain(30.0)

        assert asyncio.run(drain()) == (False, True)
        for one in sent:
            assert one.stream.finish().generations[0].tokens == 240


def test_ping_goes_through_the_engine_thread(sample_store: Path) -> None:
    engine = open_engine(sample_store)
    assert not asyncio.run(engine.ping(1.0)), "not started yet"
    with engine:
        assert asyncio.run(engine.ping(10.0))
        busy = threading.Event()
        engine._core.inbox.put(Call(lambda: busy.wait(10)))
        assert not asyncio.run(engine.ping(0.1)), "the engine thread is stuck"
        busy.set()
        assert asyncio.run(engine.ping(10.0))
    assert not asyncio.run(engine.ping(1.0)), "closed"


def test_preload_and_pin(sample_store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gpt2serve.engine.packer.counted", lambda _, predicted: predicted)
    with open_engine(sample_store) as probe:
        needed = probe.describe(REAGAN).bytes_needed
    watcher = Watcher()
    options = {"preload": (JEFFERSON,), "pin": (REAGAN,), "model_cache_bytes": int(2.5 * needed)}
    with open_engine(sample_store, observer=watcher, **options) as engine:
        assert watcher.loads == [True, True]
        assert _resident(engine) == {JEFFERSON, REAGAN}
        for model in (WASHINGTON, JEFFERSON, WASHINGTON, JEFFERSON, WASHINGTON):
            engine.generate(model, PROMPT, SHORT)
            assert REAGAN in _resident(engine)
        assert_idle(engine)


def _resident(engine: Engine) -> set[str]:
    return {status.id for status in engine.list_models() if status.state == "resident"}


def test_preload_of_what_is_not_there_is_an_error(sample_store: Path) -> None:
    engine = open_engine(sample_store, preload=("nobody",))
    try:
        with pytest.raises(ModelNotFound):
            engine.start()
    finally:
        engine.close()


def test_many_engines_in_one_process(sample_store: Path) -> None:
    engines = [open_engine(sample_store, precision=p) for p in ("int8", "fp32", "int8")]
    try:
        sent: list[Sent] = []
        for engine in engines:
            engine.start()
            sent += [send(engine, REAGAN, PROMPT, SHORT) for _ in range(3)]
        texts = [one.stream.finish().generations[0] for one in sent]
        assert texts[:3] == texts[6:]
        engines[0].close()
        assert engines[2].generate(REAGAN, PROMPT, SHORT).generations[0] == texts[0]
        assert in_engine_thread(engines[1], lambda: engines[1]._core.models.cache.used) > 0
    finally:
        for engine in engines:
            engine.close()
