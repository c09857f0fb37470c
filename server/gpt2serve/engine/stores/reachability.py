"""Pure policy: whether a store that failed is to be asked again."""

from __future__ import annotations


class Reachability:
    """A store that did not answer is left alone for `pause` seconds, then one request tries.

    Not thread-safe: its owner has a lock. Times are in seconds, by the owner's clock.
    """

    def __init__(self, pause: float) -> None:
        self._pause = pause
        self._failing = False
        self._until = 0.0

    @property
    def failing(self) -> bool:
        """Whether the last attempt failed; nobody but a probe is to ask the store."""
        return self._failing

    def failed(self, now: float) -> None:
        self._failing = True
        self._until = now + self._pause

    def worked(self) -> None:
        self._failing = False

    def take_probe(self, now: float) -> bool:
        """True to one caller when the pause is over; the next may try a pause later."""
        if not self._failing or now < self._until:
            return False
        self._until = now + self._pause
        return True

    def retry_after(self, now: float) -> float:
        return max(self._until - now, 1.0)
