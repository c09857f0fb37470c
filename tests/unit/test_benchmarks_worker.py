"""A worker does what it is told, says what went wrong, and ends with its input."""

from __future__ import annotations

import os
import sys

import pytest

from benchmarks.common.worker import Worker, WorkerFailed


class Echo:
    """Runs in the worker."""

    def __init__(self, word: str) -> None:
        sys.stdout.write("a library that prints\n")
        self._word = word

    def say(self, times: int) -> str:
        os.write(1, b"and so does C code\n")
        return self._word * times


_TARGET = "tests.unit.test_benchmarks_worker:Echo"


def test_calls_go_there_and_results_come_back() -> None:
    with Worker(_TARGET, {"word": "ab"}) as worker:
        assert worker.call("say", times=2) == "abab"
        with pytest.raises(WorkerFailed, match="TypeError"):
            worker.call("say", times=[])
        assert worker.call("say", times=1) == "ab"


def test_a_constructor_that_fails_is_told() -> None:
    with pytest.raises(WorkerFailed, match="unexpected keyword"):
        Worker(_TARGET, {"sentence": "ab"})
