"""What a client is told about a body that is wrong."""

from __future__ import annotations

import httpx
import msgspec
import pytest

from gpt2serve.api.bodies import _fits, _has_many_parts, _with_integers
from gpt2serve.api.openai.schemas import CompletionRequest
from gpt2serve.api.problems import body_error
from gpt2serve.errors import InvalidRequest
from tests.unit.api_support import Served


class Inner(msgspec.Struct, forbid_unknown_fields=True):
    share: float = 1.0
    names: list[str] = []
    by_number: dict[int, str] = {}


class Body(msgspec.Struct, forbid_unknown_fields=True):
    inner: Inner
    many: list[Inner] = []


def told(body: bytes) -> InvalidRequest:
    with pytest.raises(msgspec.ValidationError) as refused:
        msgspec.json.decode(body, type=Body)
    error = body_error(refused.value)
    assert isinstance(error, InvalidRequest)
    return error


@pytest.mark.parametrize(
    ("body", "field", "message"),
    [
        (b'{"inner": {"share": "x"}}', "inner.share", "expected float, got str"),
        (b'{"inner": {"names": [1]}}', "inner.names", "expected str, got int"),
        (b'{"inner": {"by_number": {"a": ""}}}', "inner.by_number", "a key: expected int, got str"),
        (b'{"inner": {"by_number": {"1": 2}}}', "inner.by_number", "expected str, got int"),
        (b'{"inner": {"other": 1}}', "inner.other", "is not a field of this request"),
        (b'{"inner": {}, "other": 1}', "other", "is not a field of this request"),
        (b'{"inner": {}, "many": [{"other": 1}]}', "many.other", "is not a field of this request"),
        (b'{"inner": {}, "a`b\\nc": 1}', "a`b\nc", "is not a field of this request"),
        (b"{}", "inner", "is required"),
    ],
)
def test_the_field_is_named_wherever_it_is(body: bytes, field: str, message: str) -> None:
    error = told(body)
    assert (error.field, error.message) == (field, message)


def completion(body: str) -> httpx.Response:
    return Served().request("POST", "/v1/completions", content=body)


def message(answer: httpx.Response) -> str:
    text: str = answer.json()["error"]["message"]
    return text


def test_what_takes_long_to_read_is_not_read() -> None:
    """Bodies are read in the event loop: a megabyte of lists had held up everybody for seconds."""
    for prompt in ("[1]," * 10_000 + "[1]", "{}," * 10_000 + "{}"):
        answer = completion(f'{{"model": "me/model", "prompt": [{prompt}]}}')
        assert answer.status_code == 400
        assert message(answer) == "The body has more than 10,000 lists and objects."
    answer = completion('{"model": "me/model", "prompt": "' + "[" * 20_000 + '", "n": 0}')
    assert message(answer).startswith("n: ")  # brackets in a text are none


@pytest.mark.parametrize(
    ("text", "many"),
    [
        ('"' + "[" * 10_001 + '"', False),
        ('"' + "[" * 10_001, False),
        (r'"\"' + "[" * 10_001 + '"', False),
        (r'"\\"' + "[" * 10_001, True),
        ('"a"' + "[" * 10_001, True),
        ("[" * 5_000 + "{" * 5_001, True),
        ("[" * 5_000 + "{" * 5_000, False),
        ('"' + r"\"" * 200_000 + "[" * 10_001, False),
    ],
)
def test_lists_and_objects_are_counted_outside_of_texts(text: str, *, many: bool) -> None:
    assert _has_many_parts(text.encode()) is many


def test_integers_that_are_written_as_floats() -> None:
    assert _with_integers([5.0, {"a": -0.0}, 0.5]) == [5, {"a": 0}, 0.5]
    for large in (1e308, 2.0**54):  # hundreds of digits take long
        assert type(_with_integers(large)) is float
    body = '{{"model": "me/model", "prompt": "{}", "max_tokens": 5.0, "n": 0.5}}'
    assert message(completion(body.format("x"))).startswith("max_tokens: expected int")
    assert _fits(body.format("x").replace("0.5", "1.0").encode(), CompletionRequest)
    assert not _fits(body.format("x" * 66_000).replace("0.5", "1.0").encode(), CompletionRequest)
