"""What `/schema` says, against what the server does."""

from __future__ import annotations

import re
import runpy
from pathlib import Path
from typing import Any

import pytest

from gpt2serve.api.problems import PROBLEM_JSON
from gpt2serve.api.reference import page, reference
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


# -- the reference ---------------------------------------------------------------------------


def test_the_page_in_docs_is_what_the_server_says() -> None:
    """If this fails, `make docs` renews it."""
    folder = Path(__file__).parents[2] / "docs"
    make_api = runpy.run_path(str(folder / "make_api.py"))
    assert (folder / "api.md").read_text(encoding="utf-8") == make_api["api_page"]()


def test_the_reference_has_every_field_with_range_and_default() -> None:
    text = reference(schema())
    assert "| `top_p` | number > 0 and ≤ 1 or null | `null` |" in text
    assert "| `seed` | integer ≥ 0 and ≤ 2⁶³-1 or null | `null` |" in text
    assert "| `stop` | string or list of string (up to 16) or null | `null` |" in text
    assert "| `return_full_text` | boolean | `true` |" in text
    assert "| `limit` | query | integer ≥ 1 and ≤ 1000 | `100` |" in text
    assert "### `GET /models/{id}/info`" in text
    for name, body in schema()["components"]["schemas"].items():
        section = text.partition(f"### {name}\n")[2].partition("\n### ")[0]
        assert section.startswith("\n")
        assert section.count("\n| `") == len(body["properties"])


def test_the_reference_is_a_page_that_needs_no_script_and_no_other_server() -> None:
    answer = Served().request("GET", "/schema/docs")
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    policy = answer.headers["content-security-policy"].split("; ")
    assert policy[:2] == ["default-src 'none'", "style-src 'self'"]
    assert "<script" not in answer.text
    assert "http://" not in answer.text
    assert "https://" not in answer.text
    style = Served().request("GET", "/playground/reference.css")
    assert style.headers["content-type"].startswith("text/css")
    links = set(re.findall(r'href="#([^"]*)"', answer.text))
    assert links
    assert links <= set(re.findall(r' id="([^"]*)"', answer.text))


def test_a_text_of_the_schema_is_no_html() -> None:
    document = schema()
    document["info"]["title"] = "<script>alert(1)</script>"
    assert "<script" not in page(document)
