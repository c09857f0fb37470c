"""Who has had how much, and what is kept free for others."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt2serve.engine.shares import Shares, leaves_room, most_for_one


@settings(deadline=None, derandomize=True)
@given(
    places=st.integers(1, 300),
    owners=st.integers(1, 20),
    times=st.sampled_from([1, 7]),
    turns=st.lists(st.integers(0, 19), max_size=400),
)
def test_nobody_gets_all_and_everybody_gets_some(
    places: int, owners: int, times: int, turns: list[int]
) -> None:
    """Whoever comes in whatever order: who has nothing finds a place."""
    has = [0] * owners
    for turn in turns:
        owner, free = turn % owners, places - sum(has)
        if free and leaves_room(has[owner], 1, free, times):
            has[owner] += 1
            assert has[owner] == 1 or has[owner] <= times * (places - sum(has))
    if places > owners * (times + 1):
        assert sum(has) < places


@pytest.mark.parametrize(
    ("has", "more", "free", "times", "room"),
    [
        (0, 32, 32, 7, True),  # who has nothing may take all that there is
        (27, 1, 5, 7, True),
        (28, 1, 4, 7, False),
        (20, 5, 12, 7, True),
        (25, 5, 7, 7, False),
        (127, 1, 129, 1, True),
        (128, 1, 128, 1, False),
    ],
)
def test_how_much_somebody_may_have(has: int, more: int, free: int, times: int, room: bool) -> None:
    assert leaves_room(has, more, free, times) is room


@pytest.mark.parametrize("times", [1, 7])
@pytest.mark.parametrize("total", [1, 2, 3, 7, 8, 31, 32, 256])
def test_the_most_that_who_is_alone_gets_one_by_one(total: int, times: int) -> None:
    has = 0
    while has < total and leaves_room(has, 1, total - has, times):
        has += 1
    assert most_for_one(total, times) == has


def test_a_step_is_paid_by_those_in_it() -> None:
    shares = Shares()
    shares.begin("a")
    assert not shares.contended
    shares.begin("b")
    assert shares.contended
    shares.charge({"a": 3, "b": 1}, 2.0)
    assert (shares.seconds("a"), shares.seconds("b")) == (1.5, 0.5)


def test_who_was_idle_has_no_claim_to_the_time_it_did_not_use() -> None:
    shares = Shares()
    for owner in ("a", "b"):
        shares.begin(owner)
    shares.charge({"a": 1}, 5.0)
    shares.charge({"b": 1}, 7.0)
    shares.begin("late")
    assert shares.seconds("late") == 5.0


def test_who_leaves_and_comes_back_has_gained_nothing() -> None:
    shares = Shares()
    for owner in ("a", "b"):
        shares.begin(owner)
    shares.charge({"a": 1}, 5.0)
    shares.end("a")
    shares.begin("a")
    assert shares.seconds("a") == 5.0
    shares.charge({"b": 1}, 6.0)
    shares.end("a")
    shares.begin("a")
    assert shares.seconds("a") == 6.0


def test_all_is_forgotten_when_nobody_works() -> None:
    shares = Shares()
    for _ in range(3):
        shares.begin("a")
    shares.charge({"a": 1}, 5.0)
    for _ in range(3):
        shares.end("a")
    shares.check_integrity()
    assert shares.seconds("a") == 0.0


def test_owners_that_come_and_go_are_not_remembered_for_ever() -> None:
    shares = Shares()
    shares.begin("stays")
    for n in range(1000):
        shares.begin(f"owner-{n}")
        shares.charge({f"owner-{n}": 1, "stays": 2}, 1.0)
        shares.end(f"owner-{n}")
    assert len(shares._seconds) < 10


@settings(deadline=None, derandomize=True, max_examples=200)
@given(
    steps=st.lists(
        st.tuples(st.sampled_from("abc"), st.sampled_from("+-.")), min_size=1, max_size=60
    )
)
def test_whoever_works_is_known(steps: list[tuple[str, str]]) -> None:
    shares, working = Shares(), dict.fromkeys("abc", 0)
    for owner, step in steps:
        if step == "+":
            shares.begin(owner)
            working[owner] += 1
        elif working[owner]:
            if step == "-":
                shares.end(owner)
                working[owner] -= 1
            else:
                shares.charge({owner: 1}, 1.0)
        shares.check_integrity()
        assert shares.contended == (sum(map(bool, working.values())) > 1)
