"""How many tokens may be generated, and how many must be.

A prompt's tokens count the model's prefix, too. As in transformers, explicit lengths in new
tokens win over total lengths, and total lengths do not count the prefix.
"""

from __future__ import annotations

from gpt2serve.engine.checks import check_integer
from gpt2serve.engine.params import SamplingParams
from gpt2serve.errors import ContextExceeded, InvalidRequest
from gpt2serve.package import GenerationDefaults


def max_tokens(
    params: SamplingParams,
    defaults: GenerationDefaults,
    prompt_tokens: int,
    prefix_tokens: int,
    context_length: int,
) -> int:
    """Tokens to generate at most. Raises `InvalidRequest`."""
    room = context_length - prompt_tokens
    least = 0 if params.prompt_logprobs and params.max_new_tokens == 0 else 1
    if room < least:
        more = " and at least one more is to be generated" if least else ""
        raise ContextExceeded.by(
            "prompt", context_length, f"but this has {prompt_tokens} tokens{more}"
        )
    if params.max_new_tokens is not None:
        asked = check_integer("max_new_tokens", params.max_new_tokens, least)
        return _within_room("max_new_tokens", asked, room, prompt_tokens, context_length)
    if params.max_length is not None:
        length = check_integer("max_length", params.max_length, 1) + prefix_tokens
        asked = _beyond_prompt("max_length", length, prompt_tokens)
        return _within_room("max_length", asked, room, prompt_tokens, context_length)
    if defaults.max_new_tokens is not None:
        return min(defaults.max_new_tokens, room)
    if defaults.max_length is not None:
        length = min(defaults.max_length + prefix_tokens, context_length)
        return _beyond_prompt("prompt", length, prompt_tokens)
    return room


def min_tokens(
    params: SamplingParams,
    defaults: GenerationDefaults,
    prompt_tokens: int,
    prefix_tokens: int,
    most: int,
) -> int:
    """Tokens before which the text may not end. min_new_tokens wins over min_length, as in
    transformers. Raises `InvalidRequest`."""
    new = params.min_new_tokens
    total = params.min_length
    if new is None and total is None:
        new, total = defaults.min_new_tokens, defaults.min_length
    total = check_integer("min_length", 0 if total is None else total, 0)
    if new is not None:
        wanted = check_integer("min_new_tokens", new, 0)
    else:
        wanted = max(total + prefix_tokens - prompt_tokens, 0)
    if params.min_new_tokens is not None and wanted > most:
        raise InvalidRequest(
            "min_new_tokens", f"{wanted} is more than the {most} tokens that are allowed"
        )
    return min(wanted, most)


def _within_room(field: str, asked: int, room: int, prompt_tokens: int, context: int) -> int:
    if asked > room:
        raise ContextExceeded.by(
            field,
            context,
            f"of which the prompt takes {prompt_tokens}: at most {room} new ones are possible, "
            f"not {asked}",
        )
    return asked


def _beyond_prompt(field: str, length: int, prompt_tokens: int) -> int:
    if length <= prompt_tokens:
        raise InvalidRequest(
            field,
            f"the prompt has {prompt_tokens} tokens and the length is bounded to {length}, so "
            "nothing can be generated; use max_new_tokens, or raise max_length",
        )
    return length - prompt_tokens
