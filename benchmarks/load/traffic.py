"""What is asked, of which model, and when. Pure: everything follows from the seed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

#: Frequent English words. Each is one token of GPT-2 with a space before it, so a prompt has
#: about as many tokens as words whatever the tokenizer was trained on; servers tell exactly.
# fmt: off
WORDS = (
    "the", "and", "that", "have", "for", "not", "with", "you", "this", "but", "his", "from", "they",
    "say", "her", "she", "will", "one", "all", "would", "there", "their", "what", "out", "about",
    "who", "get", "which", "when", "make", "can", "like", "time", "just", "him", "know", "take",
    "people", "into", "year", "your", "good", "some", "could", "them", "see", "other", "than",
    "then", "now", "look", "only", "come", "its", "over", "think", "also", "back", "after", "use",
    "two", "how", "our", "work", "first", "well", "way", "even", "new", "want", "any", "these",
    "give", "day", "most", "us",
)
# fmt: on
#: Requests are drawn that many at a time when nobody knows how many there will be.
_BATCH = 256
_MAX_SEED = 2**31 - 1


@dataclass(frozen=True, slots=True)
class Ask:
    """One request. at: seconds after the start when it is due; a closed loop ignores it."""

    at: float
    model: str
    prompt: str
    tokens: int
    seed: int


@dataclass(frozen=True, slots=True)
class Lengths:
    """Log-normal numbers of tokens, cut off at `low` and `high`.

    sigma: standard deviation of the logarithm; 0 gives `median` each time.
    """

    median: float
    sigma: float
    low: int
    high: int

    def draw(self, count: int, rng: np.random.Generator) -> npt.NDArray[np.int64]:
        drawn = rng.lognormal(np.log(self.median), self.sigma, count)
        return np.clip(np.rint(drawn), self.low, self.high).astype(np.int64)


#: Like tweets: a prompt of a few words, an answer of one or two sentences.
TWEET_PROMPTS = Lengths(median=5, sigma=0.5, low=1, high=20)
TWEET_OUTPUTS = Lengths(median=28, sigma=0.45, low=10, high=60)


@dataclass(frozen=True)
class Mix:
    """What all requests of a measurement have in common.

    models: the most popular first. zipf: exponent of their popularity; 0 makes all equal.
    """

    models: tuple[str, ...]
    zipf: float = 1.0
    prompts: Lengths = TWEET_PROMPTS
    outputs: Lengths = TWEET_OUTPUTS
    seed: int = 0


class Traffic:
    """Draws requests. The same mix gives the same requests."""

    def __init__(self, mix: Mix) -> None:
        self._mix = mix
        self._rng = np.random.default_rng(mix.seed)
        self._ranks = np.cumsum(zipf(len(mix.models), mix.zipf))

    @property
    def rng(self) -> np.random.Generator:
        """For the times: `poisson_times(rate, seconds, traffic.rng)`."""
        return self._rng

    def at(self, times: npt.NDArray[np.float64]) -> list[Ask]:
        """A request for each of `times`, for an open loop."""
        count = len(times)
        # The last sum is 1 only up to rounding.
        ranks = np.searchsorted(self._ranks[:-1], self._rng.random(count), side="right")
        prompts = self._mix.prompts.draw(count, self._rng)
        outputs = self._mix.outputs.draw(count, self._rng)
        seeds = self._rng.integers(_MAX_SEED, size=count)
        return [
            Ask(
                float(times[n]),
                self._mix.models[ranks[n]],
                self._prompt(int(prompts[n])),
                int(outputs[n]),
                int(seeds[n]),
            )
            for n in range(count)
        ]

    def endless(self) -> Iterator[Ask]:
        """Requests for a closed loop."""
        while True:
            yield from self.at(np.zeros(_BATCH))

    def _prompt(self, words: int) -> str:
        return " ".join(WORDS[n] for n in self._rng.integers(len(WORDS), size=words))


def zipf(count: int, exponent: float) -> npt.NDArray[np.float64]:
    """Probabilities of `count` models, the most popular first: proportional to rank^-exponent."""
    weights = np.arange(1, count + 1, dtype=np.float64) ** -exponent
    shares: npt.NDArray[np.float64] = weights / weights.sum()
    return shares


def poisson_times(rate: float, seconds: float, rng: np.random.Generator) -> npt.NDArray[np.float64]:
    """When requests come that know nothing of each other: `rate` a second in these `seconds`.

    A Poisson process, given how many come: independent times, equally likely anywhere. Their
    number is not left to chance, so that short measurements get the load that they are meant to.
    """
    return np.sort(rng.uniform(0, seconds, round(rate * seconds)))


def burst_times(size: int, every: float, seconds: float) -> npt.NDArray[np.float64]:
    """`size` requests at once, every `every` seconds, beginning with the start."""
    return np.repeat(np.arange(0, seconds, every, dtype=np.float64), size)
