"""The bodies that Hugging Face's clients send, as msgspec structs.

Named after the types of `huggingface_hub`. They document themselves in `/schema`.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import Meta

from gpt2serve.api.fields import Count, CountOrZero, Positive, StopString, described
from gpt2serve.engine.checks import MAX_STOP_STRINGS
from gpt2serve.engine.params import MAX_SEED, MOST_TOP_LOGPROBS

#: Each takes a place in the queue.
MOST_INPUTS = 128


def _only(description: str, *, value: bool) -> Meta:
    """Of a boolean that may be null, the value that is accepted."""
    return Meta(description=description, extra_json_schema={"enum": [value, None]})


def _refused(name: str) -> Meta:
    return Meta(description=f"{name} is not supported.", extra_json_schema={"type": "null"})


_Share = Annotated[float, Meta(gt=0, le=1)]
_Stops = Annotated[list[StopString], Meta(max_length=MAX_STOP_STRINGS)]


class TextGenerationParameters(
    msgspec.Struct, kw_only=True, forbid_unknown_fields=True, frozen=True
):
    """How to continue, in the words of Text Generation Inference. Null is as good as left out."""

    max_new_tokens: Annotated[
        Count | None,
        described("Most tokens to generate; left out, the model's own default.", 20),
    ] = None
    do_sample: Annotated[
        bool | None,
        described(
            "Draw at random; false takes the likeliest token each time, unless a temperature, "
            "top_k, top_p or typical_p is given that shapes a draw. Left out, `POST /models/{id}` "
            "draws, and the other addresses do so if any of those is given."
        ),
    ] = None
    temperature: Annotated[
        Positive | None,
        described("Below 1 sharpens the distribution, above 1 flattens it.", 0.7),
    ] = None
    top_k: Annotated[
        CountOrZero | None, described("Keep the k likeliest tokens; 0 keeps all.", 50)
    ] = None
    top_p: Annotated[
        _Share | None,
        described("Keep the likeliest tokens that together reach this probability.", 0.95),
    ] = None
    typical_p: Annotated[
        _Share | None,
        described("Keep the most typical tokens that together reach this probability.", 0.95),
    ] = None
    repetition_penalty: Annotated[
        Positive | None,
        described("Above 1 makes tokens that were there already less likely.", 1.03),
    ] = None
    frequency_penalty: Annotated[
        Annotated[float, Meta(ge=-2, le=2)] | None,
        described("Taken off a token's logit as often as it was generated already.", 0.1),
    ] = None
    stop: Annotated[
        _Stops | None, described("The text ends where one of these would begin.", ["\n"])
    ] = None
    stop_sequences: Annotated[_Stops | None, described("Another name of `stop`.", ["\n"])] = None
    seed: Annotated[
        Annotated[int, Meta(ge=0, le=MAX_SEED)] | None,
        described("The same seed gives the same text. Drawn if left out.", 7),
    ] = None
    truncate: Annotated[Count | None, described("Read only the last tokens of inputs.", 100)] = None
    return_full_text: Annotated[
        bool | None,
        described(
            "Put inputs in front of the text. Left out, `POST /models/{id}` does, and the other "
            "addresses do not."
        ),
    ] = None
    best_of: Annotated[
        Count | None,
        described("Draw that many texts and return the one whose tokens are likeliest.", 1),
    ] = None
    details: Annotated[bool | None, described("Tell about every token.")] = None
    decoder_input_details: Annotated[
        bool | None, described("Tell about every token of inputs, too; sets `details`.")
    ] = None
    top_n_tokens: Annotated[
        Annotated[int, Meta(ge=0, le=MOST_TOP_LOGPROBS)] | None,
        described("In details and streams, the likeliest tokens beside each token.", 2),
    ] = None
    watermark: Annotated[bool | None, _only("A watermark is not supported.", value=False)] = None
    grammar: Annotated[Any, _refused("A grammar")] = None
    adapter_id: Annotated[Any, _refused("An adapter")] = None


class PipelineParameters(TextGenerationParameters, kw_only=True, frozen=True):
    """`TextGenerationParameters`, and what transformers' pipeline and the Inference API take, too.

    What is left out takes the model's own default, as in `POST /generate`.
    """

    num_return_sequences: Annotated[
        Count | None, described("Texts to return; at most the server's batch size.", 1)
    ] = None
    max_time: Annotated[
        Positive | None, described("Seconds after which no token is begun.", 60.0)
    ] = None
    max_length: Annotated[
        Count | None, described("Most tokens of inputs and generated text together.", 80)
    ] = None
    min_length: Annotated[
        CountOrZero | None,
        described("No end of text before inputs and generated text have that many tokens.", 0),
    ] = None
    min_new_tokens: Annotated[
        CountOrZero | None, described("No end of text before that many generated tokens.", 0)
    ] = None
    no_repeat_ngram_size: Annotated[
        CountOrZero | None,
        described("Sequences of that many tokens occur once only; 0 allows all.", 0),
    ] = None


class InferenceOptions(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, frozen=True):
    """How the Inference API is to behave."""

    wait_for_model: Annotated[
        bool | None,
        described(
            "false: if the model is not in memory, answer 503 and load it meanwhile. Left out, the "
            "answer waits for the model, mostly for milliseconds."
        ),
    ] = None
    use_cache: Annotated[
        bool | None, described("There is no cache of answers, so neither value changes anything.")
    ] = None
    # The rest is what clients in JavaScript and R say of themselves.
    retry_on_error: Annotated[
        bool | None, described("Whether the client tries again after a 503. It changes nothing.")
    ] = None
    use_gpu: Annotated[
        bool | None, _only("What computes is the server's choice, so only false.", value=False)
    ] = None
    dont_load_model: Annotated[
        bool | None, _only("Models are loaded when they are asked for, so only false.", value=False)
    ] = None


class InferenceRequest(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, frozen=True):
    """The body of `POST /models/{id}`."""

    inputs: Annotated[
        str | Annotated[list[str], Meta(min_length=1, max_length=MOST_INPUTS)],
        described("The text to continue, or several.", "My dream is"),
    ]
    parameters: PipelineParameters | None = None
    options: InferenceOptions | None = None
    stream: Annotated[bool | None, described("Answer with text/event-stream, token by token.")] = (
        None
    )


class _TgiRequest(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, frozen=True):
    inputs: Annotated[str, described("The text to continue.", "My dream is")]
    parameters: Annotated[
        TextGenerationParameters | None,
        described("Without any, tokens are drawn; with an empty object, they are not."),
    ] = None
    options: InferenceOptions | None = None


# huggingface_hub says `stream` to whatever address it is given.
class TgiRequest(_TgiRequest, kw_only=True, frozen=True):
    """The body of `POST /models/{id}/generate`."""

    stream: Annotated[bool | None, _only("true is for /generate_stream.", value=False)] = None


class TgiStreamRequest(_TgiRequest, kw_only=True, frozen=True):
    """The body of `POST /models/{id}/generate_stream`."""

    stream: Annotated[bool | None, _only("false is for /generate.", value=True)] = None
