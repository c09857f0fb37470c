"""The way in to the engine thread: what may be put into its inbox, and who has a place in it."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

from gpt2serve.engine.messages import Ask, Message, Submit
from gpt2serve.engine.request import Request
from gpt2serve.engine.shares import OF_THE_QUEUE, leaves_room
from gpt2serve.errors import EngineClosed, EngineNotStarted, Overloaded

_T = TypeVar("_T")


class Gate:
    """Whether the engine thread takes messages, and how many requests are inside. Thread-safe.

    Messages are put under the lock, so that nothing comes after the last one.
    """

    def __init__(self, put: Callable[[Message], None], max_queue: int) -> None:
        self._put = put
        self._max_queue = max_queue
        self._lock = threading.Lock()
        self._all_ended = threading.Condition(self._lock)
        #: Requests that were admitted and have not ended; the same, by owner.
        self.admitted = 0
        self.owned: Counter[str] = Counter()
        self.started = False
        self._draining = False
        self._closed = False
        self._dead = False

    # -- the thread's life ----------------------------------------------------------------

    def open(self, start: Callable[[], None]) -> bool:
        """Call `start` if nobody has; whether this call did. Raises `EngineClosed`."""
        with self._lock:
            if self._closed:
                raise EngineClosed("The engine was closed.")
            if self.started:
                return False
            self.started = True
            # Under the lock, so that nobody closes what has begun only half.
            start()
            return True

    def close(self, last: Message) -> bool:
        """Let nothing in after `last`; whether this call did that."""
        with self._lock:
            if self._closed:
                return False
            self._closed = self._draining = True
            if self.started:
                self._put(last)
            return True

    def stopped(self) -> None:
        """The engine thread takes no more messages, whatever the reason."""
        with self._lock:
            self._dead = self._draining = True

    @property
    def takes_requests(self) -> bool:
        return self.started and not self._draining

    # -- requests -------------------------------------------------------------------------

    def admit(self, request: Request) -> None:
        """Take a place in the queue, which the end of the request gives back.

        Raises `Overloaded`, `EngineNotStarted` or `EngineClosed`.
        """
        with self._lock:
            if self._draining:
                raise EngineClosed
            if not self.started:
                raise EngineNotStarted
            self._check_queue(request.owner)
            self.admitted += 1
            self.owned[request.owner] += 1
            self._put(Submit(request))

    def ended(self, request: Request) -> None:
        with self._all_ended:
            self.admitted -= 1
            self.owned[request.owner] -= 1
            if not self.owned[request.owner]:
                del self.owned[request.owner]
            if self.admitted == 0:
                self._all_ended.notify_all()

    def drain(self) -> None:
        """Admit nothing more."""
        with self._lock:
            self._draining = True

    def wait_until_idle(self, timeout: float) -> bool:
        """Wait until all that were admitted have ended; False if that takes too long."""
        with self._all_ended:
            return self._all_ended.wait_for(lambda: self.admitted == 0, timeout)

    def _check_queue(self, owner: str) -> None:
        """Under the lock. Raises `Overloaded`."""
        free = self._max_queue - self.admitted
        if free <= 0:
            raise Overloaded(
                f"{self.admitted} requests are being worked on or waiting already.",
                retry_after=1.0,
            )
        if owner and not leaves_room(self.owned[owner], 1, free, OF_THE_QUEUE):
            raise Overloaded(
                f"{self.owned[owner]} requests of yours are being worked on or waiting already, "
                "and the rest of the queue is kept for others.",
                retry_after=1.0,
            )

    # -- everything else ------------------------------------------------------------------

    def tell(self, message: Message) -> None:
        """Raises `EngineClosed` if nobody would read it."""
        with self._lock:
            if self._closed or self._dead or not self.started:
                raise EngineClosed
            self._put(message)

    def ask(self, function: Callable[[], _T]) -> _T:
        """What `function` returns in the engine thread; here if there is no such thread."""
        answer: Future[_T] = Future()
        ask = Ask(function, answer)
        with self._lock:
            running = self.started and not self._closed and not self._dead
            if running:
                self._put(ask)
        return answer.result() if running else function()
