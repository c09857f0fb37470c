"""Shares of a list: each item in exactly one, and what is no share is refused."""

from __future__ import annotations

import argparse

import pytest

from gpt2export.share import Share, parse_share


@pytest.mark.parametrize("count", [1, 2, 7, 30])
def test_each_item_is_in_one_share(count: int) -> None:
    items = list(range(20))
    shares = [Share(index, count).of(items) for index in range(count)]
    assert sorted(item for share in shares for item in share) == items
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_alone_it_is_everything() -> None:
    assert Share().of("abc") == ["a", "b", "c"]
    assert parse_share("0/1") == Share()
    assert parse_share("3/20").of(range(50)) == [3, 23, 43]


@pytest.mark.parametrize("text", ["", "1", "20/20", "0/0", "-1/2", "1/2/3", "a/b", " 0/2"])
def test_what_is_no_share(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError):
        parse_share(text)
