"""What the packer does besides packing: whom it lets rest, and when it gives memory back."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from gpt2serve.engine import packer as packer_module
from gpt2serve.engine.job_thread import JobThread
from gpt2serve.engine.packer import KEEP_SECONDS, REST_SECONDS, Packer
from tests.engine_fakes import FakeRunner


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def packer(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> Packer:
    """Not started: the test does its jobs and its housekeeping, one by one."""
    made = Packer(report=lambda _: None, clock=clock)
    monkeypatch.setattr(made._thread, "do", lambda job: job())
    return made


def test_a_model_rests_when_it_did_nothing_for_a_while(packer: Packer, clock: Clock) -> None:
    runner: Any = FakeRunner()
    packer.rest(runner)
    assert packer._keep_house() == REST_SECONDS
    clock.now += REST_SECONDS / 2
    assert packer._keep_house() == REST_SECONDS / 2
    assert runner.rested == 0
    clock.now += REST_SECONDS / 2
    assert packer._keep_house() is None
    assert runner.rested == 1


def test_a_model_that_works_again_does_not_rest(packer: Packer, clock: Clock) -> None:
    runner: Any = FakeRunner()
    packer.rest(runner)
    runner.steps += 1
    clock.now += REST_SECONDS
    assert packer._keep_house() is None
    assert runner.rested == 0


def test_waiting_to_rest_keeps_no_model_in_memory(packer: Packer, clock: Clock) -> None:
    runner: Any = FakeRunner()
    gone = threading.Event()
    runner.on_gone = _Tells(gone)
    packer.rest(runner)
    del runner
    assert gone.is_set()
    clock.now += REST_SECONDS
    assert packer._keep_house() is None


class _Tells:
    def __init__(self, event: threading.Event) -> None:
        self._event = event

    def __del__(self) -> None:
        self._event.set()


def test_memory_of_freed_models_is_given_back_when_none_came_for_it(
    packer: Packer, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[float] = []
    monkeypatch.setattr(packer_module, "give_back", lambda: given.append(clock.now))
    runner: Any = FakeRunner()
    let_go: list[bool] = []
    runner.when_freed.callback(lambda: let_go.append(True))
    packer.free(runner)
    assert let_go == [True]
    assert packer._keep_house() == KEEP_SECONDS
    clock.now += KEEP_SECONDS / 2
    packer.free(FakeRunner())  # type: ignore[arg-type]
    clock.now += KEEP_SECONDS / 2
    assert packer._keep_house() == KEEP_SECONDS / 2
    assert given == []
    clock.now += KEEP_SECONDS / 2
    assert packer._keep_house() is None
    assert given == [clock.now]


def test_a_job_thread_keeps_order_and_hands_errors_back() -> None:
    thread, done = JobThread("test", niceness=1), []
    thread.start()
    for number in range(5):
        thread.do(lambda number=number: done.append(number))
    failing = thread.ask(lambda: 1 // 0)
    asked = thread.ask(lambda: list(done))
    with pytest.raises(ZeroDivisionError):
        failing.result(10)
    assert asked.result(10) == [0, 1, 2, 3, 4]
    thread.close()


def test_between_jobs_comes_again_when_its_time_is_over() -> None:
    calls, often = [], threading.Event()

    def between() -> float | None:
        calls.append(1)
        if len(calls) < 4:
            return 0.001
        often.set()
        return None

    thread = JobThread("test", between=between)
    thread.start()
    assert often.wait(10)
    thread.close()
