"""The list of all models: a hundred thousand of them, renewed behind the caller's back."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator

import pytest

from gpt2serve.engine.stores.backend import page_of, sort_key
from gpt2serve.engine.stores.catalog import SHARE, Catalog
from gpt2serve.errors import StoreUnavailable


class Source:
    """Counts how often it is gone through; its clock goes on by `takes` each time."""

    def __init__(self, ids: Iterable[str]) -> None:
        self.ids = list(ids)
        self.reads = 0
        self.now = 50.0
        self.takes = 0.0
        self.problem: StoreUnavailable | None = None
        self.renewed: list[set[str]] = []
        self.gate = threading.Event()
        self.gate.set()

    def catalog(self, refresh: float = 5.0) -> Catalog:
        return Catalog(
            self.read,
            refresh=refresh,
            clock=lambda: self.now,
            on_renewed=self.renewed.append,
        )

    def read(self) -> Iterator[str]:
        self.reads += 1
        assert self.gate.wait(30)
        yield from self.ids
        self.now += self.takes
        if self.problem is not None:
            raise self.problem


def page(catalog: Catalog, after: str = "", limit: int = 100) -> list[str]:
    return page_of(catalog.keys(), after, limit)


def pages(catalog: Catalog, size: int) -> Iterator[list[str]]:
    after = ""
    while found := page(catalog, after, size):
        yield found
        after = found[-1]


def test_a_hundred_thousand_models_are_gone_through_once() -> None:
    source = Source(f"user-{n % 997}/model-{n}" for n in range(100_000))
    catalog = source.catalog()
    seen = [model for found in pages(catalog, 1000) for model in found]
    assert seen == sorted(source.ids, key=sort_key)
    assert source.reads == 1
    assert page(catalog, "user-5/model-5", 3) == seen[seen.index("user-5/model-5") + 1 :][:3]
    assert page(catalog, "user-5/gone", 1) == [next(id_ for id_ in seen if id_ > "user-5/gone")]
    assert page(catalog, "zzz", 10) == []
    assert page(catalog, "", 0) == []


def test_it_is_renewed_only_when_somebody_asks() -> None:
    source = Source(["a"])
    catalog = source.catalog()
    assert page(catalog) == ["a"]
    source.now += 1000
    assert source.reads == 1
    source.ids.append("b")
    assert page(catalog) == ["a"]  # stale, and renewed meanwhile
    catalog.join()
    assert source.reads == 2
    assert page(catalog) == ["a", "b"]
    catalog.join()
    assert source.reads == 2
    assert source.renewed == [{"a"}, {"a", "b"}]


def test_while_it_is_renewed_nobody_waits_and_nobody_else_renews() -> None:
    source = Source(["a"])
    catalog = source.catalog(refresh=0)
    page(catalog)
    source.gate.clear()
    for _ in range(10):
        assert page(catalog) == ["a"]
    source.gate.set()
    catalog.join()
    assert source.reads == 2


@pytest.mark.parametrize(("takes", "wait"), [(0.1, 5.0), (3.0, 3.0 * SHARE)])
def test_a_slow_listing_takes_a_tenth_of_the_time_at_most(takes: float, wait: float) -> None:
    source = Source(["a"])
    source.takes = takes
    catalog = source.catalog()
    page(catalog)
    source.now += wait - 0.01
    page(catalog)
    catalog.join()
    assert source.reads == 1
    source.now += 0.02
    page(catalog)
    catalog.join()
    assert source.reads == 2


def test_many_first_callers_share_one_listing() -> None:
    source = Source(["a"])
    source.gate.clear()
    catalog = source.catalog()
    found: list[list[str]] = []
    threads = [threading.Thread(target=lambda: found.append(page(catalog))) for _ in range(5)]
    for thread in threads:
        thread.start()
    source.gate.set()
    for thread in threads:
        thread.join()
    assert (found, source.reads) == ([["a"]] * 5, 1)


def test_a_listing_that_fails_leaves_the_last_one() -> None:
    source = Source(["a"])
    catalog = source.catalog()
    page(catalog)
    source.problem = StoreUnavailable("away", retry_after=1.0)
    source.ids = []
    for _ in range(3):
        source.now += 5
        assert page(catalog) == ["a"]
        catalog.join()
    assert source.reads == 4


def test_a_first_listing_that_fails_is_not_tried_by_every_caller() -> None:
    source = Source(["a"])
    source.problem = StoreUnavailable("away", retry_after=1.0)
    catalog = source.catalog()
    for _ in range(3):
        with pytest.raises(StoreUnavailable, match="away"):
            page(catalog)
    assert source.reads == 1
    source.problem = None
    source.now += 5
    assert page(catalog) == ["a"]


def test_what_is_no_such_failure_is_not_hidden() -> None:
    def read() -> Iterator[str]:
        raise ValueError("a mistake of ours")
        yield

    catalog = Catalog(read, refresh=1, clock=lambda: 0.0, on_renewed=nothing)
    with pytest.raises(ValueError, match="ours"):
        page(catalog)


def nothing(ids: set[str]) -> None: ...
