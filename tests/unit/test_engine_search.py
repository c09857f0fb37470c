"""The search over a store: cards that are read behind the caller's back, and renewed."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path
from typing import Any

import pytest

from gpt2serve.engine.store import ModelStore
from gpt2serve.engine.stores import finder as finder_module
from gpt2serve.engine.stores.backend import Described, sort_key
from gpt2serve.engine.stores.finder import Finder, brief, card_in
from gpt2serve.package import MANIFEST_FILE, ModelCard, encode_manifest
from tests.engine_fakes import manifest, write_package

CPU = [("cpu", "int8"), ("cpu", "fp32")]


class Shelf:
    """Cards that can be changed, held back, and counted as they are read."""

    def __init__(self, **titles: str) -> None:
        self.titles = titles
        self.looks = 0
        self.reads: list[str] = []
        self.gate = threading.Event()
        self.gate.set()

    @property
    def keys(self) -> list[str]:
        """A new list each time, as of a catalog that was renewed."""
        return sorted(map(sort_key, self.titles))

    def finder(self) -> Finder:
        return Finder(self.describe, lambda ids: ids, clock=lambda: 0.0)

    def describe(self, model: str, known: Described | None) -> Described | None:
        assert self.gate.wait(30)
        self.looks += 1
        title = self.titles.get(model)
        if title is None:
            return None
        if known is not None and known.signature == hash(title):
            return known
        self.reads.append(model)
        return Described(ModelCard(title=title), hash(title))


def find(finder: Finder, keys: list[str], search: str) -> list[str]:
    return finder.find(keys, search, "", 100)


def test_until_cards_are_read_models_are_found_by_their_ids() -> None:
    shelf = Shelf(a="George", b="Thomas")
    shelf.gate.clear()
    finder, keys = shelf.finder(), shelf.keys
    assert find(finder, keys, "b") == ["b"]
    assert find(finder, keys, "george") == []
    assert finder.card("a") is None
    shelf.gate.set()
    finder.join()
    assert find(finder, keys, "george") == ["a"]
    assert finder.card("a") == ModelCard(title="George")


def test_cards_are_read_once_for_each_list_and_again_only_if_they_changed() -> None:
    shelf = Shelf(a="George", b="Thomas")
    finder, keys = shelf.finder(), shelf.keys
    for _ in range(3):
        find(finder, keys, "x")
        finder.join()
    assert (shelf.looks, shelf.reads) == (2, ["a", "b"])
    shelf.titles["b"] = "Tom"
    find(finder, shelf.keys, "x")
    finder.join()
    assert shelf.reads == ["a", "b", "b"]
    assert find(finder, keys, "thomas") == []
    assert find(finder, keys, "tom") == ["b"]


def test_new_and_deleted_models() -> None:
    shelf = Shelf(a="George", b="Thomas")
    finder = shelf.finder()
    find(finder, shelf.keys, "x")
    finder.join()
    del shelf.titles["a"]
    shelf.titles["c"] = "George too"
    keys = shelf.keys
    assert find(finder, keys, "george") == ["a"], "as it was a moment ago"
    finder.join()
    assert find(finder, keys, "george") == ["c"]
    assert finder.card("a") is None


def test_a_card_that_cannot_be_read_any_more_is_forgotten() -> None:
    shelf = Shelf(a="George")
    finder, keys = shelf.finder(), shelf.keys
    find(finder, keys, "x")
    finder.join()
    del shelf.titles["a"]
    again = list(keys)
    find(finder, again, "x")
    finder.join()
    assert find(finder, again, "george") == []
    assert find(finder, again, "a") == ["a"], "the list still has it"


def test_many_cards_come_in_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finder_module, "BATCH", 2)
    shelf = Shelf(**{f"m{n}": f"Title {n}" for n in range(5)})
    finder, keys = shelf.finder(), shelf.keys
    find(finder, keys, "x")
    finder.join()
    assert find(finder, keys, "title") == ["m0", "m1", "m2", "m3", "m4"]


def test_no_more_cards_are_remembered_than_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finder_module, "MOST_CARDS", 2)
    shelf = Shelf(a="One", b="One", c="One")
    finder, keys = shelf.finder(), shelf.keys
    find(finder, keys, "x")
    finder.join()
    assert find(finder, keys, "one") == ["a", "b"]
    assert find(finder, keys, "c") == ["c"]


def test_after_the_end_nothing_is_read_any_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finder_module, "BATCH", 1)
    shelf = Shelf(a="One", b="Two")
    shelf.gate.clear()
    finder = shelf.finder()
    find(finder, shelf.keys, "x")
    finder.close()
    shelf.gate.set()
    finder.join()
    assert shelf.reads == ["a"], "what had begun"
    find(finder, shelf.keys, "x")
    finder.join()
    assert shelf.reads == ["a"]


# -- a store ----------------------------------------------------------------------------------


def titled(store: Path, model: str, title: str, **options: Any) -> Path:
    return write_package(store, model, card=ModelCard(title=title, handle=f"@{model}"), **options)


def wait_for_cards(store: ModelStore) -> None:
    store._finder.join()


def test_a_folder_is_searched_by_id_title_and_handle(tmp_path: Path) -> None:
    titled(tmp_path, "me/one", "Señor Coffee")
    titled(tmp_path, "coffeebot", "Somebody")
    titled(tmp_path, "decoffee", "Somebody else")
    titled(tmp_path, "tea", "A Cup of Tea")
    store = ModelStore(tmp_path, CPU)
    assert store.list(search="coffee") == ["coffeebot", "decoffee"]
    wait_for_cards(store)
    assert store.list(search="COFFEE") == ["coffeebot", "me/one", "decoffee"]
    assert store.list(search="coff señ") == ["me/one"]
    assert store.list(search="@tea") == ["tea"]
    assert store.list(search="me/on") == ["me/one"]
    assert store.list(search="nobody") == []
    assert store.list(search="coffee", limit=1) == ["coffeebot"]
    assert store.list("coffeebot", search="coffee") == ["me/one", "decoffee"]
    assert store.list("me/one", search="coffee") == ["decoffee"]
    assert store.list(search="  ") == store.list()


def test_the_title_of_a_package_that_was_published_again(tmp_path: Path) -> None:
    package = titled(tmp_path, "a", "Old")
    store = ModelStore(tmp_path, CPU, clock=lambda: 0.0)  # a list takes no time, and is due again
    store.list(search="x")
    wait_for_cards(store)
    assert store.list(search="old") == ["a"]
    shutil.rmtree(package)
    titled(tmp_path, "a", "New")
    store.list(search="x")  # renews the list
    store._catalog.join()
    store.list(search="x")  # and with it the cards
    wait_for_cards(store)
    assert store._finder.card("a") == ModelCard(title="New", handle="@a")
    assert store.list(search="new") == ["a"]


def test_the_variant_that_is_served_has_the_title(tmp_path: Path) -> None:
    titled(tmp_path, "a", "Exact", precision="fp32")
    titled(tmp_path, "a", "Fast")
    store = ModelStore(tmp_path, CPU)
    store.list(search="x")
    wait_for_cards(store)
    assert store.list(search="fast") == ["a"]
    assert store.list(search="exact") == []


def test_broken_manifests_are_found_by_id(tmp_path: Path) -> None:
    (titled(tmp_path, "broken", "Title") / MANIFEST_FILE).write_text("{")
    store = ModelStore(tmp_path, CPU)
    store.list(search="x")
    wait_for_cards(store)
    assert store.list(search="broken") == ["broken"]
    assert store.list(search="title") == []


def test_a_list_without_a_search_reads_no_cards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    titled(tmp_path, "a", "Title")
    store = ModelStore(tmp_path, CPU)

    def never(*_: object) -> None:
        raise AssertionError("read")

    monkeypatch.setattr(store._backend, "card", never)
    assert store.list() == ["a"]
    wait_for_cards(store)


def test_among_some_models_only(tmp_path: Path) -> None:
    for model in ("a", "ab", "b"):
        titled(tmp_path, model, "Title")
    store = ModelStore(tmp_path, CPU)
    assert store.list(among={"ab", "b"}) == ["ab", "b"]
    assert store.list("ab", among={"ab", "b"}) == ["b"]
    assert store.list(search="a", among={"ab", "b"}) == ["ab"]
    assert store.list(among=set()) == []


# -- cards ------------------------------------------------------------------------------------


def test_the_card_in_a_manifest() -> None:
    card = ModelCard(title="Me", handle="@me", example_prompts=("a", "b"), picture="p")
    assert card_in(encode_manifest(manifest(card=card))) == ModelCard(
        title="Me", handle="@me", picture="p"
    )
    assert card_in(b"{") == card_in(b"[]") == card_in(b'{"card": 7}') == ModelCard()


def test_lists_carry_no_texts_without_end() -> None:
    card = brief(ModelCard(title="a" * 999, handle="b" * 999, picture="data:" + "c" * 5000))
    assert (len(card.title), len(card.handle), card.picture) == (200, 200, "")
