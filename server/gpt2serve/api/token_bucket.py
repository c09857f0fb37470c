"""How many tokens somebody may still use. Pure: every time is handed in.

A bucket holds one minute's worth and fills evenly. A request takes at its begin what it may use
at most, and gives back at its end what it did not, so that the rate counts what was generated
while nobody can begin more than the bucket holds. A full bucket lets any request pass, however
large, and is in debt afterwards.
"""

from __future__ import annotations

from dataclasses import dataclass

_SECONDS = 60.0
#: Rounding of sums of times must not refuse who has waited as long as we said.
_ROUNDING = 1e-6


@dataclass(eq=False, slots=True)
class Taken:
    """What a request took. `peak`: the highest level of the bucket since then."""

    tokens: int
    peak: float


class TokenBucket:
    def __init__(self, per_minute: int, now: float, *, full: float = 1.0) -> None:
        """`full`: how full it is to begin with; 1 is full, below 0 is in debt."""
        self.capacity = per_minute
        self._level = full * per_minute
        self._at = now
        self._taken: set[Taken] = set()

    def level(self, now: float) -> float:
        """Tokens in it; below 0 after a request that was larger than the bucket."""
        passed = max(0.0, now - self._at)
        return min(float(self.capacity), self._level + passed * self.capacity / _SECONDS)

    def take(self, tokens: int, now: float) -> Taken | None:
        """None if there are not enough yet; `seconds_until` says when."""
        if self.seconds_until(tokens, now) > 0:
            return None
        self._fill(now)
        self._level -= tokens
        taken = Taken(tokens, peak=self._level)
        self._taken.add(taken)
        return taken

    def give_back(self, taken: Taken, *, used: int, now: float) -> None:
        """The request has ended and used only so many. Harmless if that was said already.

        The level becomes what it would be had the request taken no more than that from the
        begin: what the full bucket would have let overflow meanwhile does not come back.
        """
        if taken not in self._taken:
            return
        self._fill(now)
        self._taken.remove(taken)
        back = max(0.0, min(taken.tokens - used, self.capacity - taken.peak))
        self._level += back
        for other in self._taken:
            other.peak = max(other.peak, taken.peak + back)

    def seconds_until(self, tokens: int, now: float) -> float:
        """Until so many can be taken, if nobody else takes any; 0 if they can be now."""
        missing = min(tokens, self.capacity) - self.level(now)
        return missing / self.capacity * _SECONDS if missing > _ROUNDING else 0.0

    def seconds_until_full(self, now: float) -> float:
        return self.seconds_until(self.capacity, now)

    def _fill(self, now: float) -> None:
        self._level = self.level(now)
        self._at = max(self._at, now)
        for taken in self._taken:
            taken.peak = max(taken.peak, self._level)
