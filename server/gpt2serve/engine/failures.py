"""What could not be loaded, remembered for a while. Pure policy.

Requests that come meanwhile fail at once, and each failure in a row is remembered for longer.
"""

from __future__ import annotations

from dataclasses import dataclass

from gpt2serve.errors import ModelLoadFailed, ModelUnavailable


@dataclass(slots=True)
class _Failure:
    message: str
    until: float
    backoff: float
    kind: type[ModelUnavailable] = ModelLoadFailed


class Failures:
    def __init__(self, shortest: float, longest: float) -> None:
        """Seconds for which the first failure is remembered, and any at most."""
        self._shortest = shortest
        self._longest = longest
        self._known: dict[str, _Failure] = {}

    def __len__(self) -> int:
        return len(self._known)

    def __contains__(self, key: str) -> bool:
        return key in self._known

    def check(self, key: str, now: float) -> None:
        """Raise the error of a failure that is remembered, with the seconds that are left."""
        failure = self._known.get(key)
        if failure and now < failure.until:
            raise failure.kind(failure.message, retry_after=failure.until - now)
        # A failure that is over keeps its backoff until the next load ends; others are
        # forgotten here, so that the memory of failures stays bounded.
        for other in [k for k, f in self._known.items() if now > f.until + self._longest]:
            del self._known[other]

    def reason(self, key: str, now: float) -> str | None:
        failure = self._known.get(key)
        return failure.message if failure and now < failure.until else None

    def failed(self, key: str, message: str, now: float) -> ModelLoadFailed:
        """Returns the error for those that waited."""
        before = self._known.get(key)
        backoff = min(before.backoff * 2 if before else self._shortest, self._longest)
        self._known[key] = _Failure(message, now + backoff, backoff)
        return ModelLoadFailed(message, retry_after=backoff)

    def unavailable(self, key: str, error: ModelUnavailable, now: float) -> None:
        """Remembered for `error.retry_after` only: it is no failure of the model."""
        before = self._known.get(key)
        backoff = before.backoff if before else self._shortest / 2
        until = now + (error.retry_after or 0.0)
        self._known[key] = _Failure(str(error), until, backoff, type(error))

    def worked(self, key: str) -> None:
        """A load that went well wipes the slate."""
        self._known.pop(key, None)
