"""Who makes a request, what it may do, and what it has left.

`ANYBODY` where there are no keys; a `KeyHolder` where there are.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from typing import ParamSpec, Protocol, TypeVar

from gpt2serve.api.key_file import ApiKey
from gpt2serve.api.token_bucket import Taken, TokenBucket
from gpt2serve.engine.shares import OF_THE_QUEUE, most_for_one
from gpt2serve.errors import Gpt2ServeError

#: What one key has done in threads at the same time. All share those of the event loop, which are
#: five or more: tokenising, searching and asking the store take milliseconds to seconds.
THREADS_EACH = 2
#: Loads of models under way for those who did not want to wait for them, for each key: they take no
#: place in the queue.
LOADS_EACH = 4

_P = ParamSpec("_P")
_T = TypeVar("_T")


class ModelNotAllowed(Gpt2ServeError):
    """The same whether there is such a model or not."""

    code = "model_not_allowed"

    def __init__(self, model: str) -> None:
        super().__init__(f"This key may not use the model {model!r}.")
        self.model = model


class RateLimited(Gpt2ServeError):
    code = "rate_limited"

    def __init__(self, rate: int, tokens: int, retry_after: float) -> None:
        super().__init__(
            f"This key may use {rate} tokens a minute, and the request takes up to {tokens}, "
            f"prompt included; there are enough in {retry_after:.1f} seconds."
        )
        self.retry_after = retry_after


class Sized(Protocol):
    """A request whose greatest size is known."""

    @property
    def most_tokens(self) -> int: ...


class Charge:
    """What a request has reserved. This one is nothing."""

    def settle(self, used: int) -> None:
        """The request has ended and used `used` tokens; the rest goes back. Idempotent."""


class Caller:
    """Who makes a request, and what it may do. This one is anybody, and may do all."""

    #: Names the key in the log; the owner of requests in the engine.
    name = ""

    @property
    def allowed(self) -> Callable[[str], bool] | None:
        """Tells of an id whether the caller may use that model; None if it may use all."""
        return None

    def check_model(self, model: str) -> None:
        """Raises `ModelNotAllowed`, whether there is such a model or not."""
        if self.allowed is not None and not self.allowed(model):
            raise ModelNotAllowed(model)

    def most_requests(self, max_queue: int) -> int:
        """To the engine at the same time, if nobody else has any in its queue."""
        return max_queue

    def reserve(self, requests: Iterable[Sized]) -> Charge:  # noqa: ARG002
        """What `requests` may use at most. Raises `RateLimited`."""
        return Charge()

    async def in_thread(self, work: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        """What `work` returns, in another thread, when it is the caller's turn to have one."""
        return await asyncio.to_thread(work, *args, **kwargs)

    async def load(self, begin: Callable[[], Future[None]]) -> None:
        """Have a load begin that nobody waits for, unless enough of the caller's are under way."""
        await self.in_thread(begin)

    def headers(self) -> dict[str, str]:
        """What answers to generations tell about the caller's limits."""
        return {}


ANYBODY = Caller()


class KeyHolder(Caller):
    """Who sent a key. Belongs to the event loop."""

    def __init__(self, key: ApiKey, clock: Callable[[], float]) -> None:
        self.key = key
        self.name = key.name
        self._clock = clock
        self._threads = asyncio.Semaphore(THREADS_EACH)
        self._may_load = asyncio.Lock()
        self._loads: list[Future[None]] = []
        self._bucket = None if key.rate is None else TokenBucket(key.rate, clock())

    def becomes(self, key: ApiKey) -> None:
        """The file says something else about the name now. How full its bucket is stays."""
        old, self.key = self._bucket, key
        if key.rate is None:
            self._bucket = None
        elif old is None or key.rate != old.capacity:
            now = self._clock()
            full = 1.0 if old is None else old.level(now) / old.capacity
            self._bucket = TokenBucket(key.rate, now, full=full)

    @property
    def allowed(self) -> Callable[[str], bool] | None:
        return None if self.key.models is None else self.key.may_use

    def most_requests(self, max_queue: int) -> int:
        return most_for_one(max_queue, OF_THE_QUEUE)

    async def in_thread(self, work: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        async with self._threads:
            return await super().in_thread(work, *args, **kwargs)

    async def load(self, begin: Callable[[], Future[None]]) -> None:
        async with self._may_load:
            self._loads = [load for load in self._loads if not load.done()]
            if len(self._loads) < LOADS_EACH:
                self._loads.append(await self.in_thread(begin))

    def reserve(self, requests: Iterable[Sized]) -> Charge:
        bucket, now = self._bucket, self._clock()
        if bucket is None:
            return Charge()
        tokens = sum(request.most_tokens for request in requests)
        taken = bucket.take(tokens, now)
        if taken is None:
            raise RateLimited(bucket.capacity, tokens, bucket.seconds_until(tokens, now))
        return _Reserved(bucket, taken, self._clock)

    def headers(self) -> dict[str, str]:
        bucket, now = self._bucket, self._clock()
        if bucket is None:
            return {}
        return {
            "x-ratelimit-limit-tokens": str(bucket.capacity),
            "x-ratelimit-remaining-tokens": str(max(0, int(bucket.level(now)))),
            "x-ratelimit-reset-tokens": _duration(bucket.seconds_until_full(now)),
        }


class _Reserved(Charge):
    def __init__(self, bucket: TokenBucket, taken: Taken, clock: Callable[[], float]) -> None:
        self._bucket = bucket
        self._taken = taken
        self._clock = clock

    def settle(self, used: int) -> None:
        self._bucket.give_back(self._taken, used=used, now=self._clock())


def _duration(seconds: float) -> str:
    """As OpenAI writes it: 6m0s, 1.5s, 20ms."""
    if seconds < 1:
        return f"{round(seconds * 1e3)}ms"
    minutes, rest = divmod(round(seconds, 3), 60)
    return (f"{int(minutes)}m" if minutes else "") + f"{rest:g}s"
