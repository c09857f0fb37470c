"""What a client is told about a body that is wrong."""

from __future__ import annotations

import msgspec
import pytest

from gpt2serve.api.problems import body_error
from gpt2serve.errors import InvalidRequest


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
