"""What `/schema` says, against what the server does."""

from __future__ import annotations

from typing import Any

import pytest

from gpt2serve.api.problems import PROBLEM_JSON
from tests.unit.api_support import Served

KEY = "correct-horse-battery"


def schema(**settings: Any) -> dict[str, Any]:
    document: dict[str, Any] = Served(**settings).request("GET", "/schema").json()
    return document


def operations() -> list[tuple[str, dict[str, Any]]]:
    return [
        (f"{method} {path}", operation)
        for path, methods in schema(admin_key=KEY)["paths"].items()
        for method, operation in methods.items()
    ]


def compatible(name: str) -> bool:
    """Whether errors have another surface's shape: OpenAI's, Hugging Face's."""
    method, path = name.split()
    return path.startswith("/v1/") or (method == "post" and path.startswith("/models/"))


def test_ranges_of_fields_that_may_be_null_are_told() -> None:
    fields = schema()["components"]["schemas"]["GenerateRequest"]["properties"]
    assert fields["top_p"]["anyOf"] == [
        {"type": "number", "exclusiveMinimum": 0, "maximum": 1},
        {"type": "null"},
    ]
    assert fields["stop"]["anyOf"][1]["maxItems"] == 16
    assert fields["seed"]["anyOf"][0]["maximum"] == 2**63 - 1


def test_fields_that_are_unknown_are_said_to_be_refused() -> None:
    request = schema()["components"]["schemas"]["GenerateRequest"]
    assert request["additionalProperties"] is False
    assert request["required"] == ["model", "prompt"]


def test_a_route_that_streams_says_so() -> None:
    answer = schema()["paths"]["/generate"]["post"]["responses"]["200"]
    assert set(answer["content"]) == {"application/json", "text/event-stream"}


@pytest.mark.parametrize(("name", "operation"), operations(), ids=lambda value: str(value)[:40])
def test_every_operation_is_told_whole(name: str, operation: dict[str, Any]) -> None:
    assert operation["summary"]
    for status, answer in operation["responses"].items():
        assert "X-Request-Id" in answer["headers"]
        assert ("Retry-After" in answer["headers"]) == (status in {"429", "503"})
        assert "Validation Exception" not in str(answer)
        if int(status) >= 400 and not compatible(name):
            assert set(answer["content"]) == {PROBLEM_JSON}


def test_operations_have_names_of_their_own() -> None:
    names = [operation["operationId"] for _, operation in operations()]
    assert len(set(names)) == len(names)


def test_every_reference_leads_somewhere() -> None:
    document = schema(admin_key=KEY)
    text = str(document)
    there = set(document["components"]["schemas"])
    wanted = {part.split("'")[0] for part in text.split("#/components/schemas/")[1:]}
    assert wanted <= there
