"""The way back: from the engine thread to whoever asked.

The engine thread writes into an `Outbox`, which hands all events of one step over at once:
a wake-up of the event loop costs as much as sampling a token, so there is one a step, not
one a request.
"""

from __future__ import annotations

import asyncio
import queue
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

from gpt2serve.engine.events import (
    Done,
    Event,
    Generation,
    GenerationResult,
    PromptTokens,
    Timing,
    TokenEvent,
)


@dataclass(slots=True)
class Delivery:
    """Events of one request from one step; `error` ends the request."""

    events: list[Event] = field(default_factory=list)
    error: Exception | None = None

    @property
    def ends(self) -> bool:
        return self.error is not None or any(isinstance(event, Done) for event in self.events)


class Stream(Protocol):
    """Where a request's events go. `receive` runs in `loop`, or in the engine thread if None."""

    loop: asyncio.AbstractEventLoop | None

    def receive(self, delivery: Delivery) -> None: ...


class Outbox:
    """Events of the step that is running. Owned by the engine thread."""

    def __init__(self) -> None:
        self._pending: dict[Stream, Delivery] = {}

    def add(self, stream: Stream, event: Event) -> None:
        self._pending.setdefault(stream, Delivery()).events.append(event)

    def fail(self, stream: Stream, error: Exception) -> None:
        self._pending.setdefault(stream, Delivery()).error = error

    def flush(self) -> None:
        """Deliver everything. A loop that is closed by now gets nothing, and nobody misses it."""
        by_loop: dict[asyncio.AbstractEventLoop, list[tuple[Stream, Delivery]]] = {}
        for stream, delivery in self._pending.items():
            if stream.loop is None:
                stream.receive(delivery)
            else:
                by_loop.setdefault(stream.loop, []).append((stream, delivery))
        self._pending.clear()
        for loop, deliveries in by_loop.items():
            try:
                loop.call_soon_threadsafe(_receive_all, deliveries)
            except RuntimeError:
                continue


def _receive_all(deliveries: list[tuple[Stream, Delivery]]) -> None:
    for stream, delivery in deliveries:
        stream.receive(delivery)


class TokenStream:
    """One request's events, for asyncio. Belongs to the event loop that submitted it.

    It ends in exactly one way: with `Done`, or with an exception from what is awaited.
    """

    def __init__(
        self,
        model: str,
        cancel: Callable[[], None],
        timing: Callable[[], Timing],
        tokens_used: Callable[[], int],
    ) -> None:
        self.model = model
        #: So far; how long it took to begin is known from the first event on.
        self.timing = timing
        #: Tokens of prompt and sequences that were computed so far, in whatever way it ends.
        self.tokens_used = tokens_used
        self.loop: asyncio.AbstractEventLoop | None = asyncio.get_running_loop()
        self._cancel = cancel
        self._deliveries: deque[Delivery] = deque()
        self._arrived = asyncio.Event()
        self._ended = False

    def receive(self, delivery: Delivery) -> None:
        self._deliveries.append(delivery)
        self._ended = self._ended or delivery.ends
        self._arrived.set()

    def cancel(self) -> None:
        """Stop generating at the next step. Idempotent, thread-safe, harmless after the end."""
        if not self._ended:
            self._cancel()

    async def started(self) -> None:
        """Wait until the model is loaded and the first event is there.

        Raises what the request ended with if it failed before that.
        """
        await self._arrived.wait()
        first = self._deliveries[0] if self._deliveries else None
        if first is not None and first.error is not None and not first.events:
            raise first.error

    async def batches(self) -> AsyncIterator[list[Event]]:
        """The events, in lists of those that one engine step made. `Done` is the last one."""
        ended = False
        while not ended:
            await self._arrived.wait()
            while self._deliveries:
                delivery = self._deliveries.popleft()
                ended = delivery.ends
                if delivery.events:
                    yield delivery.events
                if delivery.error is not None:
                    raise delivery.error
            if not ended:
                self._arrived.clear()

    async def events(self) -> AsyncIterator[PromptTokens | TokenEvent | Generation]:
        """Tokens, and generations as they are finished; cancels if the consumer stops early."""
        try:
            async for batch in self.batches():
                for event in batch:
                    if not isinstance(event, Done):
                        yield event
        finally:
            self.cancel()

    async def result(self) -> GenerationResult:
        """Wait for the end and return the whole answer."""
        return collect(self.model, [event async for batch in self.batches() for event in batch])


class BlockingStream:
    """One request's events, for a thread that waits for them."""

    loop: asyncio.AbstractEventLoop | None = None

    def __init__(self, model: str) -> None:
        self.model = model
        self._deliveries: queue.SimpleQueue[Delivery] = queue.SimpleQueue()

    def receive(self, delivery: Delivery) -> None:
        self._deliveries.put(delivery)

    def events(self) -> Iterator[Event]:
        while True:
            delivery = self._deliveries.get()
            yield from delivery.events
            if delivery.error is not None:
                raise delivery.error
            if delivery.ends:
                return

    def result(self) -> GenerationResult:
        return collect(self.model, list(self.events()))


def collect(model: str, events: list[Event]) -> GenerationResult:
    """The whole answer from a request's events, which end with `Done`."""
    done = events[-1]
    assert isinstance(done, Done)  # noqa: S101
    generations = (event for event in events if isinstance(event, Generation))
    prompts = (event.tokens for event in events if isinstance(event, PromptTokens))
    return GenerationResult(
        model=model,
        model_version=done.model_version,
        generations=tuple(sorted(generations, key=lambda generation: generation.index)),
        prompt_tokens=next(prompts, None),
        usage=done.usage,
        timing=done.timing,
    )
