"""The way back: everything once, in order, one end, whatever happens to the event loop."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from gpt2serve.engine.events import Done, Generation, Timing, Token, TokenEvent, Usage
from gpt2serve.engine.stream import BlockingStream, Outbox, TokenStream
from gpt2serve.errors import RequestAborted, StepFailed
from tests.engine_fakes import Recorder

DONE = Done(
    usage=Usage(prompt_tokens=1, completion_tokens=1),
    timing=Timing(queue_ms=0, load_ms=0, prefill_ms=0, decode_ms=0),
)


def token(text: str, index: int = 0) -> TokenEvent:
    return TokenEvent(index, Token(1, text, -0.5))


def ending(index: int = 0) -> Generation:
    return Generation(index=index, text=f"text {index}", finish_reason="eos", tokens=1, seed=1)


class Loop:
    """Stands for an event loop: counts wake-ups."""

    def __init__(self, *, closed: bool = False) -> None:
        self.wakes: list[tuple[Any, tuple[Any, ...]]] = []
        self.closed = closed

    def call_soon_threadsafe(self, function: Any, *arguments: Any) -> None:
        if self.closed:
            raise RuntimeError("Event loop is closed")
        self.wakes.append((function, arguments))

    def turn(self) -> None:
        wakes, self.wakes = self.wakes, []
        for function, arguments in wakes:
            function(*arguments)


def recorder(loop: Any) -> Recorder:
    made = Recorder()
    made.loop = loop
    return made


# -- the outbox -------------------------------------------------------------------------------


def test_one_wake_up_for_each_loop_and_step() -> None:
    outbox, one, two = Outbox(), Loop(), Loop()
    streams = [recorder(one), recorder(one), recorder(two)]
    for stream in streams:
        outbox.add(stream, token("a"))
        outbox.add(stream, token("b"))
    outbox.flush()
    assert (len(one.wakes), len(two.wakes)) == (1, 1)
    assert [stream.deliveries for stream in streams] == [[], [], []]
    one.turn()
    two.turn()
    for stream in streams:
        assert len(stream.deliveries) == 1
        assert stream.events == [token("a"), token("b")]
    outbox.flush()
    assert not one.wakes
    assert not two.wakes


def test_events_come_before_the_error_that_ends_the_request() -> None:
    outbox, stream = Outbox(), Recorder()
    outbox.add(stream, token("a"))
    outbox.fail(stream, StepFailed("broken"))
    outbox.flush()
    assert stream.events == [token("a")]
    assert isinstance(stream.error, StepFailed)
    assert stream.ends == 1


def test_a_closed_loop_harms_nobody() -> None:
    outbox, closed, loop = Outbox(), Loop(closed=True), Loop()
    gone, here, blocking = recorder(closed), recorder(loop), Recorder()
    for stream in (gone, here, blocking):
        outbox.add(stream, DONE)
    outbox.flush()
    loop.turn()
    assert (gone.ends, here.ends, blocking.ends) == (0, 1, 1)
    outbox.flush()
    assert blocking.ends == 1


# -- asyncio ----------------------------------------------------------------------------------


class Writer:
    """The engine thread's side of one `TokenStream`."""

    def __init__(self) -> None:
        self.cancels = 0
        self.outbox = Outbox()
        self.stream = TokenStream("model", self._cancel, lambda: DONE.timing, lambda: 8)

    def _cancel(self) -> None:
        self.cancels += 1

    def step(self, *events: Any, error: Exception | None = None) -> None:
        for event in events:
            self.outbox.add(self.stream, event)
        if error is not None:
            self.outbox.fail(self.stream, error)
        thread = threading.Thread(target=self.outbox.flush)
        thread.start()
        thread.join()


def test_stream_gives_events_in_order_and_ends() -> None:
    async def scenario() -> None:
        writer = Writer()
        writer.step(token("a"))
        writer.step(token("b"), ending())
        writer.step(DONE)
        assert [event async for event in writer.stream.events()] == [
            token("a"),
            token("b"),
            ending(),
        ]
        assert writer.cancels == 0

    asyncio.run(scenario())


def test_batches_are_steps() -> None:
    async def scenario() -> None:
        writer = Writer()
        seen: list[list[Any]] = []

        async def read() -> None:
            async for batch in writer.stream.batches():
                seen.append(list(batch))  # noqa: PERF401 - looked at while it grows

        reader = asyncio.create_task(read())
        await asyncio.sleep(0)
        assert seen == []
        writer.step(token("a"), token("b"))
        await asyncio.sleep(0.01)
        assert seen == [[token("a"), token("b")]]
        writer.step(ending(), DONE)
        await asyncio.wait_for(reader, 5)
        assert seen[1:] == [[ending(), DONE]]

    asyncio.run(scenario())


def test_result_is_sorted_by_index() -> None:
    async def scenario() -> None:
        writer = Writer()
        writer.step(ending(1))
        writer.step(ending(0), DONE)
        result = await writer.stream.result()
        assert [generation.index for generation in result.generations] == [0, 1]
        assert (result.model, result.usage) == ("model", DONE.usage)

    asyncio.run(scenario())


def test_an_error_is_raised_once_after_the_events_before_it() -> None:
    async def scenario() -> None:
        writer = Writer()
        writer.step(token("a"))
        writer.step(token("b"), error=StepFailed("broken"))
        events = writer.stream.events()
        assert [await anext(events), await anext(events)] == [token("a"), token("b")]
        with pytest.raises(StepFailed, match="broken"):
            await anext(events)
        assert writer.cancels == 0

    asyncio.run(scenario())


def test_started_waits_for_the_first_event() -> None:
    async def scenario() -> None:
        writer = Writer()
        started = asyncio.create_task(writer.stream.started())
        await asyncio.sleep(0.01)
        assert not started.done()
        writer.step(token("a"))
        await asyncio.wait_for(started, 5)
        # The event is still there for who reads the stream.
        writer.step(DONE)
        assert [event async for event in writer.stream.events()] == [token("a")]

    asyncio.run(scenario())


def test_started_raises_what_was_refused_before_the_first_event_only() -> None:
    async def scenario() -> None:
        refused = Writer()
        refused.step(error=RequestAborted("no"))
        with pytest.raises(RequestAborted):
            await refused.stream.started()
        broken = Writer()
        broken.step(token("a"), error=StepFailed("late"))
        await broken.stream.started()  # the first token was made: the stream tells the rest

    asyncio.run(scenario())


def test_cancel_is_harmless_at_any_time() -> None:
    async def scenario() -> None:
        writer = Writer()
        writer.stream.cancel()
        writer.stream.cancel()
        writer.step(token("a"), error=RequestAborted("cancelled"))
        await asyncio.sleep(0)
        before = writer.cancels
        assert before >= 1
        writer.stream.cancel()
        assert writer.cancels == before  # it has ended: nothing to cancel
        with pytest.raises(RequestAborted):
            await writer.stream.result()

    asyncio.run(scenario())


def test_who_leaves_early_cancels() -> None:
    async def scenario() -> None:
        writer = Writer()
        writer.step(token("a"))
        events = writer.stream.events()
        async for _ in events:
            break
        await events.aclose()
        assert writer.cancels == 1

    asyncio.run(scenario())


def test_a_reader_that_is_cancelled_cancels_the_request() -> None:
    async def scenario() -> None:
        writer = Writer()

        async def read() -> None:
            async for _ in writer.stream.events():
                pass

        reader = asyncio.create_task(read())
        await asyncio.sleep(0.01)
        reader.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reader
        assert writer.cancels == 1

    asyncio.run(scenario())


def test_a_loop_that_closed_gets_nothing() -> None:
    async def make() -> Writer:
        return Writer()

    writer = asyncio.run(make())
    writer.step(token("a"))
    writer.step(error=RequestAborted("gone"))


# -- threads ----------------------------------------------------------------------------------


def test_blocking_stream_waits_for_the_end() -> None:
    outbox, stream = Outbox(), BlockingStream("model")
    results = []
    reader = threading.Thread(target=lambda: results.append(stream.result()))
    reader.start()
    outbox.add(stream, token("a"))
    outbox.flush()
    reader.join(0.05)
    assert reader.is_alive()
    outbox.add(stream, ending(0))
    outbox.add(stream, DONE)
    outbox.flush()
    reader.join(5)
    assert not reader.is_alive()
    assert results[0].generations == (ending(0),)


def test_blocking_stream_raises() -> None:
    outbox, stream = Outbox(), BlockingStream("model")
    outbox.add(stream, token("a"))
    outbox.fail(stream, StepFailed("broken"))
    outbox.flush()
    events = stream.events()
    assert next(events) == token("a")
    with pytest.raises(StepFailed, match="broken"):
        next(events)
