"""A sequence has a token more, or has ended: its text grows, and whoever asked is told."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from gpt2serve.engine.events import Done, FinishReason, Generation, Token, TokenEvent, Usage
from gpt2serve.engine.likeliest import Top
from gpt2serve.engine.request import Request, Sequence
from gpt2serve.engine.stream import Outbox
from gpt2serve.errors import Gpt2ServeError


class Told(Protocol):
    """Whom a worker tells what has become of its requests."""

    outbox: Outbox
    clock: Callable[[], float]

    def request_ended(self, request: Request, error: Gpt2ServeError | None) -> None:
        """Called exactly once for each request that was added to the worker."""


class Progress:
    """Of the sequences of one model, whose `version` names the weights that speak."""

    def __init__(self, told: Told, version: str) -> None:
        self._told = told
        self._version = version

    def advance(self, sequence: Sequence, token: int, logprob: float, top: Top, now: float) -> None:
        """Append a token."""
        request = sequence.request
        sequence.row.history.append(token)
        request.completion_tokens += 1
        piecewise = request.wants_tokens or request.params.details or request.params.stop
        piece = sequence.text.push([token]) if piecewise else ""
        reason = _finish_reason(sequence, token, now)
        if reason is not None:
            if not piecewise:
                sequence.text.push(sequence.row.generated)
            piece += sequence.text.finish()
        if request.wants_tokens or request.params.details:
            made = Token(token, piece, logprob, top)
            if request.wants_tokens:
                self._told.outbox.add(request.stream, TokenEvent(sequence.index, made))
            if request.params.details:
                sequence.details.append(made)
        if reason is not None:
            self._finish(sequence, reason)

    def finish_without_tokens(self, request: Request) -> None:
        """Of a request that wanted none."""
        for sequence in request.sequences:
            sequence.text.finish()
            self._finish(sequence, "length")

    def _finish(self, sequence: Sequence, reason: FinishReason) -> None:
        request = sequence.request
        sequence.finish_reason = reason
        params = request.params
        generation = Generation(
            index=sequence.index,
            text=(request.prepared.prompt if params.return_full_text else "") + sequence.text.text,
            finish_reason=reason,
            tokens=sequence.tokens,
            seed=sequence.row.seed,
            details=tuple(sequence.details) if params.details else None,
        )
        self._told.outbox.add(request.stream, generation)
        if not request.unfinished:
            self._done(request)

    def _done(self, request: Request) -> None:
        usage = Usage(
            prompt_tokens=request.prompt_length, completion_tokens=request.completion_tokens
        )
        request.times.ended = self._told.clock()
        timing = request.times.timing(request.times.ended)
        done = Done(model_version=self._version, usage=usage, timing=timing)
        self._told.outbox.add(request.stream, done)
        request.ended = True
        self._told.request_ended(request, None)


def _finish_reason(sequence: Sequence, token: int, now: float) -> FinishReason | None:
    """Whether the sequence ends with `token`, which it has just got."""
    if token in sequence.row.eos_token_ids:
        return "eos"
    if sequence.text.stopped:
        return "stop"
    request = sequence.request
    full = sequence.tokens >= request.params.max_tokens or now >= request.deadline
    return "length" if full else None
