"""Several owners of requests at one engine with real models: shares change the order, no text."""

from __future__ import annotations

import threading
from pathlib import Path

from gpt2serve import Engine, SamplingParams
from tests.engine_driver import (
    JEFFERSON,
    REAGAN,
    WASHINGTON,
    Recording,
    Sent,
    assert_idle,
    open_engine,
)


def send_as(engine: Engine, owner: str, model: str, params: SamplingParams) -> Sent:
    stream = Recording()
    prepared = engine.prepare(model, "My fellow citizens,", params)
    return Sent(engine._admit(prepared, stream, wants_tokens=True, owner=owner), stream)


def test_the_same_text_whoever_floods(sample_store: Path) -> None:
    wishes = [
        (model, SamplingParams(max_new_tokens=12, do_sample=True, seed=seed))
        for model in (WASHINGTON, JEFFERSON, REAGAN)
        for seed in range(4)
    ]
    with open_engine(sample_store, max_queue=200) as engine:
        alone = [
            send_as(engine, "", model, params).stream.finish().outcome(1)
            for model, params in wishes
        ]
        flood = [
            send_as(engine, "flood", model, SamplingParams(max_new_tokens=30, min_new_tokens=30))
            for model in (WASHINGTON, JEFFERSON, REAGAN)
            for _ in range(33)
        ]
        sent = [
            send_as(engine, f"owner-{n % 5}", model, params)
            for n, (model, params) in enumerate(wishes)
        ]
        assert [one.stream.finish().outcome(1) for one in sent] == alone
        for one in flood:
            one.stream.finish()
        assert_idle(engine)
        assert not engine._gate.owned


def test_one_request_does_not_wait_for_a_flood(sample_store: Path) -> None:
    """It ends before most of what came long before it, in its model and in another one."""
    long = SamplingParams(max_new_tokens=60, min_new_tokens=60, do_sample=True, seed=1)
    short = SamplingParams(max_new_tokens=10, min_new_tokens=10, do_sample=True, seed=2)
    with open_engine(sample_store, max_queue=200) as engine:
        for model in (WASHINGTON, JEFFERSON):
            ended = threading.Semaphore(0)
            flood = [send_as(engine, "flood", WASHINGTON, long) for _ in range(90)]
            flood[0].stream.on_delivery = lambda _, ended=ended: ended.release()  # type: ignore[misc]
            assert ended.acquire(timeout=30), "the flood does not begin"
            send_as(engine, "other", model, short).stream.finish()
            assert sum(not one.stream.ended.is_set() for one in flood) > 60
            for one in flood:
                one.stream.finish()
