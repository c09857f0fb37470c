"""What the model reads, and what is said of it: texts, token ids, halves of characters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
import tokenizers

from gpt2serve.engine.defaults import resolve
from gpt2serve.engine.params import SamplingParams
from gpt2serve.engine.prompts import tokenise
from gpt2serve.engine.text import TextStream, whole_characters
from gpt2serve.engine.tokenizer import Tokenizer
from gpt2serve.errors import InvalidRequest
from gpt2serve.package import GenerationDefaults
from tests.engine_fakes import DIMENSIONS, EOS, letters_tokenizer, manifest

PREFIXED = manifest(defaults=GenerationDefaults(prefix="ab"))


@pytest.fixture
def tokenizer(tmp_path: Path) -> Tokenizer:
    path = tmp_path / "tokenizer.json"
    path.write_bytes(letters_tokenizer())
    return Tokenizer(path)


def test_ids_are_taken_as_they_are(tokenizer: Tokenizer) -> None:
    read = tokenise([4, EOS, 5], PREFIXED, tokenizer)
    assert (read.ids, read.text, read.prefix_tokens) == ([4, EOS, 5], "cd", 0)
    read = tokenise("cd", PREFIXED, tokenizer)
    assert (read.ids, read.text, read.prefix_tokens) == ([2, 3, 4, 5], "cd", 2)


@pytest.mark.parametrize(
    "prompt", [[], (), [29], [-1], [1, True], [1.0], ["a"], [[1]], b"abc", None, 5, {1: 2}, {1}]
)
def test_what_is_no_prompt_is_refused_by_name(tokenizer: Tokenizer, prompt: Any) -> None:
    with pytest.raises(InvalidRequest) as caught:
        tokenise(prompt, PREFIXED, tokenizer)
    assert caught.value.field == "prompt"


@pytest.mark.parametrize("prompt", ["a" * 16_385, "\U0001f600" * 4_097, "\ud800" * 16_385])
def test_what_cannot_fit_is_refused_before_it_is_tokenised(prompt: str) -> None:
    described = manifest(dimensions=msgspec.structs.replace(DIMENSIONS, context_length=128))
    with pytest.raises(InvalidRequest, match=r"too few for 163[0-9]+ bytes") as caught:
        tokenise(prompt, described, None)  # type: ignore[arg-type]
    assert caught.value.field == "prompt"


@pytest.mark.parametrize("prompt", ["\ud800", "a" * 300 + "\ud800"])
def test_half_of_a_character_is_no_text(tokenizer: Tokenizer, prompt: str) -> None:
    with pytest.raises(InvalidRequest, match="not valid Unicode"):
        tokenise(prompt, manifest(), tokenizer)


def test_a_character_that_the_prompt_begins_is_ended_by_the_text() -> None:
    euro = "\u20ac".encode()
    assert whole_characters(b"a " + euro[:2]) == ("a ", euro[:2])
    assert whole_characters(b"a\xff") == ("a\ufffd", b"")
    pieces = [euro[2:], b"!"]
    stream = TextStream(pieces.__getitem__, begun=euro[:2])
    assert stream.push([0]) + stream.push([1]) + stream.finish() == "\u20ac!"
    assert TextStream(pieces.__getitem__, begun=euro[:2]).finish() == "\ufffd"


def limits(truncate: int, **asked: Any) -> tuple[int, int]:
    """For a prompt of twenty tokens, two of them its prefix, in a context of 16."""
    resolved = resolve(
        SamplingParams(do_sample=True, truncate=truncate, **asked),
        GenerationDefaults(),
        prompt_tokens=20,
        prefix_tokens=2,
        context_length=16,
        vocab_size=29,
        max_sequences=1,
    )
    return resolved.max_tokens, resolved.min_tokens


def test_a_truncated_prompt_leaves_room() -> None:
    assert limits(10) == (6, 0)
    # The prefix is gone, so total lengths count all that is left.
    assert limits(10, max_length=12, min_length=11) == (2, 1)
    for too_many in (16, 17, 10**6):
        with pytest.raises(InvalidRequest, match="context length is 16 tokens, "):
            limits(too_many)


def test_a_prompt_that_is_only_scored_may_fill_the_context() -> None:
    assert limits(16, prompt_logprobs=True, max_new_tokens=0) == (0, 0)
    with pytest.raises(InvalidRequest, match=r"but this has 17 tokens$"):
        limits(17, prompt_logprobs=True, max_new_tokens=0)
    with pytest.raises(InvalidRequest, match="max_new_tokens"):
        limits(10, max_new_tokens=0)
    with pytest.raises(InvalidRequest, match="but this has 16 tokens and at least one more"):
        limits(16, prompt_logprobs=True)


def test_special_tokens_have_names_and_no_bytes(tmp_path: Path) -> None:
    inner = tokenizers.Tokenizer.from_str(letters_tokenizer().decode())
    inner.add_special_tokens(["<|endoftext|>"])
    inner.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer(tmp_path / "tokenizer.json")
    (special,) = tokenizer.encode("<|endoftext|>")
    assert (tokenizer.special_name(special), tokenizer.token_bytes(special)) == (
        "<|endoftext|>",
        b"",
    )
    assert tokenizer.special_name(2) is None
