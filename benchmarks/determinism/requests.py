"""What is asked. Pure: the same number gives the same requests in the same orders."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

_SEED = 6
#: The preamble of the Constitution of the United States: the samples were trained on such words.
_PASSAGE = """\
We the People of the United States, in Order to form a more perfect Union, establish Justice,
insure domestic Tranquility, provide for the common defence, promote the general Welfare, and
secure the Blessings of Liberty to ourselves and our Posterity, do ordain and establish this
Constitution for the United States of America.""".split()  # noqa: SIM905
LONGEST_PROMPT = 24
#: llama.cpp's seeds have 32 bits.
_MOST_SEED = 2**32 - 2


@dataclass(frozen=True, slots=True)
class Request:
    prompt: str
    seed: int


def make(count: int) -> list[Request]:
    """`count` requests with prompts of 1 to `LONGEST_PROMPT` words, each with a seed of its own."""
    rng = random.Random(_SEED)
    seeds = rng.sample(range(_MOST_SEED), count)
    return [Request(_prompt(rng), seed) for seed in seeds]


def _prompt(rng: random.Random) -> str:
    length = rng.randint(1, LONGEST_PROMPT)
    begin = rng.randrange(len(_PASSAGE) - length + 1)
    return " ".join(_PASSAGE[begin : begin + length])


def another_order(count: int) -> list[int]:
    """The numbers below `count`, shuffled."""
    order = list(range(count))
    random.Random(_SEED + 1).shuffle(order)
    return order


def batches(order: Sequence[int], size: int) -> list[list[int]]:
    """`order` cut into pieces of `size`; the last may be shorter."""
    return [list(order[at : at + size]) for at in range(0, len(order), size)]
