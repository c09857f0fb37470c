"""The model cache, one promise at a time."""

from __future__ import annotations

import pytest

from gpt2serve.engine.model_cache import ModelCache, State
from gpt2serve.errors import ModelLoadFailed, ModelTooLarge


def resident(cache: ModelCache, key: str, size: int, *, lease: bool = False) -> None:
    cache.acquire(key, size, 0.0)
    assert cache.start_loads(0.0) == [key]
    cache.loaded(key, size)
    if not lease:
        cache.release(key)


def test_one_load_however_many_ask() -> None:
    cache = ModelCache(10)
    assert cache.acquire("a", 5, 0.0) is State.BLOCKED
    assert cache.start_loads(0.0) == ["a"]
    assert cache.acquire("a", 5, 0.0) is State.LOADING
    assert cache.start_loads(0.0) == []
    cache.loaded("a", 5)
    assert cache.acquire("a", 5, 0.0) is State.RESIDENT


def test_least_recently_used_goes_first_and_no_more_than_needed() -> None:
    gone: list[str] = []
    cache = ModelCache(10, on_evict=gone.append)
    for key in "abcde":
        resident(cache, key, 2)
    cache.acquire("a", 2, 0.0)  # used again: now b is the oldest
    cache.release("a")
    resident(cache, "f", 3)
    assert gone == ["b", "c"]
    assert list(cache.resident()) == ["d", "e", "a", "f"]


def test_leased_and_pinned_models_stay() -> None:
    cache = ModelCache(10)
    resident(cache, "leased", 4, lease=True)
    resident(cache, "pinned", 4, lease=True)
    cache.pin("pinned")
    cache.release("pinned")
    assert cache.acquire("new", 5, 0.0) is State.BLOCKED
    assert cache.start_loads(0.0) == []
    assert not cache.evict("leased")
    assert not cache.evict("pinned")
    cache.release("leased")
    assert cache.start_loads(0.0) == ["new"]
    assert set(cache.resident()) == {"pinned"}


def test_a_waiting_lease_protects_the_model_that_was_just_loaded() -> None:
    cache = ModelCache(10)
    cache.acquire("a", 8, 0.0)
    cache.acquire("b", 8, 1.0)
    assert cache.start_loads(1.0) == ["a"]
    cache.loaded("a", 8)
    assert cache.start_loads(2.0) == []
    cache.release("a")
    assert cache.start_loads(3.0) == ["b"]


def test_room_goes_to_who_came_first_even_if_a_later_one_would_fit() -> None:
    cache = ModelCache(10)
    resident(cache, "old", 6, lease=True)
    cache.acquire("large", 8, 1.0)
    cache.acquire("small", 3, 2.0)
    cache.acquire("large", 8, 3.0)  # asking again is no reason to lose one's place
    assert cache.start_loads(3.0) == []
    assert cache.blocked_longer_than(1.5, 3.0)
    assert not cache.blocked_longer_than(2.0, 3.0)
    assert cache.longest_wait(3.0) == 2.0
    # Nobody waits for the large one any more: it is forgotten, and the small one's turn.
    cache.release("large")
    cache.release("large")
    assert cache.state("large", 3.0) == "cold"
    assert cache.start_loads(3.0) == ["small"]


def test_nothing_is_evicted_in_vain() -> None:
    gone: list[str] = []
    cache = ModelCache(10, on_evict=gone.append)
    resident(cache, "leased", 6, lease=True)
    resident(cache, "idle", 3)
    cache.acquire("large", 7, 0.0)
    assert cache.start_loads(0.0) == []
    assert gone == []


def test_what_can_never_fit_fails_at_once() -> None:
    cache = ModelCache(10)
    with pytest.raises(ModelTooLarge, match="--model-cache-bytes"):
        cache.acquire("huge", 11, 0.0)
    assert cache.state("huge", 0.0) == "cold"
    resident(cache, "pinned", 4, lease=True)
    cache.pin("pinned")
    with pytest.raises(ModelTooLarge):
        cache.acquire("large", 7, 0.0)
    assert cache.acquire("fits", 6, 0.0) is State.BLOCKED


def test_a_failure_is_remembered_for_longer_each_time_but_not_for_ever() -> None:
    cache = ModelCache(10, retry_min=1.0, retry_max=4.0)
    now = 0.0
    for backoff in (1.0, 2.0, 4.0, 4.0):
        cache.acquire("a", 5, now)
        cache.start_loads(now)
        cache.failed("a", "broken", now)
        assert cache.used == 0
        assert cache.state("a", now) == "failed"
        with pytest.raises(ModelLoadFailed, match="broken") as caught:
            cache.acquire("a", 5, now + backoff - 0.25)
        assert caught.value.retry_after == 0.25
        now += backoff
        assert cache.state("a", now) == "cold"
    cache.acquire("a", 5, now)
    cache.start_loads(now)
    cache.loaded("a", 5)
    cache.release("a")
    assert cache.evict("a")
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


def test_more_than_predicted_goes_as_soon_as_its_last_lease_ends() -> None:
    # The budget is a promise about memory: who measured too much must not stay over it.
    gone: list[str] = []
    cache = ModelCache(10, on_evict=gone.append)
    resident(cache, "a", 6, lease=True)
    cache.acquire("b", 4, 0.0)
    assert cache.start_loads(0.0) == ["b"]
    cache.loaded("b", 8)  # measured twice what was predicted
    assert cache.used == 14
    cache.check_integrity()
    cache.release("a")
    cache.check_integrity()
    assert gone == ["a"]
    assert cache.used == 8


def test_a_blocked_model_does_not_wait_for_ever_for_what_was_pinned_meanwhile() -> None:
    cache = ModelCache(10)
    resident(cache, "a", 6, lease=True)
    cache.acquire("large", 8, 0.0)
    assert cache.start_loads(0.0) == []
    cache.pin("a")
    cache.release("a")
    cache.acquire("small", 3, 1.0)
    # "large" can never fit now. It must not keep "small" from loading.
    assert cache.start_loads(1.0) == ["small"]
