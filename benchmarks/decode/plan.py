"""What is measured, how often, and what is shortened because it takes too long. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

SIZES = (1, 2, 5, 8, 16, 32, 64)
PROMPTS = (8, 64, 512)
ROUNDS = 5
NEW_TOKENS = 32
QUICK_SIZES, QUICK_PROMPTS = (1, 5, 16, 32), (8,)
QUICK_ROUNDS, QUICK_NEW_TOKENS = 2, 16

#: A cell is measured again until it has had all rounds, or another one would exceed this.
CELL_SECONDS = 60.0
#: Where a generation is expected to take longer than this, only the prompts are read.
MOST_SECONDS = 25.0

#: Prompt tokens that gpt2serve, by default, reads between two decode steps.
PREFILL_CHUNK = 128
#: Steps in which all texts of a batch should grow together.
LEAST_TOGETHER = 8

#: Seconds for a step, and for a token in it, on two cores: rough, and only for what is shortened.
#: A token takes 0.25 GFLOP; fp32 is taken to run at 150 GFLOP/s and 8-bit weights at twice that.
_COSTS = {"fp32": (0.025, 0.25 / 150), "int8": (0.008, 0.25 / 300), "q8_0": (0.008, 0.25 / 300)}
#: A GPU is fast enough for everything.
_NO_COST = (0.0, 0.0)


@dataclass(frozen=True)
class Cell:
    """`batch` texts that continue prompts of `prompt` tokens."""

    batch: int
    prompt: int

    def new_tokens(self, least: int) -> int:
        """Tokens of each text: enough for all to grow together for some steps.

        An engine with continuous batching reads prompts in turn and gives a token to those that
        are read after each chunk. With too few tokens the first texts would end before the last
        begin, and there would be no step of the whole batch to measure.
        """
        chunks = math.ceil(self.batch * self.prompt / PREFILL_CHUNK)
        return max(least, chunks + LEAST_TOGETHER)


def cells(sizes: Sequence[int], prompts: Sequence[int]) -> list[Cell]:
    return [Cell(batch, prompt) for prompt in prompts for batch in sizes]


def expected_seconds(precision: str, cell: Cell, tokens: int) -> float:
    """Of one generation on two cores, roughly."""
    step, token = _COSTS.get(precision, _NO_COST)
    return tokens * step + cell.batch * (cell.prompt + tokens) * token


def is_shortened(precision: str, cell: Cell, tokens: int) -> bool:
    """Whether the texts get one token each, which tells how fast prompts are read."""
    return expected_seconds(precision, cell, tokens) > MOST_SECONDS


def wants_round(spent: Sequence[float], rounds: int, most: float = CELL_SECONDS) -> bool:
    """Whether a cell is measured once more. spent: seconds of each of its rounds so far."""
    if len(spent) >= rounds:
        return False
    return not spent or sum(spent) + sum(spent) / len(spent) <= most
