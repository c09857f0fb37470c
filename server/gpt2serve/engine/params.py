"""What a request may ask for, and the same with nothing left open."""

from __future__ import annotations

import msgspec

MAX_SEED = 2**63 - 1
MOST_TOP_LOGPROBS = 20


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True):
    """How to continue a prompt. None takes the model's own default.

    num_return_sequences  how many continuations; at least 1, at most the server's batch size
    max_new_tokens        upper bound for generated tokens; wins over max_length
    min_new_tokens        no end-of-text before that many generated tokens
    max_length            upper bound for prompt and generated tokens together
    min_length            no end-of-text before prompt and generated tokens are that many
    do_sample             draw at random; False takes the likeliest token each time
    temperature           > 0; below 1 sharpens the distribution, above 1 flattens it
    top_k                 keep the k likeliest tokens; 0 keeps all
    top_p                 0 < p <= 1; keep the likeliest tokens that together reach p
    repetition_penalty    > 0; above 1 makes tokens that were there already less likely
    no_repeat_ngram_size  n-grams of this size occur once only; 0 allows all
    stop                  generation ends where one of these strings would begin
    seed                  0 to 2**63-1; the same seed gives the same text; None draws one
    return_full_text      put the prompt before each text (default: yes)
    details               return every token with its log-probability

    The model has no defaults for these; left out, they do nothing:

    min_p                 0 to 1; keep tokens at least that likely as the likeliest one
    typical_p             0 < p <= 1; keep the most typical tokens that together reach p
    presence_penalty      -2 to 2; taken off the logits of tokens that were generated already
    frequency_penalty     -2 to 2; the same, as often as they were generated
    logit_bias            token id to -100 .. 100, added to its logit; -100 bans the token
    ignore_eos            go on after end-of-text
    max_time              > 0; seconds after the prompt began to be read, after which no token
                          is begun; every sequence has one at least
    top_logprobs          0 to 20; that many likeliest tokens beside each token; sets `details`
    prompt_logprobs       log-probabilities of the prompt's tokens, too; max_new_tokens may be 0
    truncate              read only that many of the prompt's tokens, the last ones
    """

    num_return_sequences: int | None = None
    max_new_tokens: int | None = None
    min_new_tokens: int | None = None
    max_length: int | None = None
    min_length: int | None = None
    do_sample: bool | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    repetition_penalty: float | None = None
    no_repeat_ngram_size: int | None = None
    stop: tuple[str, ...] = ()
    seed: int | None = None
    return_full_text: bool = True
    details: bool = False
    min_p: float | None = None
    typical_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[int, float] | None = None
    ignore_eos: bool = False
    max_time: float | None = None
    top_logprobs: int = 0
    prompt_logprobs: bool = False
    truncate: int | None = None


class ResolvedParams(msgspec.Struct, frozen=True, kw_only=True):
    """`SamplingParams` with nothing left open, for a prompt of known length.

    `max_tokens` and `min_tokens` bound the number of generated tokens.
    """

    sequences: int
    max_tokens: int
    min_tokens: int
    do_sample: bool
    temperature: float
    top_k: int
    top_p: float
    repetition_penalty: float
    no_repeat_ngram_size: int
    stop: tuple[str, ...]
    seed: int
    return_full_text: bool
    details: bool
    min_p: float = 0.0
    typical_p: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: dict[int, float] = {}
    ignore_eos: bool = False
    max_time: float | None = None
    top_logprobs: int = 0
    prompt_logprobs: bool = False
