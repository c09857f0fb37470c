"""More hot models than memory: grouped by model, and nobody starves. On a clock of our own."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from gpt2serve import Engine
from gpt2serve.engine.loader import LoadResult
from gpt2serve.engine.messages import Submit
from gpt2serve.engine.request import Request
from gpt2serve.engine.store import Package
from gpt2serve.package import TOKENIZER_FILE
from tests.engine_fakes import FakeRunner, letters_tokenizer, make_request, write_package

#: Seconds. A request makes so many tokens; beside others that begin it needs some steps more.
STEP, LOAD, MAX_WAIT = 0.005, 0.3, 1.0
TOKENS = 40
DRAIN = 1.5 * TOKENS * STEP
#: Seconds between two requests for one model: it always has some that run.
EVERY = 0.1
MODELS = "abcdefgh"
SIZE = 100


@dataclass
class World:
    """The engine's own policy and models that compute nothing; time goes on as it is told."""

    folder: Path
    now: float = 1000.0
    loads: list[str] = field(default_factory=list)
    evicted: Counter[str] = field(default_factory=Counter)
    _due: list[tuple[float, Package]] = field(default_factory=list)

    def open(self, room: float, **options: Any) -> None:
        defaults = {
            "model_max_wait": MAX_WAIT,
            "kv_cache_bytes": 2**30,
            "max_batch_size": 1000,
            "store_refresh": 1e9,
        }
        engine = Engine(
            self.folder,
            model_cache_bytes=int(room * SIZE),
            device="cpu",
            clock=lambda: self.now,
            **(defaults | options),
        )
        # Its thread is not started: the test goes through the steps itself.
        self.core = engine._core
        self.core._loader.load = self._load  # type: ignore[method-assign]
        evicted = self.core.models.cache._on_evict

        def count(key: str, reason: Any) -> None:
            self.evicted[key[0]] += 1
            evicted(key, reason)

        self.core.models.cache._on_evict = count
        self.packages = {model: engine._store.resolve(model) for model in MODELS}

    def _load(self, package: Package) -> None:
        self.loads.append(package.model)
        # The loader loads one after the other.
        begin = max([self.now, *(time for time, _ in self._due)])
        self._due.append((begin + LOAD, package))

    def play(self, arrivals: list[tuple[float, str]]) -> dict[str, list[float]]:
        """Seconds that each request waited for its first token, by model."""
        sent: list[Request] = []
        coming = sorted((self.now + at, model) for at, model in arrivals)
        while coming or not all(request.ended for request in sent):
            while coming and coming[0][0] <= self.now:
                sent.append(self._send(coming.pop(0)[1]))
            while self._due and self._due[0][0] <= self.now:
                package = self._due.pop(0)[1]
                self.core._handle(LoadResult(package, LOAD, Slow(self), SIZE))  # type: ignore[arg-type]
            self.core.check_integrity()
            if self.core._step():
                continue
            events = [time for time, _ in (*coming[:1], *self._due[:1])]
            assert events, "somebody waits, and nothing will ever happen"
            self.now = max(self.now, min(events))
        waits: dict[str, list[float]] = {}
        for request in sent:
            assert request.times.first_token is not None
            waits.setdefault(request.model[0], []).append(
                request.times.first_token - request.times.submitted
            )
        return waits

    def _send(self, model: str) -> Request:
        package = self.packages[model]
        request = make_request([2, 3], package=package, max_tokens=TOKENS, min_tokens=TOKENS)
        request.times.submitted = self.now
        self.core._handle(Submit(request))
        return request


class Slow(FakeRunner):
    """Each step takes its time, on the world's clock."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self._world = world

    def _count(self) -> None:
        self._world.now += STEP
        super()._count()


@pytest.fixture
def world(tmp_path: Path) -> World:
    for model in MODELS:
        files = {TOKENIZER_FILE: letters_tokenizer()}
        write_package(tmp_path, model, files=files, bytes_needed=SIZE)
    return World(tmp_path)


def alternating(models: str, seconds: float) -> list[tuple[float, str]]:
    every = EVERY / len(models)
    return [(n * every, models[n % len(models)]) for n in range(int(seconds / every))]


def bound(ahead: int) -> float:
    """The longest wait of a model that has `ahead` others before it in line: each of them may
    have its turn, ends what runs, and the next one is loaded."""
    return ahead * (MAX_WAIT + DRAIN + LOAD) + LOAD + DRAIN


@pytest.mark.parametrize("count", [2, 3, 5, 8])
def test_alternating_requests_are_grouped_and_nobody_starves(world: World, count: int) -> None:
    """A B C A B C ... with room for one, faster than one model could be loaded for each."""
    world.open(room=1.2)
    arrivals = alternating(MODELS[:count], seconds=40.0)
    waits = world.play(arrivals)
    assert {model: len(w) for model, w in waits.items()} == Counter(m for _, m in arrivals)
    longest = max(max(w) for w in waits.values())
    assert longest <= bound(count - 1)
    assert len(world.loads) * 20 < len(arrivals)
    # Turns go round: none has many more of them than another.
    turns = Counter(world.loads)
    assert max(turns.values()) - min(turns.values()) <= 1


def test_a_model_keeps_its_turn_for_as_long_as_was_said(world: World) -> None:
    world.open(room=1.2)
    world.play(alternating("ab", seconds=20.0))
    # Had each request brought its own model, there would be 400.
    assert len(world.loads) <= 20.0 / MAX_WAIT + 2


def test_a_single_request_among_hot_models_waits_no_longer_than_was_said(world: World) -> None:
    """Room for two, both busy all the time: one must go, and it is not the busiest."""
    world.open(room=2.2)
    busy = [(n * EVERY / 2, "a") for n in range(200)]
    less = [(n * EVERY, "b") for n in range(100)]
    waits = world.play([*busy, *less, (3.0, "c")])
    assert waits["c"][0] <= MAX_WAIT + DRAIN + LOAD + DRAIN
    assert world.evicted["a"] == 0
    assert max(waits["a"][10:]) <= 12 * STEP, "the busiest should not have noticed"
    assert max(waits["b"]) <= bound(1)


def test_a_storm_of_cold_models_takes_its_turns_one_by_one(world: World) -> None:
    """Room for two: one is busy, six cold ones come at once."""
    world.open(room=2.2)
    busy = [(n * EVERY / 2, "a") for n in range(240)]
    cold = [(2.0 + n * 1e-3, model) for n, model in enumerate("bcdefg")]
    waits = world.play([*busy, *cold])
    # The cold ones pass through the other place, one after the other.
    assert max(waits[model][0] for model in "bcdefg") <= bound(5)
    assert world.evicted["a"] == 0
    assert max(waits["a"][10:]) <= 12 * STEP


def test_with_no_patience_at_all_nobody_starves_either(world: World) -> None:
    world.open(room=1.2, model_max_wait=0.0)
    waits = world.play(alternating("abc", seconds=10.0))
    assert max(max(w) for w in waits.values()) <= 3 * (DRAIN + LOAD) + DRAIN
