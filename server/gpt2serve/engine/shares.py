"""Who has had how much of the computing time, so that no owner of requests starves another.

Pure policy, after the virtual token counter of Sheng et al., "Fairness in Serving Large Language
Models" (OSDI 2024), with seconds for tokens: models of all sizes share one machine.

An owner is an API key, or whatever an application calls it. Requests without one have the owner
"", which is one like the others, except that it may fill queue and batch: it is not known to be
one person.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

#: Of what is shared, somebody may have so many times what stays free for others.
OF_THE_QUEUE = 1
OF_A_BATCH = 7


def leaves_room(has: int, more: int, free: int, times: int) -> bool:
    """Whether somebody who has `has` of something may take `more` of the `free` rest.

    The dynamic threshold of Choudhury and Hahne (1998): it keeps something free for whoever comes
    next, and shares evenly among many. Who has nothing may take what there is.
    """
    return has == 0 or has + more <= times * (free - more)


def most_for_one(total: int, times: int) -> int:
    """What `leaves_room` lets somebody have, one after the other, who is alone."""
    return max(1, total * times // (times + 1))


class Shares:
    """Seconds of computing, by owner, of those who have requests that are being worked on."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}
        self._working: Counter[str] = Counter()

    @property
    def contended(self) -> bool:
        """Whether there is anything to share."""
        return len(self._working) > 1

    def begin(self, owner: str) -> None:
        """One more request of `owner` is being worked on."""
        if owner not in self._working:
            # Who was idle has no claim to the time that it did not use.
            least = min((self._seconds[other] for other in self._working), default=0.0)
            self._seconds[owner] = max(self._seconds.get(owner, 0.0), least)
        self._working[owner] += 1

    def end(self, owner: str) -> None:
        self._working[owner] -= 1
        if self._working[owner] > 0:
            return
        del self._working[owner]
        least = min((self._seconds[other] for other in self._working), default=float("inf"))
        # Of those who are idle, only who has had more than others is worth remembering.
        self._seconds = {
            other: seconds
            for other, seconds in self._seconds.items()
            if other in self._working or seconds > least
        }

    def charge(self, rows: Mapping[str, int], seconds: float) -> None:
        """A step took `seconds` and had so many rows of each owner."""
        each = seconds / sum(rows.values())
        for owner, count in rows.items():
            self._seconds[owner] = self._seconds.get(owner, 0.0) + count * each

    def seconds(self, owner: str) -> float:
        return self._seconds.get(owner, 0.0)

    def check_integrity(self) -> None:
        assert all(count > 0 for count in self._working.values())  # noqa: S101
        assert self._working.keys() <= self._seconds.keys()  # noqa: S101
