"""The policies of the simulated fleet: routing, batches, caches, and that nothing is lost."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.fleet.batch import Batch
from benchmarks.fleet.questions import Case, fewest, simulate
from benchmarks.fleet.replica import Replica, Settings
from benchmarks.fleet.routing import HashedBounded, Ring, Uniform
from benchmarks.fleet.simulation import LOST, Fleet, Ledger, Loss
from benchmarks.fleet.times import ServerTimes
from benchmarks.fleet.trace import Popularity, Trace, poisson, recorded
from benchmarks.fleet.warm import che_hit_ratio, contents
from gpt2serve.engine.scheduler import Decode, Prefill, Scheduler
from tests.engine_fakes import make_request

CHUNK, BATCH = 16, 4
TIMES = ServerTimes(
    decode=((1, 0.010), (4, 0.016)),
    prefill=((1, 0.010), (16, 0.025)),
    unpacked_decode=((1, 0.015), (4, 0.021)),
    unpacked_prefill=((1, 0.015), (16, 0.035)),
    load=0.2,
    first_load=0.3,
    pack=0.1,
    packing_beside_steps=2.0,
    step_beside_packing=1.5,
    overhead=0.0,
    model_bytes=100,
    resident_bytes=100,
)

replica_sets = st.lists(st.integers(0, 40), min_size=2, max_size=12, unique=True)


# -- routing ------------------------------------------------------------------------------


@given(replica_sets, st.data())
def test_without_a_replica_only_its_own_models_move(
    replicas: list[int], data: st.DataObject
) -> None:
    lost = data.draw(st.sampled_from(replicas))
    models = np.arange(300)
    before = Ring(replicas, points=32).homes(models)
    after = Ring([one for one in replicas if one != lost], points=32).homes(models)
    assert (before[before != after] == lost).all()
    assert (after != lost).all()


@given(
    st.integers(1, 9),
    st.sampled_from([1.0, 1.1, 1.5, 3.0]),
    st.lists(st.tuples(st.integers(0, 5), st.booleans()), max_size=120),
)
def test_no_replica_gets_more_than_its_slots_and_one(
    replicas: int, factor: float, steps: list[tuple[int, bool]]
) -> None:
    """Requests for few models come and go; the bound is that of the moment of the choice."""
    router = HashedBounded(factor)
    router.alive(range(replicas))
    active = [0] * replicas
    for model, ends in steps:
        if ends and sum(active):
            active[active.index(max(active))] -= 1
            continue
        total = sum(active)
        chosen = router.choose(model, active, total)
        active[chosen] += 1
        slots = max(1, math.ceil(math.ceil((total + 1) * factor) / replicas))
        assert active[chosen] <= slots + 1
        if active[router.usual(model)] < slots:
            assert chosen == router.usual(model)


def test_without_load_a_model_stays_at_home() -> None:
    router = HashedBounded()
    router.alive(range(7))
    assert {router.choose(3, [0] * 7, 0) for _ in range(20)} == {router.usual(3)}


# -- the batch beside the server's own scheduler ------------------------------------------

arrivals = st.lists(
    st.one_of(
        st.none(), st.tuples(st.integers(1, CHUNK), st.integers(1, 6))
    ),  # None: one step of the engine
    max_size=60,
)


@given(arrivals)
def test_a_batch_does_what_the_scheduler_does(steps: list[tuple[int, int] | None]) -> None:
    batch = Batch(max_batch_size=BATCH, chunk=CHUNK)
    real = Real()
    for number, step in enumerate([*steps, *[None] * 200]):
        if step is not None:
            batch.add(number, *step)
            real.add(number, *step)
        elif batch.has_work:
            assert batch.begin() == real.begin()
            assert batch.running <= BATCH
            first, ended = batch.end()
            assert (sorted(first), sorted(ended)) == real.end()
        assert batch.has_work == real.scheduler.has_work
        assert batch.steps_left == real.scheduler.steps_left
        assert batch.can_wait == (not real.scheduler.waiting)
    assert not batch.has_work


class Real:
    """The server's scheduler, whose sequences get a token in each step that concerns them."""

    def __init__(self) -> None:
        self.scheduler = Scheduler(
            max_batch_size=BATCH,
            prefill_chunk=CHUNK,
            context_length=64,
            kv_fits=lambda shape, extra: True,
        )
        self.numbers: dict[int, int] = {}
        self.left: dict[int, int] = {}

    def add(self, number: int, prompt: int, tokens: int) -> None:
        request = make_request([1] * prompt, max_tokens=tokens)
        self.numbers[id(request)] = number
        self.left[number] = tokens
        self.scheduler.add(request)

    def begin(self) -> tuple[int, int]:
        self.plan = self.scheduler.schedule()
        if isinstance(self.plan, Decode):
            return len(self.scheduler.running), 0
        assert isinstance(self.plan, Prefill)
        self.requests = self.plan.requests
        rows = len(self.requests)
        return rows, rows * max(request.prompt_length for request in self.requests)

    def end(self) -> tuple[list[int], list[int]]:
        first, joined = [], []
        if isinstance(self.plan, Prefill):
            for request in self.requests:
                self.scheduler.join(request)
                joined += request.sequences
                first.append(self.numbers[id(request)])
        for sequence in joined or self.scheduler.running:
            sequence.row.history.append(0)
        concerned = first or [self.numbers[id(s.request)] for s in self.scheduler.running]
        for number in concerned:
            self.left[number] -= 1
        ended = [number for number in concerned if self.left[number] == 0]
        self.scheduler.leave(
            [s for s in self.scheduler.running if self.numbers[id(s.request)] in ended]
        )
        self.scheduler.check_integrity()
        return sorted(first), sorted(ended)


# -- a replica, and a fleet ---------------------------------------------------------------

requests = st.lists(
    st.tuples(st.floats(0, 3), st.integers(0, 5), st.integers(1, CHUNK), st.integers(1, 6)),
    min_size=1,
    max_size=40,
)


def small(places: int) -> Settings:
    return Settings(
        cache_bytes=places * TIMES.model_bytes,
        max_batch_size=BATCH,
        prefill_chunk=CHUNK,
        model_max_wait=0.3,
    )


@given(requests, st.integers(1, 4))
def test_a_replica_answers_all_and_keeps_to_its_budget(
    rows: list[tuple[float, int, int, int]], places: int
) -> None:
    ledger = Ledger(recorded(rows))
    replica = Replica(TIMES, small(places), ledger)
    for request, now in enumerate(recorded(rows).times.tolist()):
        while replica.next <= now:
            advance(replica)
        assert replica.arrive(request, now)
    while replica.next < math.inf:
        advance(replica)
    assert replica.admitted == 0
    assert replica.requests() == []
    assert sorted(ledger.just_ended) == list(range(len(rows)))
    assert all(first <= end for first, end in zip(ledger.first, ledger.end, strict=True))


def advance(replica: Replica) -> None:
    replica.advance()
    replica.cache.check_integrity()
    # Sizes are known here, so that not even for a moment there is more.
    assert replica.cache.used <= replica.cache.budget


@settings(deadline=None, max_examples=60)
@given(
    requests,
    st.integers(2, 4),
    st.sampled_from(["hash", "random", "least requests"]),
    st.floats(0, 3),
    st.floats(0, 3),
    st.floats(0, 1),
)
def test_every_request_of_a_fleet_ends_once_also_if_a_replica_is_lost(
    rows: list[tuple[float, int, int, int]],
    replicas: int,
    routing: str,
    at: float,
    detection: float,
    connect: float,
) -> None:
    from benchmarks.fleet.routing import router

    trace = recorded(rows)
    fleet = Fleet(replicas, router(routing, 0), TIMES, small(2), trace)
    outcome = fleet.run(Loss(0, at, detection, connect))
    answered = np.isfinite(outcome.requests.total)
    assert (answered == (outcome.codes == 0)).all()
    # Only what had begun before the loss can be broken, and what was sent again ended.
    assert (trace.times[outcome.codes == LOST] <= at).all()
    assert answered[outcome.again].all()
    # In the end the router sees nothing under way.
    assert fleet.active == [0] * replicas
    # Nothing can be faster than its own steps.
    least = TIMES.decode[0][1] * (trace.outputs - 1) + TIMES.prefill[0][1]
    assert (outcome.requests.total >= least - 1e-9).all()


@settings(deadline=None, max_examples=10)
@given(st.integers(0, 1000), st.sampled_from(["hash", "random", "least requests"]))
def test_the_same_seed_gives_the_same_result(seed: int, routing: str) -> None:
    case = Case(50, 20.0, routing, 500, 1.0, 200, seed)
    first, again = (simulate(case, 3, TIMES) for _ in range(2))
    assert first.events == again.events
    assert np.array_equal(first.requests.total, again.requests.total)
    other = simulate(replace(case, seed=seed + 1), 3, TIMES)
    assert not np.array_equal(first.requests.total, other.requests.total)


# -- what theory says ---------------------------------------------------------------------


@pytest.mark.parametrize("load", [0.3, 0.6, 0.8])
def test_one_model_and_one_request_at_a_time_waits_as_pollaczek_and_khinchine_say(
    load: float,
) -> None:
    """M/D/1: the mean wait is load * service / (2 * (1 - load))."""
    service = TIMES.prefill[0][1]
    rng = np.random.default_rng(7)
    count = 60_000
    ones = np.ones(count, dtype=np.int64)
    trace = Trace(np.cumsum(rng.exponential(service / load, count)), 0 * ones, ones, ones)
    fleet = Fleet(
        1,
        Uniform(0),
        TIMES,
        replace(small(1), max_batch_size=1, max_queue=10_000),
        trace,
    )
    fleet.warm([[0]], None)
    waited = fleet.run().requests.total - service
    assert float(waited.mean()) == pytest.approx(load * service / (2 * (1 - load)), rel=0.04)


@pytest.mark.parametrize(("models", "places"), [(200, 20), (1000, 10), (1000, 300)])
def test_hits_of_an_lru_cache_are_as_che_says(models: int, places: int) -> None:
    """Requests so rare that each has ended before the next comes, from the first one on."""
    popularity = Popularity(models, 0.9)
    trace = poisson(popularity, 0.2, 12_000 / 0.2, seed=1)
    fleet = Fleet(1, Uniform(0), TIMES, small(places), replace(trace, prompts=trace.models * 0 + 1))
    fleet.warm(contents(popularity, filled(1), 1, places, seed=2), None)
    hits = fleet.run().requests.hits
    expected = che_hit_ratio(popularity.probabilities, places)
    assert float(hits.mean()) == pytest.approx(expected, abs=0.015)
    # The caches were full from the beginning.
    assert float(hits[:2000].mean()) == pytest.approx(expected, abs=0.04)


def filled(replicas: int) -> Uniform:
    router = Uniform(0)
    router.alive(range(replicas))
    return router


@given(st.integers(1, 200), st.integers(1, 100), st.integers(1, 400))
def test_the_fewest_are_found(least: int, guess: int, most: int) -> None:
    found = fewest(lambda number: number >= least, guess, max(guess, most))
    assert found == (least if least <= max(guess, most) else None)
