"""What sampling needs to know of one sequence."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from gpt2serve.engine.top_k import Floats, Ids

#: A bias that low bans the token, as OpenAI's documentation says of it.
BAN = -100.0


@dataclass(slots=True)
class SamplingRow:
    """`history` grows as tokens are generated."""

    do_sample: bool
    temperature: float
    top_k: int
    top_p: float
    repetition_penalty: float
    no_repeat_ngram_size: int
    min_tokens: int
    seed: int
    eos_token_ids: tuple[int, ...]
    wants_logprob: bool
    #: Prompt and generated tokens.
    history: list[int]
    min_p: float = 0.0
    typical_p: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    #: What is added to the logits of some tokens.
    bias: tuple[Ids, Floats] | None = None
    #: How many of the likeliest tokens are wanted in each place.
    top_logprobs: int = 0
    prompt_length: int = field(init=False)

    def __post_init__(self) -> None:
        self.prompt_length = len(self.history)

    @property
    def position(self) -> int:
        """Number of tokens generated so far."""
        return len(self.history) - self.prompt_length

    @property
    def generated(self) -> list[int]:
        return self.history[self.prompt_length :]

    @property
    def penalises_generated(self) -> bool:
        return self.presence_penalty != 0.0 or self.frequency_penalty != 0.0

    @property
    def edits_logits(self) -> bool:
        """Whether anything but the minimum length changes the logits before they are filtered."""
        return (
            self.repetition_penalty != 1.0
            or self.no_repeat_ngram_size > 0
            or self.penalises_generated
            or self.bias is not None
        )


def bias_of(logit_bias: Mapping[int, float]) -> tuple[Ids, Floats] | None:
    """`logit_bias` as a row takes it."""
    if not logit_bias:
        return None
    values = [value if value > BAN else -np.inf for value in logit_bias.values()]
    return np.array(list(logit_bias), dtype=np.int64), np.array(values, dtype=np.float32)
