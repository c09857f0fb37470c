"""The legacy `logprobs` object: names of tokens, their log-probabilities, where they begin."""

from __future__ import annotations

from typing import Any

import pytest

from gpt2serve.api.openai.logprobs import LogprobsWriter, Offsets, token_name
from gpt2serve.engine.events import PromptToken, TopToken
from tests.unit.openai_support import (
    A_TIME,
    END,
    FakeTokenizer,
    Prepared,
    choices,
    ended,
    prompt_tokens,
    sequence,
    served,
    token,
)

TOKENIZER: Any = FakeTokenizer()


@pytest.mark.parametrize(
    ("number", "name"),
    [
        (1, "Once"),
        (2, " upon"),
        (6, "bytes: \\xe2\\x82"),
        (7, "bytes:\\xac"),
        (END, "<|endoftext|>"),
    ],
)
def test_names_of_tokens(number: int, name: str) -> None:
    assert token_name(TOKENIZER, number) == name


def test_lists_have_an_element_for_each_token() -> None:
    tokens = [
        token(3, " a", -0.5, TopToken(4, -0.25), TopToken(3, -0.5)),
        token(4, " time", -2.0, TopToken(3, -0.1), TopToken(2, -0.2)),
        token(END, "", -3.0),
    ]
    (choice,) = choices(served(ended(sequence(0, tokens, "eos"))), logprobs=2)
    assert choice["logprobs"] == {
        "text_offset": [0, 2, 7],
        "token_logprobs": [-0.5, -2.0, -3.0],
        "tokens": [" a", " time", "<|endoftext|>"],
        "top_logprobs": [
            {" time": -0.25, " a": -0.5},
            # The token itself is there although it is none of the two likeliest.
            {" a": -0.1, " upon": -0.2, " time": -2.0},
            {"<|endoftext|>": -3.0},
        ],
    }


def offsets(spelled: list[bytes], text: str, begun: bytes = b"") -> list[int]:
    found = Offsets(begun)
    for token_bytes in spelled:
        found.token(token_bytes)
    found.text(text)
    return found.known(final=True)


@pytest.mark.parametrize(
    ("spelled", "text", "expected"),
    [
        ([b"do", b" n", b"'t"], "don't", [0, 2, 3]),
        ([b"Hello", b" .", b" So"], "Hello. So", [0, 5, 6]),
        ([b"say", b" '", b" hi"], "say'hi", [0, 3, 4]),
        # A stop string has cut off the rest.
        ([b"a", b" b", b"\n", b"c"], "a b", [0, 1, 3, 3]),
        # All bytes of a character begin where it does.
        ([b" \xe2", b"\x82", b"\xac", b"!"], " \u20ac!", [0, 1, 1, 2]),
        ([b"\xff", b"a"], "\ufffda", [0, 1]),
        # A character that never becomes whole ends where the next token begins.
        ([b" \xe2", b"!", b"?"], " \ufffd!?", [0, 2, 3]),
        ([b"\xe2\x82", b"\xe2\x82\xac"], "\ufffd\u20ac", [0, 1]),
        ([b"\xe2", b"", b"a"], "\ufffda", [0, 0, 1]),
        ([b""], "", [0]),
    ],
)
def test_offsets_are_those_in_the_text_that_is_returned(
    spelled: list[bytes], text: str, expected: list[int]
) -> None:
    assert offsets(spelled, text) == expected


def test_offsets_after_a_character_that_the_prompt_began() -> None:
    assert offsets([b"\x82\xac", b"!"], "\u20ac!", begun=b"\xe2") == [0, 1]
    assert offsets([b"!"], "\ufffd!", begun=b"\xe2") == [1]


def test_an_offset_waits_for_the_text_before_it() -> None:
    found = Offsets()
    found.token(b"a")
    assert found.known() == [0]
    found.token(b" .")
    assert found.known() == []
    found.text("a")
    assert found.known() == [1]


def test_special_tokens_of_a_prompt_stand_there_by_name() -> None:
    writer = LogprobsWriter(TOKENIZER)
    tokens = [PromptToken(1, None), PromptToken(END, -1.0), PromptToken(2, -1.0)]
    writer.prompt(tokens, "Once<|endoftext|> upon")
    found = writer.take()
    assert found is not None
    assert found.text_offset == [0, 4, 17]
    # Of token ids the text has no special tokens.
    writer = LogprobsWriter(TOKENIZER)
    writer.prompt(tokens, "Once upon")
    found = writer.take()
    assert found is not None
    assert found.text_offset == [0, 4, 4]

    writer = LogprobsWriter(TOKENIZER)
    writer.prompt([PromptToken(END, None), PromptToken(9, -1.0)], "end")
    found = writer.take()
    assert found is not None
    assert found.text_offset == [0, 0]


def test_the_prefix_of_a_model_is_not_shown() -> None:
    steps = [prompt_tokens(END, 1, 2), *ended(sequence(0, A_TIME, "eos", "Once upon"))]
    prepared = Prepared("Once upon", prefix_tokens=1)
    (choice,) = choices(served(steps, prepared), echo=True, logprobs=0)
    assert choice["logprobs"]["tokens"][:3] == ["Once", " upon", " a"]
    assert choice["logprobs"]["token_logprobs"][:3] == [-1.5, -1.5, -0.5]
    assert choice["logprobs"]["text_offset"] == [0, 4, 9, 11, 16, 17]


@pytest.mark.parametrize("echo", [False, True])
def test_a_character_that_the_prompt_begins_and_the_text_ends(echo: bool) -> None:
    """The prompt is " a" and the first half of " €"."""
    tokens = [token(7, "€"), token(4)]
    prompt = " a " if echo else ""
    steps = [prompt_tokens(3, 6), *ended(sequence(0, tokens, prompt=prompt))]
    prepared = Prepared(" a ", begun=b"\xe2\x82")
    (choice,) = choices(served(steps, prepared), echo=echo, logprobs=0)
    assert choice["text"] == f"{prompt}€ time"
    where = [choice["text"][start:] for start in choice["logprobs"]["text_offset"]]
    assert where[-2:] == ["€ time", " time"]
    assert where[:-2] == ([" a € time", " € time"] if echo else [])


def test_an_empty_prompt_is_the_token_that_texts_begin_with() -> None:
    writer = LogprobsWriter(TOKENIZER)
    writer.prompt([PromptToken(END, None)], "")
    writer.token(token(3))
    found = writer.take()
    assert found is not None
    assert (found.tokens, found.text_offset) == (["<|endoftext|>", " a"], [0, 0])
    assert found.top_logprobs[0] is None
