"""A request and its sequences: plain data that the engine thread owns."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from gpt2serve.engine.events import FinishReason, Timing, Token
from gpt2serve.engine.kv_cache import prompt_room
from gpt2serve.engine.params import ResolvedParams, SamplingParams
from gpt2serve.engine.prompts import Prompt
from gpt2serve.engine.randomness import sequence_seed
from gpt2serve.engine.sampling_row import SamplingRow, bias_of
from gpt2serve.engine.text import TextStream

if TYPE_CHECKING:
    from gpt2serve.engine.stream import Stream


@dataclass(slots=True)
class Times:
    """Seconds on the engine's clock; None until it has happened."""

    submitted: float
    model_ready: float | None = None
    prefill_started: float | None = None
    first_token: float | None = None
    ended: float | None = None
    waited_for_load: bool = False

    def timing(self, now: float) -> Timing:
        """Up to `now`, or to the end."""
        now = self.ended if self.ended is not None else now
        ready = self.model_ready if self.model_ready is not None else now
        started = self.prefill_started if self.prefill_started is not None else now
        first = self.first_token if self.first_token is not None else now
        load = ready - self.submitted if self.waited_for_load else 0.0
        return Timing(
            queue_ms=round(1e3 * (started - self.submitted - load), 3),
            load_ms=round(1e3 * load, 3),
            prefill_ms=round(1e3 * (first - started), 3),
            decode_ms=round(1e3 * (now - first), 3),
        )


@dataclass(frozen=True, slots=True)
class Asked:
    """What a caller asked for, to prepare it again should the model be published again."""

    prompt: Prompt
    params: SamplingParams


@dataclass(eq=False, slots=True)
class Sequence:
    """One continuation of a request's prompt."""

    request: Request
    index: int
    row: SamplingRow
    text: TextStream
    details: list[Token] = field(default_factory=list)
    finish_reason: FinishReason | None = None

    @property
    def tokens(self) -> int:
        """Number of generated tokens."""
        return self.row.position

    @property
    def length(self) -> int:
        """Prompt and generated tokens."""
        return len(self.row.history)

    @property
    def max_length(self) -> int:
        return self.row.prompt_length + self.request.params.max_tokens


@dataclass(eq=False, slots=True)
class Request:
    """What the engine works on. `key` names the model's version that it was prepared for.

    `prompt` is the text that `prompt_ids` stand for, without the bytes of a character that
    is only `begun` at its end. `owner` is whom the request is for, "" if nobody in particular.
    """

    key: str
    model: str
    prompt: str
    prompt_ids: list[int]
    params: ResolvedParams
    stream: Stream
    wants_tokens: bool
    times: Times
    asked: Asked | None = None
    begun: bytes = b""
    #: Places of the prompt that are scored in one step; 0 if none are to be.
    scored_together: int = 0
    owner: str = ""
    sequences: list[Sequence] = field(default_factory=list)
    completion_tokens: int = 0
    #: When `max_time` is over, on the engine's clock.
    deadline: float = math.inf
    cancelled: bool = False
    #: The one end that every request has has been told.
    ended: bool = False

    @property
    def prompt_length(self) -> int:
        return len(self.prompt_ids)

    @property
    def max_length(self) -> int:
        """Tokens of each sequence at its end, at most."""
        return self.prompt_length + self.params.max_tokens

    def prompt_room(self, chunk: int) -> int:
        """Tokens of KV cache that the prompt takes beside the batch while it is being read."""
        return prompt_room(self.prompt_length, chunk, self.scored_together)

    @property
    def tokens_used(self) -> int:
        """Tokens that were computed for it so far. For any thread."""
        if self.times.prefill_started is None:
            return 0
        return self.prompt_length + self.completion_tokens

    @property
    def unfinished(self) -> list[Sequence]:
        return [sequence for sequence in self.sequences if sequence.finish_reason is None]

    def begin(self, now: float) -> None:
        """The prompt begins to be read."""
        self.times.prefill_started = now
        if self.params.max_time is not None:
            self.deadline = now + self.params.max_time

    def make_sequences(
        self, eos_token_ids: tuple[int, ...], token_bytes: Callable[[int], bytes]
    ) -> None:
        params = self.params
        bias = bias_of(params.logit_bias)
        for index in range(params.sequences):
            row = SamplingRow(
                do_sample=params.do_sample,
                temperature=params.temperature,
                top_k=params.top_k,
                top_p=params.top_p,
                repetition_penalty=params.repetition_penalty,
                no_repeat_ngram_size=params.no_repeat_ngram_size,
                min_tokens=params.min_tokens,
                seed=sequence_seed(params.seed, index),
                eos_token_ids=() if params.ignore_eos else eos_token_ids,
                wants_logprob=self.wants_tokens or params.details,
                history=list(self.prompt_ids),
                min_p=params.min_p,
                typical_p=params.typical_p,
                presence_penalty=params.presence_penalty,
                frequency_penalty=params.frequency_penalty,
                bias=bias,
                top_logprobs=params.top_logprobs,
            )
            text = TextStream(token_bytes, params.stop, begun=self.begun)
            self.sequences.append(Sequence(self, index, row, text))
