"""Policies of the load test that must hold for whatever comes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.load.outcome import Outcome
from benchmarks.load.search import Search
from benchmarks.load.summary import share_inside, summary
from benchmarks.load.traffic import Ask, Lengths, Mix, Traffic, burst_times, poisson_times, zipf

_ASK = Ask(0.0, "m", "the", 10, 0)
_steps = st.integers(-60, 60)


@given(_steps, st.integers(1, 12), _steps)
def test_a_search_finds_the_highest_step_of_a_steady_server(
    start: int, stride: int, capacity: int
) -> None:
    search, tried = Search(start, stride=stride, most=200, lowest=-60), set()
    while (step := search.next) is not None:
        assert step not in tried
        tried.add(step)
        search.tell(sustained=step <= capacity)
    assert search.best == capacity


@given(_steps, st.integers(1, 12), st.integers(1, 9), st.lists(st.booleans(), min_size=9))
def test_a_search_ends_whatever_a_server_does(
    start: int, stride: int, most: int, answers: list[bool]
) -> None:
    search, sustained = Search(start, stride=stride, most=most, lowest=-60), []
    for answer in answers:
        step = search.next
        if step is None:
            break
        assert step >= -60
        if answer:
            sustained.append(step)
        search.tell(sustained=answer)
    assert search.next is None
    assert search.best == max(sustained, default=None)


@given(st.integers(1, 500), st.floats(0, 3))
def test_popularity_is_a_distribution(count: int, exponent: float) -> None:
    shares = zipf(count, exponent)
    assert shares.sum() == pytest.approx(1)
    assert (np.diff(shares) <= 0).all()


@given(
    st.integers(1, 50),
    st.integers(0, 40),
    st.floats(0.5, 100),
    st.floats(0, 2),
    st.integers(1, 20),
    st.integers(0, 2**32),
)
def test_requests_are_as_asked(
    models: int, count: int, median: float, sigma: float, low: int, seed: int
) -> None:
    lengths = Lengths(median, sigma, low, low + 30)
    names = tuple(f"m{n}" for n in range(models))
    times = np.arange(count, dtype=np.float64)
    asks = Traffic(Mix(names, prompts=lengths, outputs=lengths, seed=seed)).at(times)
    assert [ask.at for ask in asks] == times.tolist()
    for ask in asks:
        assert ask.model in names
        assert low <= ask.tokens <= low + 30
        assert low <= len(ask.prompt.split()) <= low + 30


@given(st.floats(0.1, 200), st.floats(0.1, 20), st.integers(0, 2**32))
def test_arrivals_lie_in_order_within_the_time(rate: float, seconds: float, seed: int) -> None:
    times = poisson_times(rate, seconds, np.random.default_rng(seed))
    assert (np.diff(times) >= 0).all()
    assert ((times >= 0) & (times <= seconds)).all()
    bursts = burst_times(3, seconds / 4, seconds)
    assert len(bursts) % 3 == 0
    assert bursts.max() < seconds


_durations = st.floats(0, 10)


@st.composite
def outcomes(draw: st.DrawFn) -> Outcome:
    due = draw(st.floats(-5, 15))
    sent = due + draw(_durations)
    first = draw(st.none() | st.just(sent + draw(_durations)))
    ended = (sent if first is None else first) + draw(_durations)
    code = draw(st.sampled_from(["ok", "ok", "429", "timeout", "unfinished"]))
    tokens = draw(st.integers(0, 60))
    load_ms = draw(st.none() | st.floats(0, 100))
    return Outcome(_ASK, due, sent, first, ended, tokens, code, load_ms=load_ms)


@given(outcomes())
def test_no_answer_counts_more_than_once(one: Outcome) -> None:
    halves = share_inside(one, 5.0) + share_inside(one.later_by(5.0), 5.0)
    assert 0 <= share_inside(one, 5.0) <= 1
    assert halves == pytest.approx(share_inside(one, 10.0), abs=1e-6) or one.ended == one.first


@given(st.lists(outcomes(), max_size=30))
def test_a_summary_of_anything(results: list[Outcome]) -> None:
    figures = summary(results, 10.0)
    assert sum(figures["codes"].values()) == figures["requests"]
    assert figures["ok"] == figures["codes"].get("ok", 0)
    done = sum(one.code in ("ok", "unfinished") for one in results)
    assert 0 <= figures["requests_per_second"] <= done / 10 + 0.001
    for name in ("ttft_ms", "per_token_ms", "end_to_end_ms", "lag_ms"):
        if figures[name] is not None:
            values = list(figures[name].values())
            assert values == sorted(values)
    if figures["cold"]:
        assert 0 <= figures["cold"]["share"] <= 1
