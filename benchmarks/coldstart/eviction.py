"""Pushing a model out of gpt2serve's model cache, as other models do."""

from __future__ import annotations

from collections.abc import Callable

#: Tiny models, loaded one after the other until the large one is gone.
EVICTORS = tuple(f"small/s{number:02}" for number in range(40))


def evict(model: str, state_of: Callable[[str], str], load: Callable[[str], object]) -> None:
    """Load others until `model` is cold. Raises `RuntimeError` if it stays."""
    for other in EVICTORS:
        if state_of(model) == "cold":
            return
        load(other)
    if state_of(model) != "cold":
        raise RuntimeError(f"{model} is {state_of(model)} after {len(EVICTORS)} other loads.")
