"""Memory that is bounded: the things that were put into it last."""

from __future__ import annotations

from collections import OrderedDict
from typing import TypeVar

_Key = TypeVar("_Key")
_Value = TypeVar("_Value")


def remember(memory: OrderedDict[_Key, _Value], key: _Key, value: _Value, *, most: int) -> None:
    """Let it be the last that is forgotten; what was put in longest ago goes beyond `most`."""
    memory[key] = value
    memory.move_to_end(key)
    while len(memory) > most:
        memory.popitem(last=False)
