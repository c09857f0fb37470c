"""The one way of all surfaces to the engine: prompts in, results or frames out.

A surface translates its body into `Ask`s and what comes back into its own words; admission,
clients that leave, cancellation, and what the log is told are here.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from litestar import Request
from litestar.background_tasks import BackgroundTask
from litestar.response import Stream

from gpt2serve.api.callers import Charge
from gpt2serve.api.exchange import Exchange
from gpt2serve.api.models import manifest_of
from gpt2serve.api.problems import Problem, problem_of
from gpt2serve.api.service import Service
from gpt2serve.api.streaming import EVENT_STREAM, STREAM_HEADERS, merged, unless_gone
from gpt2serve.engine.events import Done, Event, Generation, GenerationResult
from gpt2serve.engine.params import SamplingParams
from gpt2serve.engine.prompts import Prompt
from gpt2serve.errors import InvalidRequest
from gpt2serve.package import check_model_id

if TYPE_CHECKING:
    from gpt2serve.engine.preparation import PreparedRequest
    from gpt2serve.engine.stream import TokenStream

#: On a route's `opt`: it generates, so it has a line in the log whatever comes of it.
GENERATION = {"generation": True}


@dataclass(frozen=True, slots=True)
class Ask:
    """One prompt and what is wished for it."""

    prompt: Prompt
    params: SamplingParams


class Frames(Protocol):
    """How a surface writes its stream. Each method returns whole frames, as one chunk."""

    def events(self, ask: int, events: list[Event]) -> bytes:
        """What one engine step made for the ask of that number."""

    def end(self) -> bytes:
        """All asks have ended well."""

    def error(self, problem: Problem) -> bytes:
        """It has failed; nothing comes after this."""


async def begin(
    request: Request[Any, Any, Any],
    service: Service,
    exchange: Exchange,
    model: str,
    asks: Sequence[Ask],
    *,
    stream: bool,
) -> Running:
    """Submit all `asks`, or none if one is refused, on the account of whoever sent the request.

    Raises what `Engine.prepare` and `Engine.submit` raise, `ModelNotAllowed` or `RateLimited`, or
    `InvalidRequest` for more asks than there can ever be places for.
    """
    check_model_id(model)
    exchange.stream = stream
    exchange.about(model)
    most = exchange.caller.most_requests(service.engine.settings.max_queue)
    if len(asks) > most:
        # Trying again would not help. As elsewhere, an unknown model is told before that.
        await manifest_of(service, exchange, model)
        raise InvalidRequest(
            "prompt", f"{len(asks)} prompts are more than this server works on at once: {most}"
        )
    prepared = await exchange.caller.in_thread(_prepare, service, model, asks)
    running = Running(request, exchange, prepared, exchange.caller.reserve(prepared))
    try:
        for one in prepared:
            running.submit(service, one, wants_tokens=stream)
    except BaseException:
        running.cancel()
        raise
    return running


def _prepare(service: Service, model: str, asks: Sequence[Ask]) -> list[PreparedRequest]:
    return [service.engine.prepare(model, ask.prompt, ask.params) for ask in asks]


class Running:
    """What one HTTP request has the engine do."""

    def __init__(
        self,
        request: Request[Any, Any, Any],
        exchange: Exchange,
        prepared: Sequence[PreparedRequest],
        charge: Charge,
    ) -> None:
        self.prepared = prepared
        self.streams: list[TokenStream] = []
        self._request = request
        self._exchange = exchange
        self._charge = charge
        #: Whether the client has been sent how it ended.
        self._told = False

    def submit(self, service: Service, one: PreparedRequest, *, wants_tokens: bool) -> None:
        """Raises what `Engine.submit` raises."""
        owner = self._exchange.caller.name
        stream = service.engine.submit(one, wants_tokens=wants_tokens, owner=owner)
        self.streams.append(stream)
        self._exchange.submitted(stream.timing)

    def cancel(self) -> None:
        """Idempotent, and harmless after the end."""
        for stream in self.streams:
            stream.cancel()
        self._charge.settle(sum(stream.tokens_used() for stream in self.streams))

    async def results(self) -> list[GenerationResult]:
        """One for each ask. Raises what the first that fails ended with."""
        try:
            results = await unless_gone(self._request, self._results())
        finally:
            self.cancel()
        for result in results:
            self._note(result.generations)
            self._exchange.done(result.model_version, result.usage, result.timing)
        return results

    async def _results(self) -> list[GenerationResult]:
        return [await stream.result() for stream in self.streams]

    async def respond(self, frames: Frames) -> Stream:
        """The answer as a stream, begun once there is a first token.

        Raises what can be refused until then.
        """
        try:
            # The status line goes out before the first frame is asked for: whatever can be
            # refused must be refused here. The first to be submitted is the first to start.
            await unless_gone(self._request, self.streams[0].started())
        except BaseException:
            self.cancel()
            raise
        return Stream(
            self._frames(frames),
            media_type=EVENT_STREAM,
            headers=STREAM_HEADERS,
            # If the client goes while a send is blocked, the generator's `finally` waits for
            # the garbage collector, but this runs (litestar #3607). Neither covers every case
            # alone.
            background=BackgroundTask(self._release),
        )

    async def _frames(self, frames: Frames) -> AsyncIterator[bytes]:
        try:
            async for ask, events in merged(self.streams):
                self._note(events)
                # One chunk, and so one write to the socket, for each engine step.
                chunk = frames.events(ask, events)
                if self._told:
                    chunk += frames.end()
                if chunk:
                    yield chunk
        except Exception as error:
            self._told = True
            problem = problem_of(error)
            self._exchange.failed(problem.code, error if problem.status >= 500 else None)
            yield frames.error(problem)
        finally:
            self.cancel()

    def _note(self, events: Sequence[Event]) -> None:
        for event in events:
            if isinstance(event, Generation):
                self._exchange.finished((event.finish_reason,))
            elif isinstance(event, Done):
                self._exchange.done(event.model_version, event.usage, event.timing)
                self._told = self._exchange.ended == len(self.streams)

    async def _release(self) -> None:
        self.cancel()
        if not self._told:
            self._exchange.gone()
