"""A completion while its tokens come: the same for whole answers and for streams."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Literal

from gpt2serve.api.openai.logprobs import LogprobsWriter
from gpt2serve.api.openai.schemas import CompletionChoice, CompletionRequest
from gpt2serve.engine.events import Generation, GenerationResult, PromptToken, Token

if TYPE_CHECKING:
    from gpt2serve.engine.preparation import PreparedRequest

_REASONS: dict[str, Literal["stop", "length"]] = {"eos": "stop", "stop": "stop"}


class ChoiceWriter:
    """Takes a sequence's tokens and its end, gives the choice or pieces of it."""

    def __init__(
        self,
        request: CompletionRequest,
        prepared: PreparedRequest,
        index: int,
        prompt_tokens: Sequence[PromptToken] | None,
    ) -> None:
        self._index = index
        self._piece = prepared.prompt if request.echo else ""
        self._written = len(self._piece)
        self._reason: Literal["stop", "length"] | None = None
        self._logprobs: LogprobsWriter | None = None
        if request.logprobs is not None:
            # With the prompt's own tokens, the character that it began is among them.
            begun = b"" if request.echo else prepared.begun
            self._logprobs = LogprobsWriter(prepared.tokenizer, begun)
            if request.echo and prompt_tokens is not None:
                shown = prompt_tokens[prepared.prefix_tokens :]
                self._logprobs.prompt(shown, prepared.prompt)

    def token(self, token: Token) -> None:
        self._piece += token.text
        self._written += len(token.text)
        if self._logprobs is not None:
            self._logprobs.token(token)

    def end(self, generation: Generation) -> None:
        self._piece += generation.text[self._written :]
        self._reason = _REASONS.get(generation.finish_reason, "length")

    def take(self) -> CompletionChoice | None:
        """What has come since the last time; None if that is nothing."""
        ended = self._reason is not None
        logprobs = self._logprobs.take(final=ended) if self._logprobs is not None else None
        if not self._piece and logprobs is None and not ended:
            return None
        piece, self._piece = self._piece, ""
        return CompletionChoice(
            text=piece, index=self._index, logprobs=logprobs, finish_reason=self._reason
        )


def choices_of(
    request: CompletionRequest,
    results: Sequence[GenerationResult],
    prepared: Sequence[PreparedRequest],
) -> list[CompletionChoice]:
    """All choices, those of the first prompt first."""
    choices: list[CompletionChoice] = []
    for result, prompt in zip(results, prepared, strict=True):
        for generation in best(result.generations, request.choices):
            writer = ChoiceWriter(request, prompt, len(choices), result.prompt_tokens)
            for token in generation.details or ():
                writer.token(token)
            writer.end(generation)
            choice = writer.take()
            assert choice is not None  # noqa: S101  it has ended
            choices.append(choice)
    return choices


def best(generations: Sequence[Generation], wanted: int) -> Iterable[Generation]:
    """All in their order, or those whose tokens are the likeliest on average, best first."""
    if len(generations) <= wanted:
        return generations
    return sorted(generations, key=lambda one: one.mean_logprob, reverse=True)[:wanted]
