"""Text Generation Inference's stream: an event for each token; the last one tells the whole."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import msgspec
from msgspec import UNSET, Meta, UnsetType

from gpt2serve.api.huggingface.errors import error_of
from gpt2serve.api.huggingface.outputs import (
    FINISH_REASONS,
    FinishReason,
    TextGenerationToken,
    Tokens,
    seed_of,
)
from gpt2serve.api.huggingface.params import Wish
from gpt2serve.api.problems import Problem
from gpt2serve.api.streaming import frame
from gpt2serve.engine.events import Event, Generation, Token, TokenEvent

if TYPE_CHECKING:
    from gpt2serve.engine.preparation import PreparedRequest


class TextGenerationStreamDetails(msgspec.Struct, frozen=True, kw_only=True):
    """How the text came to be."""

    finish_reason: FinishReason
    generated_tokens: int
    seed: int | None
    input_length: Annotated[int, Meta(description="Tokens that the model read.")]


class TextGenerationStreamOutput(msgspec.Struct, frozen=True, kw_only=True):
    """One event."""

    index: Annotated[int, Meta(description="Counts the tokens, from 1.")]
    token: TextGenerationToken
    top_tokens: list[TextGenerationToken] | UnsetType = UNSET
    generated_text: Annotated[
        str | None, Meta(description="The whole text with the last token, else null.")
    ]
    details: Annotated[
        TextGenerationStreamDetails | None,
        Meta(description="With the last token, if details were asked for, else null."),
    ]


class TextGenerationFrames:
    """The events of one text."""

    def __init__(self, wish: Wish, prepared: PreparedRequest) -> None:
        self._wish = wish
        self._tokens = Tokens(prepared)
        self._input_length = prepared.prompt_tokens
        self._index = 0

    def events(self, _ask: int, events: list[Event]) -> bytes:
        made = [event.token for event in events if isinstance(event, TokenEvent)]
        # A text ends in the step that made its last token.
        end = next((event for event in events if isinstance(event, Generation)), None)
        ends = [None] * (len(made) - 1) + [end]
        return b"".join(map(self._event, made, ends))

    def end(self) -> bytes:
        return b""

    def error(self, problem: Problem) -> bytes:
        # Whatever it was, the text is not all there.
        return frame(error_of(problem, "incomplete_generation"))

    def _event(self, token: Token, end: Generation | None) -> bytes:
        self._index += 1
        output = TextGenerationStreamOutput(
            index=self._index,
            token=self._tokens.generated(token),
            top_tokens=self._tokens.top(token) if self._wish.params.top_logprobs else UNSET,
            generated_text=None if end is None else end.text,
            details=None if end is None else self._details(end),
        )
        return frame(output)

    def _details(self, end: Generation) -> TextGenerationStreamDetails | None:
        if not self._wish.details:
            return None
        return TextGenerationStreamDetails(
            finish_reason=FINISH_REASONS[end.finish_reason],
            generated_tokens=end.tokens,
            seed=seed_of(end, self._wish),
            input_length=self._input_length,
        )
