"""No traffic whatsoever gets more tokens out of a bucket than its rate allows."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import given, settings
from hypothesis import strategies as st

from gpt2serve.api.token_bucket import Taken, TokenBucket

CAPACITY = 100
LARGEST = 250


@dataclass
class Granted:
    at: float
    taken: Taken
    used: int


#: Seconds until it comes, what it asks for, which share of that it uses, how long it runs.
requests_strategy = st.tuples(
    st.sampled_from([0.0, 0.0, 0.5, 3.0, 20.0, 100.0]),
    st.sampled_from([0, 1, 10, 50, 99, 100, 101, LARGEST]),
    st.sampled_from([0.0, 0.1, 0.5, 1.0]),
    st.sampled_from([0.0, 1.0, 10.0, 70.0]),
)


def play(requests: list[tuple[float, int, float, float]]) -> list[Granted]:
    """What was granted to requests that come and end in the order of time."""
    bucket, now = TokenBucket(CAPACITY, 0.0), 0.0
    granted: list[Granted] = []
    ends: list[tuple[float, Granted]] = []
    for wait, tokens, share, running in requests:
        now += wait
        for end in sorted((e for e in ends if e[0] <= now), key=lambda e: e[0]):
            ends.remove(end)
            bucket.give_back(end[1].taken, used=end[1].used, now=end[0])
            assert bucket.level(end[0]) <= CAPACITY
        level = bucket.level(now)
        taken = bucket.take(tokens, now)
        # It passes if there is enough, or if there could not be more.
        assert (taken is not None) == (level >= min(tokens, CAPACITY) - 1e-6)
        if taken is not None:
            granted.append(Granted(now, taken, round(tokens * share)))
            ends.append((now + running, granted[-1]))
    return granted


@settings(deadline=None, derandomize=True, max_examples=600)
@given(requests=st.lists(requests_strategy, min_size=1, max_size=40))
def test_no_window_holds_more_than_the_rate_and_one_bucket(
    requests: list[tuple[float, int, float, float]],
) -> None:
    granted = play(requests)
    for first, begin in enumerate(granted):
        used = 0
        for grant in granted[first:]:
            seconds = grant.at - begin.at
            # What runs may use all that it took; this one is the last of the window.
            most = used + grant.taken.tokens
            beyond = max(0, grant.taken.tokens - CAPACITY)
            assert most <= CAPACITY + CAPACITY * seconds / 60 + beyond + 1e-3
            used += grant.used


@settings(deadline=None, derandomize=True, max_examples=300)
@given(
    requests=st.lists(requests_strategy, max_size=20),
    tokens=st.integers(0, LARGEST),
    wait=st.floats(0, 50),
)
def test_who_waits_as_long_as_we_said_is_let_in(
    requests: list[tuple[float, int, float, float]], tokens: int, wait: float
) -> None:
    bucket, now = TokenBucket(CAPACITY, 0.0), 0.0
    for seconds, size, _, _ in requests:
        now += seconds
        bucket.take(size, now)
    now += wait
    until = bucket.seconds_until(tokens, now)
    if until > 0:
        assert bucket.take(tokens, now) is None
        assert bucket.take(tokens, now + until * 0.98 - 1e-3) is None
    assert bucket.take(tokens, now + until) is not None


def test_one_minute_fills_it() -> None:
    bucket = TokenBucket(600, 10.0)
    assert bucket.take(600, 10.0) is not None
    assert bucket.take(1, 10.0) is None
    assert bucket.seconds_until(1, 10.0) == 0.1
    assert bucket.seconds_until_full(10.0) == 60.0
    assert bucket.level(40.0) == 300
    assert bucket.level(1000.0) == 600


def test_what_was_not_used_comes_back_once() -> None:
    bucket = TokenBucket(600, 0.0)
    taken = bucket.take(400, 0.0)
    assert taken is not None
    bucket.give_back(taken, used=100, now=0.0)
    bucket.give_back(taken, used=0, now=0.0)
    assert bucket.level(0.0) == 500


def test_a_long_request_does_not_lose_its_rest_to_short_ones_beside_it() -> None:
    bucket = TokenBucket(600, 0.0)
    long = bucket.take(300, 0.0)
    assert long is not None
    for second in range(20):
        short = bucket.take(50, float(second))
        assert short is not None
        bucket.give_back(short, used=20, now=second + 0.5)
    before = bucket.level(20.0)
    bucket.give_back(long, used=100, now=20.0)
    assert bucket.level(20.0) == before + 200


def test_what_would_have_overflowed_does_not_come_back() -> None:
    bucket = TokenBucket(600, 0.0)
    slow = bucket.take(600, 0.0)
    assert slow is not None
    assert bucket.take(600, 60.0) is not None  # it is full again
    bucket.give_back(slow, used=0, now=60.0)
    assert bucket.level(60.0) == 0


def test_a_request_larger_than_the_bucket_is_paid_for_later() -> None:
    bucket = TokenBucket(60, 0.0)
    assert bucket.take(90, 0.0) is not None
    assert bucket.level(0.0) == -30
    assert bucket.seconds_until(60, 0.0) == 90.0
    assert bucket.take(90, 89.0) is None
    assert bucket.take(90, 90.0) is not None


def test_a_clock_that_goes_back_gives_nothing() -> None:
    bucket = TokenBucket(60, 100.0)
    assert bucket.take(60, 100.0) is not None
    assert bucket.level(50.0) == 0
    assert bucket.take(1, 50.0) is None
    assert bucket.level(101.0) == 1


def test_two_that_give_back_share_what_did_not_overflow() -> None:
    # Had neither taken anything, the bucket had been full all the time.
    bucket = TokenBucket(100, 0.0)
    one, two = bucket.take(50, 0.0), bucket.take(50, 0.0)
    assert one is not None
    assert two is not None
    assert bucket.take(50, 30.0) is not None
    bucket.give_back(one, used=0, now=30.0)
    bucket.give_back(two, used=0, now=30.0)
    assert bucket.level(30.0) == 50
