"""Completions as server-sent events: chunks of the same shape as the whole answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec
from msgspec import UNSET, UnsetType

from gpt2serve.api.openai.choices import ChoiceWriter
from gpt2serve.api.openai.errors import error_body
from gpt2serve.api.openai.schemas import (
    Completion,
    CompletionChoice,
    CompletionRequest,
    CompletionUsage,
    StreamOptions,
)
from gpt2serve.api.problems import Problem
from gpt2serve.api.streaming import LAST_FRAME, frame
from gpt2serve.engine.events import Done, Event, Generation, PromptToken, PromptTokens, TokenEvent

if TYPE_CHECKING:
    from gpt2serve.engine.preparation import PreparedRequest


class CompletionFrames:
    """A chunk for every choice that an engine step has given something to."""

    def __init__(
        self, head: Completion, request: CompletionRequest, prepared: Sequence[PreparedRequest]
    ) -> None:
        """`head`: what all chunks have in common."""
        self._head = head
        self._request = request
        self._prepared = prepared
        options = request.stream_options or StreamOptions()
        self._tells_usage = bool(options.include_usage)
        self._tells_usage_always = self._tells_usage and bool(options.continuous_usage_stats)
        self._prompts: dict[int, Sequence[PromptToken]] = {}
        self._choices: dict[tuple[int, int], ChoiceWriter] = {}
        self._completion_tokens = 0
        self._version: str | UnsetType = UNSET

    def events(self, ask: int, events: list[Event]) -> bytes:
        changed: dict[ChoiceWriter, None] = {}
        for event in events:
            if isinstance(event, PromptTokens):
                self._prompts[ask] = event.tokens
            elif isinstance(event, TokenEvent):
                self._completion_tokens += 1
                choice = self._choice(ask, event.index)
                choice.token(event.token)
                changed[choice] = None
            elif isinstance(event, Generation):
                choice = self._choice(ask, event.index)
                choice.end(event)
                changed[choice] = None
            elif isinstance(event, Done):
                self._version = event.model_version
        pieces = [choice.take() for choice in changed]
        return b"".join(self._chunk([piece]) for piece in pieces if piece is not None)

    def end(self) -> bytes:
        if not self._tells_usage:
            return LAST_FRAME
        last = msgspec.structs.replace(
            self._head, choices=[], usage=self._usage(), system_fingerprint=self._version
        )
        return frame(last) + LAST_FRAME

    def error(self, problem: Problem) -> bytes:
        return frame(error_body(problem))

    def _choice(self, ask: int, index: int) -> ChoiceWriter:
        choice = self._choices.get((ask, index))
        if choice is None:
            number = ask * self._request.choices + index
            choice = self._choices[ask, index] = ChoiceWriter(
                self._request, self._prepared[ask], number, self._prompts.get(ask)
            )
        return choice

    def _chunk(self, choices: list[CompletionChoice]) -> bytes:
        # As OpenAI does it: null in all chunks but the last, if the last has it.
        usage: CompletionUsage | UnsetType | None = None if self._tells_usage else UNSET
        if self._tells_usage_always:
            usage = self._usage()
        return frame(msgspec.structs.replace(self._head, choices=choices, usage=usage))

    def _usage(self) -> CompletionUsage:
        prompt_tokens = sum(prepared.prompt_tokens for prepared in self._prepared)
        return usage_of(prompt_tokens, self._completion_tokens)


def usage_of(prompt_tokens: int, completion_tokens: int) -> CompletionUsage:
    return CompletionUsage(
        prompt_tokens=prompt_tokens,
        completion_tokens=completion_tokens,
        total_tokens=prompt_tokens + completion_tokens,
    )
