"""A request and its sequences: plain data. Once submitted, the engine thread owns it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from gpt2serve.engine.events import FinishReason, Timing, Token
from gpt2serve.engine.kv_cache import prompt_room
from gpt2serve.engine.params import ResolvedParams
from gpt2serve.engine.preparation import PreparedRequest
from gpt2serve.engine.randomness import sequence_seed
from gpt2serve.engine.sampling_row import SamplingRow, bias_of
from gpt2serve.engine.text import TextStream
from gpt2serve.engine.top_k import Floats, Ids

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
    """What the engine works on. `owner` is whom it is for, "" if nobody in particular.

    `prepared` is all of it that depends on the model's version; `become` changes that.
    """

    prepared: PreparedRequest
    stream: Stream
    wants_tokens: bool
    times: Times
    owner: str = ""
    #: Those of `prepared`, which are looked at for each token.
    params: ResolvedParams = field(init=False)
    sequences: list[Sequence] = field(init=False)
    completion_tokens: int = 0
    #: When `max_time` is over, on the engine's clock.
    deadline: float = math.inf
    cancelled: bool = False
    #: The one end that every request has has been told.
    ended: bool = False

    def __post_init__(self) -> None:
        self.become(self.prepared)

    def become(self, prepared: PreparedRequest) -> None:
        """Be the same request, prepared for this version. Only before it begins."""
        self.prepared = prepared
        self.params = prepared.params
        bias = bias_of(prepared.params.logit_bias)
        self.sequences = [
            _sequence(self, index, bias) for index in range(prepared.params.sequences)
        ]

    @property
    def key(self) -> str:
        """Names the model's version."""
        return self.prepared.package.key

    @property
    def model(self) -> str:
        return self.prepared.model

    @property
    def prompt_ids(self) -> list[int]:
        return self.prepared.prompt_ids

    @property
    def scored_together(self) -> int:
        """Places of the prompt that are scored in one step; 0 if none are to be."""
        return self.prepared.scored_together

    @property
    def prompt_length(self) -> int:
        return len(self.prepared.prompt_ids)

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


def _sequence(request: Request, index: int, bias: tuple[Ids, Floats] | None) -> Sequence:
    prepared, params = request.prepared, request.params
    row = SamplingRow(
        do_sample=params.do_sample,
        temperature=params.temperature,
        top_k=params.top_k,
        top_p=params.top_p,
        repetition_penalty=params.repetition_penalty,
        no_repeat_ngram_size=params.no_repeat_ngram_size,
        min_tokens=params.min_tokens,
        seed=sequence_seed(params.seed, index),
        eos_token_ids=() if params.ignore_eos else prepared.package.manifest.eos_token_ids,
        wants_logprob=request.wants_tokens or params.details,
        history=list(prepared.prompt_ids),
        min_p=params.min_p,
        typical_p=params.typical_p,
        presence_penalty=params.presence_penalty,
        frequency_penalty=params.frequency_penalty,
        bias=bias,
        top_logprobs=params.top_logprobs,
    )
    text = TextStream(prepared.tokenizer.token_bytes, params.stop, begun=prepared.begun)
    return Sequence(request, index, row, text)
