"""What all peers have in common: their options, the request they read, the answer they give.

Bodies are those of this project's `POST /generate`, so that one load client drives everything.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

#: How every system samples: the defaults that gpt2export writes into a package.
TEMPERATURE, TOP_K = 0.7, 50


@dataclass(frozen=True, slots=True)
class Wish:
    """One text of exactly `tokens` tokens."""

    model: str
    prompt: str
    tokens: int
    seed: int

    @classmethod
    def read(cls, body: Mapping[str, Any]) -> Wish:
        """Raises `KeyError` for what is missing."""
        return cls(body["model"], body["prompt"], body["max_new_tokens"], body["seed"])


@dataclass(frozen=True, slots=True)
class Text:
    """What a model made of a wish."""

    text: str
    prompt_tokens: int
    tokens: int


class Model(Protocol):
    def generate(self, wish: Wish) -> Text: ...


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model that was loaded just now. at: when, by `time.perf_counter`."""

    model: Model
    at: float = field(default_factory=time.perf_counter)

    def waited(self, asked: float) -> float:
        """Seconds that a request of that time waited for the load; 0 if it had ended before.

        Who comes while another request has the model loaded waits too, as in gpt2serve.
        """
        return max(0.0, self.at - asked)


def answer(wish: Wish, made: Text, load_seconds: float) -> dict[str, Any]:
    """load_seconds: how long the request waited for its model; 0 if it was in memory."""
    return {
        "model": wish.model,
        "generations": [{"text": made.text, "tokens": made.tokens}],
        "usage": {"prompt_tokens": made.prompt_tokens, "completion_tokens": made.tokens},
        "timing": {"load_ms": round(1000 * load_seconds, 3)},
    }


def parser(name: str, description: str | None) -> argparse.ArgumentParser:
    """A parser with what every peer needs to know."""
    made = argparse.ArgumentParser(
        prog=f"python -m benchmarks.models.peers.{name}", description=description
    )
    add = made.add_argument
    add("--checkpoints", type=Path, required=True, metavar="DIR", help="DIR/ID is a checkpoint")
    add("--cache", type=int, required=True, metavar="N", help="models that are kept in memory")
    add("--threads", type=int, required=True, metavar="N", help="threads that compute")
    add("--port", type=int, required=True, metavar="PORT", help="on 127.0.0.1")
    return made
