"""From a body to the engine and back: what the routes have in common."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from litestar import MediaType, Request, Response

from gpt2serve.api.exchange import Exchange
from gpt2serve.api.generation import Ask, Running, begin
from gpt2serve.api.huggingface.errors import ModelLoading
from gpt2serve.api.huggingface.headers import first_headers, last_headers
from gpt2serve.api.huggingface.outputs import TextGenerationOutput, outputs_of
from gpt2serve.api.huggingface.params import Wish, in_their_terms, one_prompt
from gpt2serve.api.huggingface.streaming import TextGenerationFrames
from gpt2serve.api.models import manifest_of
from gpt2serve.api.service import Service
from gpt2serve.engine.status import ModelStatus
from gpt2serve.errors import EngineClosed, InvalidRequest, RequestAborted

#: What a load takes at most, mostly; and bytes a second of a store at a URL, for a guess.
_LOAD_SECONDS = 1.0
_FETCH_RATE = 50e6


@dataclass(frozen=True, slots=True)
class Call:
    """One request of a client, to one model."""

    request: Request[Any, Any, Any]
    service: Service
    exchange: Exchange
    model: str
    wish: Wish
    #: Whether the answer waits for a model that is not in memory.
    waits: bool

    async def texts(
        self, prompts: Sequence[str]
    ) -> tuple[list[list[TextGenerationOutput]], dict[str, str]]:
        """The outputs for each prompt, and the headers that go with them."""
        running = await self._begin(prompts, stream=False)
        validated = self.exchange.seconds
        with _incomplete():
            results = await running.results()
        outputs = [
            outputs_of(result, self.wish, prepared)
            for result, prepared in zip(results, running.prepared, strict=True)
        ]
        headers = first_headers(running, prompts) | last_headers(
            results, validated=validated, total=self.exchange.seconds
        )
        return outputs, headers

    async def stream(self, inputs: str | list[str]) -> Response[Any]:
        prompt = await self._one_prompt(inputs)
        running = await self._begin([prompt], stream=True)
        with _incomplete():
            answer = await running.respond(TextGenerationFrames(self.wish, running.prepared[0]))
        answer.headers.update(first_headers(running, [prompt]))
        return answer

    async def _one_prompt(self, inputs: str | list[str]) -> str:
        try:
            return one_prompt(inputs, self.wish)
        except InvalidRequest:
            # As on other routes, an unknown model is told before what does not go together.
            await manifest_of(self.service, self.exchange, self.model)
            raise

    async def _begin(self, prompts: Sequence[str], *, stream: bool) -> Running:
        if not self.waits:
            await self._refuse_while_loading()
        asks = [Ask(prompt, self.wish.params) for prompt in prompts]
        try:
            return await begin(
                self.request, self.service, self.exchange, self.model, asks, stream=stream
            )
        except InvalidRequest as error:
            raise in_their_terms(error, self.wish) from error

    async def _refuse_while_loading(self) -> None:
        """Unless the model is in memory, have it loaded and raise `ModelLoading`."""
        engine = self.service.engine
        self.exchange.about(self.model)
        if self.service.draining:
            raise EngineClosed
        caller = self.exchange.caller
        status = await caller.in_thread(engine.status, self.model)
        # Why a model cannot be loaded is told to those who ask it for texts.
        if status.state not in ("resident", "failed"):
            if status.state == "cold":
                await caller.load(functools.partial(engine.start_load, self.model))
            raise ModelLoading(self.model, _seconds_left(status))


@contextlib.contextmanager
def _incomplete() -> Iterator[None]:
    """A request that was accepted does not end because none are accepted any more."""
    try:
        yield
    except EngineClosed as error:
        raise RequestAborted(str(error)) from error


def json_answer(body: Any, headers: dict[str, str]) -> Response[Any]:
    return Response(msgspec.json.encode(body), media_type=MediaType.JSON, headers=headers)


def _seconds_left(status: ModelStatus) -> float:
    """A guess; a model whose files are on the disk is there after milliseconds."""
    if status.fetch_total_bytes is None:
        return _LOAD_SECONDS
    missing = status.fetch_total_bytes - (status.fetched_bytes or 0)
    return round(_LOAD_SECONDS + max(0, missing) / _FETCH_RATE, 1)
