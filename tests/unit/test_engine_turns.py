"""Whose turn it is, among models that have work."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt2serve.engine.turns import PACKED_SHARE, PATIENCE, Turns


@dataclass
class Model:
    name: str
    packed: bool = True
    virtual_time: float = 0.0
    passed_over: int = 0


def play(turns: Turns, models: list[Model], seconds: dict[str, float], steps: int) -> list[str]:
    """Names of the models that made a step each."""
    names = []
    for _ in range(steps):
        model = turns.order(models)[0]
        took, begun = seconds[model.name], model.virtual_time
        model.virtual_time += took
        turns.spent(model, models, packed=model.packed, begun=begun, seconds=took)
        names.append(model.name)
    return names


def test_least_computing_time_first() -> None:
    models = [Model("a", virtual_time=2.0), Model("b", virtual_time=1.0), Model("c")]
    assert [model.name for model in Turns().order(models)] == ["c", "b", "a"]


def test_owners_take_turns_whatever_number_of_models_each_has() -> None:
    """One owner works in 50 models, the other in one."""
    models = [Model(f"a{n}") for n in range(50)] + [Model("b")]
    spent = {"a": 0.0, "b": 0.0}
    for _ in range(1000):
        first = Turns().order(models, lambda model: spent[model.name[0]])[0]
        first.virtual_time += 1.0
        spent[first.name[0]] += 1.0
    assert spent == {"a": 500.0, "b": 500.0}
    times = [model.virtual_time for model in models[:50]]
    assert max(times) - min(times) <= 1.0


def test_who_comes_has_no_advantage_over_who_used_what_nobody_wanted() -> None:
    turns, first, late = Turns(), Model("first"), Model("late")
    play(turns, [first], {"first": 1.0}, 100)
    turns.begin(late)
    assert late.virtual_time == 99.0
    assert play(turns, [first, late], {"first": 1.0, "late": 1.0}, 4) == ["late", "first"] * 2


def test_who_was_idle_claims_nothing_and_keeps_its_debt() -> None:
    turns, busy, idle = Turns(), Model("busy"), Model("idle", virtual_time=2.0)
    play(turns, [busy], {"busy": 1.0}, 2)
    turns.begin(idle)
    assert idle.virtual_time == 2.0
    play(turns, [busy], {"busy": 1.0}, 4)
    turns.begin(idle)
    assert idle.virtual_time == 5.0


def test_nobody_waits_for_long_after_a_slow_step() -> None:
    """In the flood, a step costs each sequence next to nothing."""
    flood, alone = Model("flood"), Model("alone", virtual_time=50.0)
    names = play(Turns(), [flood, alone], {"flood": 0.001, "alone": 0.005}, 100)
    at = [n for n, name in enumerate(names) if name == "alone"]
    assert at[0] == 2 * PATIENCE
    assert all(later - earlier == 2 * PATIENCE + 1 for earlier, later in pairwise(at))


def test_who_is_in_time_goes_by_time() -> None:
    """A flood beside many that are alone keeps what it has: patience grows with their number."""
    models = [Model("flood"), *(Model(f"alone {n}") for n in range(20))]
    seconds = {model.name: 0.005 for model in models} | {"flood": 0.001}
    names = play(Turns(), models, seconds, 1000)
    assert names.count("flood") == pytest.approx(1000 * 5 / 25, abs=10)


@given(
    seconds=st.lists(st.floats(0.001, 30), min_size=2, max_size=6),
    times=st.lists(st.floats(0, 1e6), min_size=6, max_size=6),
)
@settings(deadline=None, derandomize=True)
def test_nobody_starves(seconds: list[float], times: list[float]) -> None:
    models = [Model(str(n), virtual_time=times[n]) for n in range(len(seconds))]
    costs = {str(n): cost for n, cost in enumerate(seconds)}
    names = play(Turns(), models, costs, 40 * PATIENCE)
    # Those who are late at the same time go one after the other.
    longest = (PATIENCE + 1) * len(models)
    for model in models:
        at = [-1, *(n for n, name in enumerate(names) if name == model.name), len(names)]
        assert max(later - earlier for earlier, later in pairwise(at)) <= longest


@given(times=st.lists(st.floats(0, 10), max_size=20), packed=st.lists(st.booleans(), max_size=20))
@settings(deadline=None, derandomize=True)
def test_with_one_owner_the_order_is_that_of_the_models(
    times: list[float], packed: list[bool]
) -> None:
    models = [Model(str(n), p, t) for n, (t, p) in enumerate(zip(times, packed, strict=False))]
    assert Turns().order(models, lambda _: 3.5) == Turns().order(models)


def test_a_model_that_was_just_loaded_goes_first_and_then_waits() -> None:
    hot, cold = Model("hot", virtual_time=5.0), Model("cold", packed=False, virtual_time=5.0)
    played = play(Turns(), [hot, cold], {"hot": 1.0, "cold": 3.0}, 8)
    assert played == ["cold", "hot", "hot", "hot", "hot", "hot", "hot", "cold"]


@settings(deadline=None, derandomize=True, max_examples=100)
@given(
    cold=st.integers(1, 20),
    hot=st.integers(1, 3),
    cold_step=st.floats(0.001, 0.1),
    hot_step=st.floats(0.001, 0.02),
)
def test_however_many_are_loaded_packed_models_keep_their_share(
    cold: int, hot: int, cold_step: float, hot_step: float
) -> None:
    models = [Model(f"cold{n}", packed=False) for n in range(cold)]
    models += [Model(f"hot{n}") for n in range(hot)]
    seconds = {model.name: hot_step if model.packed else cold_step for model in models}
    played = play(Turns(), models, seconds, 400)
    packed = sum(seconds[name] for name in played if name.startswith("hot"))
    unpacked = sum(seconds[name] for name in played if name.startswith("cold"))
    one_each = PACKED_SHARE * cold_step + hot_step
    assert packed == pytest.approx(PACKED_SHARE * unpacked, abs=2 * one_each)
    # And within their class all get the same.
    for kind in ("cold", "hot"):
        times = [model.virtual_time for model in models if model.name.startswith(kind)]
        assert max(times) - min(times) <= max(cold_step, hot_step) * 1.001


def test_nothing_is_owed_for_a_time_without_work() -> None:
    turns, hot, cold = Turns(), Model("hot"), Model("cold", packed=False)
    play(turns, [cold], {"cold": 1.0}, 10)
    assert turns.order([cold]) == [cold]
    assert turns.order([hot, cold])[0] is cold
