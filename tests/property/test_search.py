"""The search over many models finds what going through all of them finds, in the same order."""

from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st

from gpt2serve.engine.stores.backend import sort_key
from gpt2serve.engine.stores.search import SearchIndex
from gpt2serve.package import ModelCard

#: Few letters, so that there is something to be found; "İ" changes its length with its case.
PARTS = st.text("abA0._-", min_size=1, max_size=5).map(lambda text: "a" + text)
IDS = st.one_of(PARTS, st.tuples(PARTS, PARTS).map("/".join))
WORDS = st.text("abAB01._-@/éßSİ\U0001f916\x1f\n", max_size=3)
TEXTS = st.lists(WORDS, max_size=3).map(" ".join)
CARDS = st.builds(ModelCard, title=TEXTS, handle=TEXTS)
#: Most of what is typed is in some model.
SEARCHES = st.one_of(TEXTS, st.lists(st.text("abA0-", min_size=1, max_size=2)).map(" ".join))
MODELS = st.dictionaries(IDS, st.one_of(st.none(), CARDS), max_size=12)


def begins(word: str, text: str) -> bool:
    """Whether `word` occurs where no letter or digit stands before it."""
    places = [n for n in range(len(text)) if text.startswith(word, n)]
    return any(n == 0 or not text[n - 1].isalnum() or not word[0].isalnum() for n in places)


def by_going_through_all(models: dict[str, ModelCard | None], search: str) -> list[str]:
    words = search.casefold().split()
    ranked = []
    for model, card in models.items():
        shown = [model, card.title, card.handle] if card else [model]
        texts = [text for one in shown for text in one.casefold().split()]
        if all(any(word in text for text in texts) for word in words):
            first = all(any(begins(word, text) for text in texts) for word in words)
            typed = model == search.strip()
            ranked.append((not typed, not first, sort_key(model), model))
    return [model for *_, model in sorted(ranked)]


def index_of(models: dict[str, ModelCard | None]) -> SearchIndex:
    cards = {model: card for model, card in models.items() if card is not None}
    return SearchIndex(sorted(map(sort_key, models)), cards)


@given(MODELS, SEARCHES)
@example({"a/b": None, "a-b": None, "ab": None}, "b")
@example({"a/b": None, "b": None}, " b ")
def test_finds_the_same(models: dict[str, ModelCard | None], search: str) -> None:
    assert index_of(models).find(search, limit=1000) == by_going_through_all(models, search)


@given(MODELS, SEARCHES, st.integers(1, 4))
@example({"ab": None, "b": None}, "b", 1)
@example({"a/b": None, "b": None, "b-a": None}, "b", 1)
def test_pages_join_to_the_whole(
    models: dict[str, ModelCard | None], search: str, size: int
) -> None:
    index = index_of(models)
    found = index.find(search, limit=size)
    while more := index.find(search, found[-1] if found else "", size):
        found += more
        assert len(found) <= len(models), "a model comes twice"
    assert found == by_going_through_all(models, search)


@given(MODELS, SEARCHES, IDS)
def test_a_place_that_has_gone_is_a_place_still(
    models: dict[str, ModelCard | None], search: str, gone: str
) -> None:
    """A model without a card that was deleted while somebody turned the page."""
    before = by_going_through_all(models | {gone: None}, search)
    models.pop(gone, None)
    if gone in before:
        rest = before[before.index(gone) + 1 :]
        assert index_of(models).find(search, gone, 1000) == rest
