"""How much is measured, and how much disturbs. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass

QUIET, STORM, LONG_SAME, LONG_OTHER, LEAVING = SITUATIONS = (
    "quiet",
    "cold loads",
    "long prompts, same model",
    "long prompts, another model",
    "clients that leave",
)


@dataclass(frozen=True)
class Plan:
    """seconds: of each situation, in each round. tokens: of an answer that is streamed.

    streams: clients of the hot model. tries: how often a disturbed measurement is made.
    storm_clients: each with one cold request at a time. long_every: seconds from one long prompt
    to the next. leave_rate: clients a second that leave after `leave_after` tokens.
    """

    rounds: int
    seconds: float
    tokens: int
    streams: int
    tries: int
    storm_clients: int = 4
    long_every: float = 2.0
    leave_rate: float = 10.0
    leave_after: int = 5

    @property
    def cold_models(self) -> int:
        """Enough for each to be asked for only once, also if one loads in 25 ms."""
        seconds = self.rounds * self.tries * (self.seconds + 1) + 2  # 2: for warming up
        return math.ceil(40 * seconds)
