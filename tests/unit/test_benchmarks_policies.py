"""The benchmark of eviction policies: policies, cache, simulation, traces and report."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.common import results as results_module
from benchmarks.fleet.times import ServerTimes
from benchmarks.fleet.trace import popularity
from benchmarks.fleet.warm import che_hit_ratio
from benchmarks.policies import __main__ as command
from benchmarks.policies import costs, plan, report, running, traces
from benchmarks.policies.cache import PolicyCache
from benchmarks.policies.costs import Costs
from benchmarks.policies.figures import Place, Selection
from benchmarks.policies.gdsf import GDSF
from benchmarks.policies.plan import BASE, EQUAL, MIXED, OPTIMUM, POLICIES, Fleet
from benchmarks.policies.s3_fifo import S3FIFO
from benchmarks.policies.sieve import Sieve
from benchmarks.policies.simulation import Met, Outcome, simulate
from benchmarks.policies.slru import SLRU
from benchmarks.policies.tiny_lfu import WTinyLFU
from benchmarks.policies.traces import KINDS, Shape, Trace
from gpt2serve.engine.model_cache import ModelCache, State

COSTS = Costs(miss_ms=100.0, core_ms=100.0, hot_ms=10.0, token_ms=5.0, model_bytes=100)
BY_NAME = {kind.name: kind for kind in KINDS}
_MOST = 8
QUICK = settings(deadline=None, derandomize=True, max_examples=100)


def make_trace(
    models: list[int],
    sizes: list[int] | None = None,
    gaps: list[float] | None = None,
    durations: list[float] | None = None,
) -> Trace:
    count = len(models)
    return Trace(
        times=np.cumsum(gaps or [1.0] * count),
        models=np.array(models, dtype=np.int64),
        durations=np.array(durations or [0.0] * count),
        sizes=np.array(sizes or [1] * _MOST, dtype=np.int64),
    )


def at_once(_size: int) -> float:
    return 0.0


def slowly(size: int) -> float:
    return 0.75 * size


def run(policy: str, trace: Trace, budget: int, load: Any = at_once) -> Outcome:
    return simulate(PolicyCache(budget, POLICIES[policy](budget, trace)), trace, load)


def hits(policy: str, models: list[int], budget: int) -> int:
    """Loads and answers take no time."""
    return int((run(policy, make_trace(models), budget).met == Met.HIT).sum())


# -- any policy ---------------------------------------------------------------------------

requests = st.lists(st.integers(0, _MOST - 1), min_size=1, max_size=80)
#: No two things happen at the same time: the order of equal times is nobody's promise.
busy_traces = st.integers(1, 60).flatmap(
    lambda count: st.builds(
        make_trace,
        st.lists(st.integers(0, _MOST - 1), min_size=count, max_size=count),
        st.lists(st.integers(1, 4), min_size=_MOST, max_size=_MOST),
        st.lists(st.floats(0.01, 3.0), min_size=count, max_size=count),
        st.lists(st.floats(0.0, 10.0), min_size=count, max_size=count),
    )
)


class Checked(PolicyCache):
    """Looks at itself after every step."""

    def acquire(self, key: str, size: int, now: float) -> State:
        state = super().acquire(key, size, now)
        self.check_integrity()
        return state

    def start_loads(self, now: float) -> list[str]:
        started = super().start_loads(now)
        self.check_integrity()
        return started

    def release(self, key: str, now: float) -> None:
        super().release(key, now)
        self.check_integrity()


@pytest.mark.parametrize("policy", POLICIES)
@QUICK
@given(trace=busy_traces, budget=st.integers(4, 12))
def test_a_budget_holds_and_a_lease_protects(policy: str, trace: Trace, budget: int) -> None:
    """`PolicyCache` refuses a victim that is in use; every request is answered in the end."""
    cache = Checked(budget, POLICIES[policy](budget, trace))
    outcome = simulate(cache, trace, slowly)
    assert len(outcome.met) == len(trace.models)
    assert (outcome.waits[outcome.met == Met.HIT] == 0).all()
    assert (outcome.waits[outcome.met != Met.HIT] > 0).all()


@QUICK
@given(trace=busy_traces, budget=st.integers(4, 12))
def test_lru_is_the_servers_own(trace: Trace, budget: int) -> None:
    """Not only the hits: every wait as well."""
    ours = run(BASE, trace, budget, slowly)
    theirs = simulate(ModelCache(budget), trace, slowly)
    assert ours.met.tolist() == theirs.met.tolist()
    assert ours.waits.tolist() == theirs.waits.tolist()


def test_lru_is_the_servers_own_on_a_long_trace() -> None:
    shape = Shape(models=200, requests=4_000, rate=6.0, places=20)
    for name in ("Zipf 1.0", "sessions", "sweeps, 20%"):
        sizes = plan.model_sizes(Fleet(200, 4_000, (0.1,), (), MIXED), COSTS, 0)
        trace = traces.draw(BY_NAME[name], shape, sizes, COSTS.answer_seconds, 0)
        budget = int(sizes.sum()) // 10
        ours = run(BASE, trace, budget, COSTS.load_seconds)
        theirs = simulate(ModelCache(budget), trace, COSTS.load_seconds)
        assert ours.met.tolist() == theirs.met.tolist()
        assert ours.waits.tolist() == theirs.waits.tolist()
        assert 0.1 < (ours.met == Met.HIT).mean() < 0.9


@pytest.mark.parametrize("policy", [name for name in POLICIES if name != OPTIMUM])
@QUICK
@given(models=requests, budget=st.integers(1, 6))
def test_nobody_beats_the_optimum(policy: str, models: list[int], budget: int) -> None:
    assert hits(policy, models, budget) <= hits(OPTIMUM, models, budget)


@QUICK
@given(models=st.lists(st.integers(0, 4), min_size=1, max_size=14), budget=st.integers(1, 3))
def test_the_optimum_is_one(models: list[int], budget: int) -> None:
    """Against all ways to evict."""
    best: dict[frozenset[int], int] = {frozenset(): 0}
    for model in models:
        after: dict[frozenset[int], int] = {}
        for held, count in best.items():
            count += model in held
            rest = held - {model}
            keep = min(len(rest), budget - 1) if model not in held else len(rest)
            for kept in itertools.combinations(sorted(rest), keep):
                now = frozenset(kept) | {model}
                after[now] = max(after.get(now, 0), count)
        best = after
    assert hits(OPTIMUM, models, budget) == max(best.values())


@pytest.mark.parametrize("policy", POLICIES)
def test_with_room_for_all_each_is_loaded_once(policy: str) -> None:
    models = [n % _MOST for n in range(50)]
    assert hits(policy, models, _MOST) == 50 - _MOST


def test_lru_has_the_hits_that_theory_says() -> None:
    """Che's approximation, which is good to a percent where requests are independent."""
    shape = Shape(models=1_000, requests=30_000, rate=1.0, places=100)
    sizes = np.full(1_000, 1)
    trace = traces.draw(BY_NAME["Zipf 1.0"], shape, sizes, lambda _tokens: 0.0, 1)
    met = run(BASE, trace, 100).met[10_000:]
    expected = che_hit_ratio(popularity(1_000, 1.0).probabilities, 100)
    assert (met == Met.HIT).mean() == pytest.approx(expected, abs=0.01)


# -- what each does -----------------------------------------------------------------------


def free(_key: str) -> bool:
    return True


def fill(policy: Any, keys: str) -> Any:
    for key in keys:
        policy.insert(key, 1)
    return policy


def test_sieve_spares_what_was_asked_for_and_goes_on_from_there() -> None:
    """The figure of the paper: A and B were asked for, then the hand stops behind them."""
    sieve = fill(Sieve(), "ABCDE")
    sieve.hit("A")
    sieve.hit("B")
    assert sieve.victim(free) == "C"
    sieve.insert("F", 1)
    sieve.hit("D")
    assert sieve.victim(free) == "E"
    assert sieve.victim(free) == "F"
    # Round again: A's and B's bits are gone, D's went when the hand passed.
    assert [sieve.victim(free) for _ in "ABD"] == ["A", "B", "D"]


def test_sieve_leaves_the_bit_of_what_is_in_use() -> None:
    sieve = fill(Sieve(), "AB")
    sieve.hit("A")
    assert sieve.victim(lambda key: key != "A") == "B"
    sieve.insert("C", 1)
    assert sieve.victim(free) == "C"  # A's bit is set until the hand comes round


def test_slru_gives_up_newcomers_first() -> None:
    slru = fill(SLRU(5), "ABCDE")
    for key in "ABC":
        slru.hit(key)
    assert [slru.victim(free) for _ in "DEABC"] == ["D", "E", "A", "B", "C"]


def test_slru_no_longer_protects_what_is_too_much() -> None:
    """It goes by its latest use again, before what came later."""
    slru = fill(SLRU(5), "ABCDE")
    for key in "ABCDE":  # four may be protected
        slru.hit(key)
    slru.insert("F", 1)
    assert [slru.victim(free) for _ in "AFBCDE"] == [*"AFBCDE"]


def test_slru_passes_what_is_in_use() -> None:
    slru = fill(SLRU(5), "ABC")
    assert slru.victim(lambda key: key == "C") == "C"
    slru.hit("B")
    assert slru.victim(lambda key: key == "B") == "B"
    assert slru.victim(free) == "A"


def test_s3_fifo_remembers_who_went_and_takes_it_back_for_longer() -> None:
    cache = fill(S3FIFO(), "ABCD")
    assert cache.victim(free) == "A"
    fill(cache, "AE")  # A comes into the main queue
    assert [cache.victim(free) for _ in "BCDEA"] == ["B", "C", "D", "E", "A"]


def test_s3_fifo_gives_the_main_queue_another_chance() -> None:
    cache = fill(S3FIFO(), "ABCDEFGHIJ")
    assert [cache.victim(free) for _ in "AB"] == ["A", "B"]
    fill(cache, "AB")
    cache.hit("A")
    assert [cache.victim(free) for _ in range(10)] == [*"CDEFGHIJ", "B", "A"]


def test_s3_fifo_moves_on_what_was_asked_for_twice_more() -> None:
    cache = fill(S3FIFO(), "ABC")
    for key in "AAB":
        cache.hit(key)
    assert [cache.victim(free) for _ in "BCA"] == ["B", "C", "A"]


def test_w_tiny_lfu_keeps_whoever_is_asked_for_more() -> None:
    cache = WTinyLFU(3)
    for key in "ABAB":
        cache.hit(key) if key in cache._asked else cache.insert(key, 1)
    cache.insert("C", 1)
    cache.insert("D", 1)
    assert cache.victim(free) == "C"  # once, against A's two times
    cache.insert("E", 1)
    for _ in range(3):
        cache.hit("E")
    cache.insert("F", 1)
    assert cache.victim(lambda key: key != "D") == "B"  # twice, and D is in use


def test_gdsf_prefers_small_and_frequent_and_ages() -> None:
    cache = GDSF(cost=lambda _size: 1)
    cache.insert("large", 10)
    cache.insert("small", 1)
    cache.insert("frequent", 10)
    for _ in range(4):
        cache.hit("frequent")
    assert [cache.victim(free) for _ in range(2)] == ["large", "frequent"]
    cache.insert("new", 2)  # 0.5 for the age of the cache, and 0.5
    assert cache.victim(free) == "small"
    assert cache.victim(free) == "new"


def test_gdsf_without_sizes_is_lfu_with_aging() -> None:
    cache = GDSF(cost=lambda size: size)
    cache.insert("A", 7)
    cache.insert("B", 1)
    cache.hit("B")
    assert cache.victim(free) == "A"
    cache.insert("C", 100)  # 1 for the age of the cache and 1 for itself, as B, which is older
    assert cache.victim(free) == "B"


# -- the simulation -----------------------------------------------------------------------


def test_requests_for_a_model_that_is_loading_wait_for_the_same_load() -> None:
    trace = make_trace([0, 0, 0], gaps=[1.0, 0.25, 1.0])
    outcome = run(BASE, trace, 5, lambda _size: 1.0)
    assert outcome.met.tolist() == [Met.MISS, Met.JOINED, Met.HIT]
    assert outcome.waits.tolist() == [1.0, 0.75, 0.0]


def test_one_load_at_a_time() -> None:
    trace = make_trace([0, 1], gaps=[1.0, 0.25])
    assert run(BASE, trace, 5, lambda _size: 1.0).waits.tolist() == [1.0, 1.75]


def test_a_model_in_use_blocks_until_its_last_token() -> None:
    trace = make_trace([0, 1, 2], gaps=[1.0, 1.0, 1.0], durations=[5.0, 1.0, 1.0])
    outcome = run(BASE, trace, 2, at_once)
    # Model 1 goes at 3, when its request is done; model 0 is in use until 6.
    assert outcome.waits.tolist() == [0.0, 0.0, 0.0]
    blocked = run(BASE, trace, 1, at_once)
    assert blocked.waits.tolist() == [0.0, 4.0, 4.0]


# -- traces -------------------------------------------------------------------------------

SHAPE = Shape(models=50, requests=3_000, rate=10.0, places=10)


def drawn(name: str, seed: int = 0, shape: Shape = SHAPE) -> Trace:
    sizes = np.ones(shape.models, dtype=np.int64)
    return traces.draw(BY_NAME[name], shape, sizes, COSTS.answer_seconds, seed)


@pytest.mark.parametrize("name", BY_NAME)
def test_a_trace_follows_from_its_seed(name: str) -> None:
    trace, again, other = drawn(name), drawn(name), drawn(name, seed=1)
    assert trace.models.tolist() == again.models.tolist()
    assert trace.times.tolist() == again.times.tolist()
    assert trace.times.tolist() != other.times.tolist()
    assert len(trace.models) == len(trace.times) == len(trace.durations) == SHAPE.requests
    assert (np.diff(trace.times) >= 0).all()
    assert set(trace.models.tolist()) <= set(range(SHAPE.models))
    seconds = trace.times[-1]
    assert seconds == pytest.approx(SHAPE.requests / SHAPE.rate, rel=0.3)


def test_a_loop_is_a_little_larger_than_the_cache() -> None:
    assert drawn("loop").models[:13].tolist() == [*range(11), 0, 1]


def test_a_crawler_sees_all_models_in_turn() -> None:
    rng = np.random.default_rng(3)
    alone = traces.crawler(1.0, SHAPE, rng)
    assert sorted(alone[:50].tolist()) == list(range(50))
    assert alone[:50].tolist() == alone[50:100].tolist()


def test_sweeps_come_at_once_and_are_as_many_as_is_said() -> None:
    shape = Shape(models=1_000, requests=50_000, rate=1.0, places=10)
    models = traces.sweeps(0.2, shape, np.random.default_rng(0))
    cold = models > 500
    each = cold.reshape(10, 5_000)  # one sweep in each
    assert each[:, :1_250].mean() > 4 * each[:, 1_250:].mean()
    assert cold.mean() == pytest.approx(0.2 * 0.5 + 0.8 * 0.092, abs=0.01)


def test_long_answers_are_long() -> None:
    usual, long = drawn("Zipf 1.0"), drawn("Zipf 1.0, long answers")
    assert long.durations == pytest.approx(8 * usual.durations)
    assert long.models.tolist() == usual.models.tolist()


def test_sessions_ask_for_the_same_model_again_soon() -> None:
    def again(trace: Trace) -> float:
        near = [
            model in trace.models[max(0, n - 300) : n].tolist()
            for n, model in enumerate(trace.models.tolist())
        ]
        return sum(near) / len(near)

    shape = Shape(models=5_000, requests=3_000, rate=1.0, places=10)
    assert again(drawn("sessions", shape=shape)) > 0.75 > again(drawn("Zipf 1.0", shape=shape))


@pytest.mark.parametrize(("name", "moves"), [("Zipf 1.0", False), ("changing popularity", True)])
def test_what_is_popular_changes_or_does_not(name: str, moves: bool) -> None:
    models = drawn(name, shape=Shape(50, 20_000, 1.0, 10)).models
    first, last = (np.bincount(part, minlength=50) for part in (models[:5_000], models[-5_000:]))
    overlap = np.minimum(first, last).sum() / 5_000
    assert bool(overlap < 0.8) is moves


def test_drift_is_back_after_a_day() -> None:
    models = drawn("drift through the day", shape=Shape(50, 30_000, 1.0, 10)).models
    counts = [np.bincount(part, minlength=50) for part in models.reshape(12, 2_500)]
    night = np.minimum(counts[0], counts[2]).sum()
    next_day = np.minimum(counts[0], counts[4]).sum()
    assert night < 0.6 * 2_500 < 0.85 * 2_500 < next_day


# -- costs, plan, figures -----------------------------------------------------------------


def test_costs_come_from_the_results_of_others() -> None:
    times = ServerTimes(
        decode=((1, 0.006), (2, 0.007)),
        prefill=((8, 0.009),),
        unpacked_decode=((1, 0.009),),
        unpacked_prefill=((8, 0.02),),
        load=0.1,
        first_load=0.2,
        pack=0.05,
        packing_beside_steps=1.0,
        step_beside_packing=1.0,
        overhead=0.001,
        model_bytes=150,
        resident_bytes=200,
    )
    cold = [
        {"system": "gpt2serve int8, HTTP", "cache": cache, "first_ms": first}
        for cache, first in (("warm", 100.0), ("warm", 120.0), ("warm", 150.0), ("cold", 400.0))
    ]
    made = costs.from_results({"prompt_tokens": 8, "starts": cold}, {"times": times.as_json()})
    assert made == Costs(110.0, 160.0, 10.0, 6.0, 150)
    assert made.load_seconds(300) == pytest.approx(0.22)
    assert made.answer_seconds(11) == pytest.approx(0.07)


def test_published_results_give_costs() -> None:
    assert 0 < costs.measured().miss_ms < 1_000


def test_a_plan_simulates_what_the_report_shows() -> None:
    for fleets in (plan.FULL, plan.QUICK):
        places = {(cell.fleet.models, cell.fleet.sizes, cell.share) for cell in plan.cells(fleets)}
        assert (report.MODELS, EQUAL, report.SHARE) in places
    kinds = {cell.kind.name for cell in plan.cells(plan.FULL)}
    assert kinds == set(BY_NAME)


def test_mixed_sizes_are_as_many_as_is_said() -> None:
    sizes = plan.model_sizes(Fleet(10_000, 1, (), (), MIXED), COSTS, 0)
    shares = {int(size): float((sizes == size).mean()) for size in np.unique(sizes)}
    assert shares == pytest.approx({100: 0.7, 285: 0.15, 393: 0.15}, abs=0.02)


def test_the_warm_up_does_not_count() -> None:
    trace = make_trace([0, 1, 2, 0, 1, 2], sizes=[1, 2, 3] + [1] * 5)
    outcome = Outcome(
        np.array([Met.MISS, Met.MISS, Met.MISS, Met.HIT, Met.JOINED, Met.HIT]),
        np.array([9.0, 9.0, 0.4, 0.0, 0.2, 0.0]),
    )
    assert running.figures(trace, outcome) == {
        "requests": 4,
        "hits": 2,
        "joined": 1,
        "misses": 1,
        "bytes_asked": 9,
        "bytes_loaded": 3,
        "wait_ms": 150.0,
        "wait_p99_ms": pytest.approx(394.0),
    }


def entry(policy: str, cache: float, misses: int, trace: str = "Zipf 1.0") -> dict[str, Any]:
    return {
        "trace": trace,
        "models": report.MODELS,
        "sizes": EQUAL,
        "cache": cache,
        "policy": policy,
        "requests": 1_000,
        "hits": 1_000 - misses,
        "joined": 0,
        "misses": misses,
        "bytes_asked": 100_000,
        "bytes_loaded": 100 * misses,
        "wait_ms": 0.1 * misses,
        "wait_p99_ms": 100.0,
    }


def made_up(cells: list[dict[str, Any]]) -> dict[str, Any]:
    header = dict.fromkeys(("command", "commit", "date", "processor", "system"), "x")
    numbers = dict.fromkeys(("cores", "threads", "memory_bytes", "load_average"), 1)
    return {
        "header": {**header, **numbers, "extensions": [], "versions": {}},
        "rate": 3.0,
        "seed": 0,
        "costs": COSTS.as_json(),
        "early": {"miss_ms": 30.0, "core_ms": 100.0},
        "cells": cells,
    }


def compared(misses: dict[str, int], trace: str) -> list[dict[str, Any]]:
    return [entry(policy, 0.1, count, trace) for policy, count in misses.items()]


def test_a_selection_compares_with_lru() -> None:
    curve = [entry(BASE, 0.2, 200), entry(BASE, 0.4, 100)]
    found = Selection(
        made_up([*compared({BASE: 400, "SLRU": 300, OPTIMUM: 150}, "Zipf 1.0"), *curve])
    )
    place = Place("Zipf 1.0", report.MODELS, EQUAL, 0.1)
    assert found.places == [place]
    assert found.change(place, "SLRU") == pytest.approx(-0.25)
    assert found.change(place, "SIEVE") is None
    assert found.loads(place, BASE) == pytest.approx(0.4)
    assert found.lru_needs(place, "SLRU") == pytest.approx(2**0.5)
    assert found.lru_needs(place, OPTIMUM) == pytest.approx(2**1.5)
    assert (
        Selection(made_up(compared({BASE: 9, "SLRU": 8, OPTIMUM: 7}, "Zipf 1.0"))).lru_needs(
            place, "SLRU"
        )
        is None
    )


def test_the_report_says_who_is_better_and_by_how_much() -> None:
    better = dict.fromkeys(report.OTHERS, 300) | {BASE: 400, OPTIMUM: 200}
    worse = dict.fromkeys(report.OTHERS, 110) | {BASE: 100, OPTIMUM: 50}
    cells = [*compared(better, "Zipf 1.0"), *compared(worse, "sessions")]
    results = made_up([*cells, entry(BASE, 0.2, 200)])
    text = report.markdown(results)
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()]
    assert ["Zipf 1.0", "60.0%", "400", *["-25%"] * 5, "-50%"] in lines
    saved = "10.0 -> 3.0, core 10.0"
    assert ["Zipf 1.0", "40", saved, saved, saved, "1.41x"] in lines
    lost = "-1.0 -> -0.3, core -1.0"
    assert ["sessions", "10", lost, lost, lost, "-"] in lines
    assert (
        "- SLRU: of 2 comparisons without *uniform* and *loop*, at least 10% fewer misses than LRU "
        "in 1, more misses in 1, at most +10% (sessions, 1,000 models, cache 10%)."
    ) in text
    assert "Mixed sizes" not in text


# -- the command --------------------------------------------------------------------------


def test_the_command_from_end_to_end(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fleets = (
        Fleet(report.MODELS, 900, (report.SHARE,), ("Zipf 1.0", "sessions"), more_lru=(0.2,)),
        Fleet(report.MODELS, 900, (report.SHARE,), ("Zipf 1.0",), MIXED),
    )
    monkeypatch.setattr(plan, "QUICK", fleets)

    def simulated(name: str, *options: str) -> dict[str, Any]:
        path = tmp_path / name
        assert command.main(["--quick", f"--output={path}", *options]) == 0
        return results_module.load(path)

    made, again = simulated("one.json", "--miss-ms=50"), simulated("two.json", "--miss-ms=50")
    assert made["cells"] == again["cells"]
    assert made["costs"]["miss_ms"] == made["costs"]["core_ms"] == 50
    assert simulated("three.json", "--seed=1")["cells"] != made["cells"]
    assert len(made["cells"]) == 2 * (7 + 1) + 8
    assert json.loads(json.dumps(made)) == made
    text = capsys.readouterr().out
    assert "### Mixed sizes" in text
    assert set(report.plots(made)) == {"misses"}
