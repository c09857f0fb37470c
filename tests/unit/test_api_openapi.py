"""What `/schema` says, against what the server does."""

from __future__ import annotations

import re
import runpy
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

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
    text = {"type": "string", "minLength": 1, "maxLength": 256}
    assert fields["stop"]["anyOf"][:2] == [text, {"type": "array", "items": text, "maxItems": 16}]
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


def test_a_default_is_a_value_that_the_field_can_have() -> None:
    document = schema(admin_key=KEY)
    for methods in document["paths"].values():
        for operation in methods.values():
            for parameter in operation.get("parameters", ()):
                assert parameter["in"] != "path" or "default" not in parameter["schema"]
    fields = document["components"]["schemas"]["GenerateRequest"]["properties"]
    assert {name: field["default"] for name, field in fields.items() if "default" in field} == {
        "return_full_text": True,
        "details": False,
        "stream": False,
    }


def test_what_an_answer_always_has_is_required() -> None:
    schemas = schema(admin_key=KEY)["components"]["schemas"]
    assert schemas["ModelCard"]["required"] == ["title", "handle", "example_prompts", "picture"]
    assert schemas["Token"]["required"] == ["id", "text", "logprob"]
    assert "title" not in schemas["ModelEntry"]["required"]
    assert "finish_reason" in schemas["CompletionChoice"]["required"]
    assert "default" not in str(schemas["CompletionChoice"])


def test_generators_of_clients_know_what_is_in_it() -> None:
    document = schema(admin_key=KEY)
    assert document["info"]["license"]["identifier"] == "Apache-2.0"
    assert document["security"] == []
    false = [{"type": "boolean", "const": False}, {"type": "null"}]
    schemas = document["components"]["schemas"]
    for name, field in (
        ("TextGenerationParameters", "watermark"),
        ("PipelineParameters", "watermark"),
        ("TgiRequest", "stream"),
        ("StreamOptions", "include_obfuscation"),
    ):
        assert schemas[name]["properties"][field]["anyOf"] == false
        assert "enum" not in schemas[name]["properties"][field]


def test_a_list_is_not_forbidden_to_a_key(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("# nobody\n", encoding="utf-8")
    paths = schema(api_key_file=file)["paths"]
    assert {"401", "403"} <= set(paths["/models/{name}/info"]["get"]["responses"])
    assert {"401", "403"} <= set(paths["/generate"]["post"]["responses"])
    assert "401" in paths["/models"]["get"]["responses"]
    assert "403" not in paths["/models"]["get"]["responses"]


@pytest.mark.parametrize("path", ["", "/", "/docs", "/docs/", "/openapi.json", "/nothing"])
def test_the_schema_s_own_addresses_have_request_ids(path: str) -> None:
    answer = Served().request("GET", f"/schema{path}", headers={"X-Request-Id": "mine"})
    assert answer.status_code == (404 if path == "/nothing" else 200)
    assert answer.headers["x-request-id"] == "mine"


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
    assert "| `top_p` | number > 0 and ≤ 1 or null | optional |" in text
    assert "| `seed` | integer ≥ 0 and ≤ 2⁶³-1 or null | optional |" in text
    texts = "(string (1 to 256 characters))"
    assert f"| `stop` | {texts[1:-1]} or list (up to 16) of {texts} or null | optional |" in text
    assert (
        "| `prompt` | string or list (at least 1) of string or list (at least 1) of integer ≥ 0 or "
        "list (at least 1) of (list (at least 1) of integer ≥ 0) or null | required |"
    ) in text
    assert "| `watermark` | `false` or null | optional |" in text
    assert '| `state` | query | `"fetching"` or `"loading"` or `"resident"` | optional |' in text
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
    links = set(re.findall(r'href="#([^"]*)"', answer.text))
    assert {"post-generate", "get-modelsidinfo", "generaterequest"} <= links
    assert links <= set(re.findall(r' id="([^" ]*)"', answer.text))


@pytest.mark.parametrize("path", ["/schema/docs", "/schema/docs/"])
def test_the_page_of_the_reference_finds_its_style(path: str) -> None:
    answer = Served().request("GET", path)
    (style,) = re.findall(r'<link rel="stylesheet" href="([^"]*)">', answer.text)
    found = Served().request("GET", urljoin(path, style))
    assert found.status_code == 200
    assert found.headers["content-type"].startswith("text/css")


def test_the_reference_tells_of_headers() -> None:
    text = reference(schema())
    assert "| `X-Request-Id` | all |" in text
    assert "| `Server-Timing` | 200 |" in text
    assert "| `Retry-After` | 429, 503 |" in text


def test_a_text_of_the_schema_is_no_html() -> None:
    document = schema()
    document["info"]["title"] = "<script>alert(1)</script>"
    assert "<script" not in page(document)
