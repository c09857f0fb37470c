"""What is remembered stays within bounds, and the last comes last."""

from __future__ import annotations

from collections import OrderedDict

from gpt2serve.engine.remember import remember


def test_what_was_put_in_longest_ago_is_forgotten() -> None:
    memory: OrderedDict[str, int] = OrderedDict()
    for number, key in enumerate("abcad"):
        remember(memory, key, number, most=3)
    assert list(memory.items()) == [("c", 2), ("a", 3), ("d", 4)]
