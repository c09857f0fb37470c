"""The model cache, one promise at a time."""

from __future__ import annotations

import pytest

from gpt2serve.engine.model_cache import ModelCache, State
from gpt2serve.errors import ModelLoadFailed, ModelTooLarge, ModelUnavailable


class Gone(list[tuple[str, str]]):
    """What was evicted, and why."""

    def __call__(self, key: str, reason: str) -> None:
        self.append((key, reason))


def resident(
    cache: ModelCache, key: str, size: int, *, lease: bool = False, now: float = 0.0
) -> None:
    cache.acquire(key, size, now)
    assert cache.start_loads(now) == [key]
    cache.loaded(key, size, now)
    if not lease:
        cache.release(key, now)


def test_one_load_however_many_ask() -> None:
    cache = ModelCache(10)
    assert cache.acquire("a", 5, 0.0) is State.BLOCKED
    assert cache.start_loads(0.0) == ["a"]
    assert cache.acquire("a", 5, 0.0) is State.LOADING
    assert cache.start_loads(0.0) == []
    cache.loaded("a", 5, 0.0)
    assert cache.acquire("a", 5, 0.0) is State.RESIDENT


def test_least_recently_used_goes_first_and_no_more_than_needed() -> None:
    gone = Gone()
    cache = ModelCache(10, on_evict=gone)
    for key in "abcde":
        resident(cache, key, 2)
    cache.acquire("a", 2, 0.0)  # used again: now b is the oldest
    cache.release("a", 0.0)
    resident(cache, "f", 3)
    assert gone == [("b", "room"), ("c", "room")]
    assert list(cache.resident()) == ["d", "e", "a", "f"]


def test_leased_and_pinned_models_stay() -> None:
    cache = ModelCache(10)
    resident(cache, "leased", 4, lease=True)
    resident(cache, "pinned", 4)
    cache.pin("pinned")
    assert cache.acquire("new", 5, 0.0) is State.BLOCKED
    assert cache.start_loads(0.0) == []
    cache.release("leased", 0.0)
    assert cache.start_loads(0.0) == ["new"]
    assert set(cache.resident()) == {"pinned"}


def test_a_waiting_lease_protects_the_model_that_was_just_loaded() -> None:
    cache = ModelCache(10)
    cache.acquire("a", 8, 0.0)
    cache.acquire("b", 8, 1.0)
    assert cache.start_loads(1.0) == ["a"]
    cache.loaded("a", 8, 2.0)
    assert cache.start_loads(2.0) == []
    cache.release("a", 3.0)
    assert cache.start_loads(3.0) == ["b"]


def test_room_goes_to_who_came_first_even_if_a_later_one_would_fit() -> None:
    cache = ModelCache(10)
    resident(cache, "old", 6, lease=True)
    cache.acquire("large", 8, 1.0)
    cache.acquire("small", 3, 2.0)
    cache.acquire("large", 8, 3.0)  # asking again is no reason to lose one's place
    assert cache.start_loads(3.0) == []
    assert cache.waited_for_since == 1.0
    # Nobody waits for the large one any more: it is forgotten, and the small one's turn.
    cache.release("large", 3.0)
    cache.release("large", 3.0)
    assert cache.state("large", 3.0) == "cold"
    assert cache.start_loads(3.0) == ["small"]


def test_nothing_is_evicted_in_vain() -> None:
    gone = Gone()
    cache = ModelCache(10, on_evict=gone)
    resident(cache, "leased", 6, lease=True)
    resident(cache, "idle", 3)
    cache.acquire("large", 7, 0.0)
    assert cache.start_loads(0.0) == []
    assert gone == []


def test_what_can_never_fit_fails_at_once() -> None:
    cache = ModelCache(10)
    with pytest.raises(ModelTooLarge, match="--model-cache-bytes"):
        cache.acquire("huge", 11, 0.0, local=False)
    assert cache.state("huge", 0.0) == "cold"
    resident(cache, "pinned", 4)
    cache.pin("pinned")
    with pytest.raises(ModelTooLarge):
        cache.acquire("large", 7, 0.0)
    assert cache.acquire("fits", 6, 0.0) is State.BLOCKED


# -- fetches ----------------------------------------------------------------------------------


def test_a_fetch_reserves_nothing_and_keeps_nobody_waiting() -> None:
    cache = ModelCache(10)
    assert cache.acquire("far", 8, 0.0, local=False) is State.FETCHING
    assert cache.state("far", 0.0) == "fetching"
    assert cache.used == 0
    resident(cache, "near", 8, now=1.0)
    # It takes its place in line when it is there, and its wait counts from then.
    cache.acquire("near", 8, 2.0)
    cache.fetched("far", 50.0)
    assert cache.start_loads(50.0) == []
    assert cache.held_back(5.0, 54.0) == set()
    assert cache.held_back(5.0, 56.0) == {"near"}
    assert cache.waited_for_since == 0.0


def test_a_fetch_that_nobody_waits_for_is_forgotten() -> None:
    gone: list[str] = []
    cache = ModelCache(10, on_gone=gone.append)
    cache.acquire("far", 8, 0.0, local=False)
    cache.acquire("far", 8, 0.0, local=False)
    cache.release("far", 1.0)
    assert cache.state("far", 1.0) == "fetching"
    cache.release("far", 1.0)
    assert cache.state("far", 1.0) == "cold"
    assert gone == ["far"]


def test_files_that_were_gone_are_fetched_again() -> None:
    cache = ModelCache(10)
    cache.acquire("a", 8, 0.0)
    cache.start_loads(0.0)
    cache.fetch_again("a", 1.0)
    assert (cache.state("a", 1.0), cache.used) == ("fetching", 0)
    cache.fetched("a", 2.0)
    assert cache.start_loads(2.0) == ["a"]


# -- failures ---------------------------------------------------------------------------------


def test_a_failure_is_remembered_for_longer_each_time_but_not_for_ever() -> None:
    cache = ModelCache(10, retry_min=1.0, retry_max=4.0)
    now = 0.0
    for backoff in (1.0, 2.0, 4.0, 4.0):
        cache.acquire("a", 5, now)
        cache.start_loads(now)
        cache.failed("a", "broken", now)
        assert cache.used == 0
        assert cache.state("a", now) == "failed"
        assert cache.failure("a", now) == "broken"
        with pytest.raises(ModelLoadFailed, match="broken") as caught:
            cache.acquire("a", 5, now + backoff - 0.25)
        assert caught.value.retry_after == 0.25
        now += backoff
        assert cache.state("a", now) == "cold"
        assert cache.failure("a", now) is None
    resident(cache, "a", 5, now=now)
    cache.unload("a")
    # A load that went well wipes the slate.
    cache.acquire("a", 5, now)
    cache.start_loads(now)
    cache.failed("a", "broken again", now)
    assert cache.acquire("a", 5, now + 1.0) is State.BLOCKED


def test_memory_of_failures_is_bounded() -> None:
    cache = ModelCache(10, retry_min=1.0, retry_max=4.0)
    for n in range(1000):
        key, now = f"model-{n}", float(n)
        cache.acquire(key, 5, now)
        cache.start_loads(now)
        cache.failed(key, "broken", now)
    assert len(cache._failures) < 10


class Away(ModelUnavailable):
    """As a store that cannot be reached says it."""


def test_a_store_that_is_away_is_no_failure_of_the_model() -> None:
    cache = ModelCache(10, retry_min=1.0, retry_max=64.0)
    now = 0.0
    for _ in range(3):  # the wait is the one that was said, however often
        cache.acquire("a", 5, now, local=False)
        cache.unavailable("a", Away("no answer", retry_after=5.0), now)
        with pytest.raises(Away, match="no answer") as caught:
            cache.acquire("a", 5, now + 4.0)
        assert caught.value.retry_after == 1.0
        now += 5.0
    cache.acquire("a", 5, now)
    cache.start_loads(now)
    assert cache.failed("a", "broken", now).retry_after == 1.0


# -- orders -----------------------------------------------------------------------------------


def test_more_than_predicted_goes_as_soon_as_its_last_lease_ends() -> None:
    # The budget is a promise about memory: who measured too much must not stay over it.
    gone = Gone()
    cache = ModelCache(10, on_evict=gone)
    resident(cache, "a", 6, lease=True)
    cache.acquire("b", 4, 0.0)
    assert cache.start_loads(0.0) == ["b"]
    cache.loaded("b", 8, 0.0)  # measured twice what was predicted
    assert cache.used == 14
    cache.check_integrity()
    cache.release("a", 0.0)
    cache.check_integrity()
    assert gone == [("a", "room")]
    assert cache.used == 8


def test_a_blocked_model_does_not_wait_for_ever_for_what_was_pinned_meanwhile() -> None:
    cache = ModelCache(10)
    resident(cache, "a", 6, lease=True)
    cache.acquire("large", 8, 0.0)
    assert cache.start_loads(0.0) == []
    cache.pin("a")
    cache.release("a", 0.0)
    cache.acquire("small", 3, 1.0)
    # "large" can never fit now. It must not keep "small" from loading.
    assert cache.start_loads(1.0) == ["small"]
    assert set(cache.take_impossible()) == {"large"}


def test_what_is_not_pinned_any_more_makes_room() -> None:
    gone = Gone()
    cache = ModelCache(10, on_evict=gone)
    resident(cache, "a", 6)
    cache.pin("a")
    cache.unpin("a")
    assert cache.state("a", 0.0) == "resident"  # it may stay while nobody needs its room
    resident(cache, "b", 6)
    assert gone == [("a", "room")]
    for order in (cache.pin, cache.unpin, cache.unload):
        order("never-heard-of")


def test_what_is_pinned_comes_even_if_nobody_waits_for_it() -> None:
    cache = ModelCache(10)
    for local in (True, False):
        cache.acquire("a", 6, 0.0, local=local)
        cache.pin("a")
        cache.release("a", 0.0)
        assert cache.state("a", 0.0) == ("loading" if local else "fetching")
        cache.unpin("a")
        assert cache.state("a", 0.0) == "cold"


@pytest.mark.parametrize("reason", ["replaced", "deleted"])
def test_a_retired_version_goes_with_its_last_lease_pinned_or_not(reason: str) -> None:
    gone = Gone()
    cache = ModelCache(10, on_evict=gone)
    resident(cache, "a", 6, lease=True)
    cache.pin("a")
    cache.retire("a", reason)  # type: ignore[arg-type]
    cache.pin("a")  # too late
    cache.unload("a")  # it goes anyway, and the reason stays
    with pytest.raises(AssertionError, match="no new leases"):
        cache.acquire("a", 6, 0.0)
    assert gone == []
    cache.release("a", 0.0)
    assert gone == [("a", reason)]
    resident(cache, "b", 6)
    cache.retire("b", reason)  # type: ignore[arg-type]
    assert gone[1:] == [("b", reason)]


def test_what_is_retired_while_it_loads_goes_when_it_is_there() -> None:
    gone = Gone()
    cache = ModelCache(10, on_evict=gone)
    cache.acquire("a", 6, 0.0)
    cache.start_loads(0.0)
    cache.retire("a", "replaced")
    cache.release("a", 0.0)
    assert cache.used == 6  # a load cannot be called back
    cache.loaded("a", 6, 1.0)
    assert gone == [("a", "replaced")]
    assert cache.used == 0


def test_unload_waits_for_leases_and_serves_until_then() -> None:
    gone = Gone()
    cache = ModelCache(10, on_evict=gone)
    resident(cache, "a", 6, lease=True)
    cache.pin("a")
    cache.unload("a")
    assert cache.acquire("a", 6, 1.0) is State.RESIDENT
    cache.release("a", 2.0)
    assert gone == []
    cache.release("a", 3.0)
    assert gone == [("a", "unload")]
    # Whoever wants it pinned or loaded later takes the order back.
    for again in (cache.pin, cache.reinstate):
        resident(cache, "b", 6, lease=True)
        cache.unload("b")
        again("b")
        cache.release("b", 4.0)
        assert cache.state("b", 4.0) == "resident"
        cache.unload("b")


def test_what_was_not_used_for_long_goes_and_pinned_models_do_not() -> None:
    gone = Gone()
    cache = ModelCache(10, on_evict=gone)
    resident(cache, "pinned", 1)
    cache.pin("pinned")
    resident(cache, "a", 2, now=1.0)
    resident(cache, "b", 2, now=2.0)
    resident(cache, "leased", 2, lease=True, now=0.0)
    assert cache.next_expiry(5.0) == 6.0
    cache.acquire("a", 2, 3.0)
    cache.release("a", 9.0)  # a use counts until its end
    assert cache.next_expiry(5.0) == 7.0
    cache.expire(7.0, 5.0)
    assert gone == [("b", "ttl")]
    assert cache.next_expiry(5.0) == 14.0
    cache.expire(100.0, 5.0)
    assert set(cache.resident()) == {"pinned", "leased"}
    assert cache.next_expiry(5.0) is None


# -- fairness ---------------------------------------------------------------------------------


def test_only_as_many_are_held_back_as_must_make_room_those_that_are_done_soonest() -> None:
    cache = ModelCache(10)
    for now, key in enumerate("abc"):
        resident(cache, key, 3, lease=True, now=now)
    for key in "aac":  # "a" is the busiest
        cache.acquire(key, 3, 5.0)
    cache.acquire("new", 3, 10.0)
    assert cache.start_loads(10.0) == []
    assert cache.held_back(2.0, 12.0) == set()
    assert cache.held_back(2.0, 12.1) == {"b"}
    # Others may have less to do for a moment: that must not pass the burden on to them.
    cache.acquire("b", 3, 12.2)
    cache.release("c", 12.2)
    assert cache.held_back(2.0, 12.4) == {"b"}
    cache.release("b", 12.4)
    cache.release("b", 12.5)
    assert cache.start_loads(12.5) == ["new"]
    assert cache.held_back(2.0, 20.0) == set()


def test_what_is_idle_is_held_back_before_what_works() -> None:
    cache = ModelCache(10)
    resident(cache, "works", 5, lease=True)
    resident(cache, "idle", 3)
    cache.acquire("new", 7, 1.0)
    assert cache.start_loads(1.0) == []
    assert cache.held_back(1.0, 3.0) == {"works", "idle"}
    cache.release("new", 3.0)
    cache.acquire("small", 4, 4.0)
    assert cache.start_loads(4.0) == ["small"]


def test_who_gets_its_turn_has_it_for_as_long_as_the_others() -> None:
    cache = ModelCache(10)
    resident(cache, "a", 8, lease=True)
    cache.acquire("b", 8, 1.0)
    cache.acquire("c", 8, 1.5)
    assert cache.held_back(2.0, 3.5) == {"a"}
    cache.release("a", 3.5)
    assert cache.start_loads(3.5) == ["b"]
    cache.loaded("b", 8, 4.0)
    # "c" has waited longer than that, but "b" has only just begun.
    assert cache.held_back(2.0, 5.9) == set()
    assert cache.held_back(2.0, 6.1) == {"b"}


def test_who_ranks_lower_comes_first_and_is_held_room_for() -> None:
    rank = {"a": 2.0, "b": 2.0, "c": 1.0}
    cache = ModelCache(10, rank=lambda key: rank[key])
    cache.acquire("x", 10, 0.0)
    rank["x"] = 0.0
    assert cache.start_loads(0.0) == ["x"]
    cache.loaded("x", 10, 0.0)
    for key in "abc":
        cache.acquire(key, 5, 0.0)
    assert cache.start_loads(0.0) == []
    assert cache.held_back(1.0, 2.0) == {"x"}
    assert cache._held_for == "c"
    cache.release("x", 2.0)
    assert cache.start_loads(2.0) == ["c", "a"]
