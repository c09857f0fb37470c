"""OpenAI's completions over a fake engine: what is accepted, translated, refused, answered."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest

from gpt2serve import errors
from gpt2serve.api.openai.schemas import CompletionRequest
from gpt2serve.engine.params import SamplingParams
from gpt2serve.engine.stream import Delivery
from tests.unit.api_support import Served, send
from tests.unit.openai_support import (
    A_TIME,
    MINIMAL,
    MODEL,
    Prepared,
    assert_error,
    choices,
    complete,
    ended,
    sequence,
    served,
    token,
)

DEFAULTS = SamplingParams(
    num_return_sequences=1,
    max_new_tokens=16,
    min_new_tokens=0,
    do_sample=True,
    temperature=1.0,
    top_k=0,
    top_p=1.0,
    repetition_penalty=1.0,
    no_repeat_ngram_size=0,
    return_full_text=False,
)
OPTIONAL = sorted(set(CompletionRequest.__struct_fields__) - {"model", "prompt"})


def asked(**fields: Any) -> SamplingParams:
    server = served()
    answer = complete(server, **fields)
    assert answer.status_code == 200, answer.text
    ((model, _, params),) = server.engine.asked
    assert model == MODEL
    assert isinstance(params, SamplingParams)
    return params


# -- what the engine is asked -----------------------------------------------------------------


def test_fields_left_out_take_openais_defaults_not_the_models() -> None:
    assert asked() == DEFAULTS


def test_null_is_the_same_as_left_out() -> None:
    assert asked(**dict.fromkeys(OPTIONAL)) == DEFAULTS


@pytest.mark.parametrize(
    ("fields", "changes"),
    [
        ({"max_tokens": 40}, {"max_new_tokens": 40}),
        ({"n": 3}, {"num_return_sequences": 3}),
        ({"best_of": 3}, {"num_return_sequences": 3, "details": True}),
        ({"n": 3, "best_of": 3}, {"num_return_sequences": 3}),
        ({"temperature": 0.5}, {"temperature": 0.5}),
        ({"temperature": 3}, {"temperature": 3.0}),
        ({"temperature": 0}, {"do_sample": False}),
        ({"top_p": 0.5}, {"top_p": 0.5}),
        ({"top_p": 0}, {"top_p": 2.2250738585072014e-308}),
        ({"stop": "\n"}, {"stop": ("\n",)}),
        ({"stop": ["a", "b", "c", "d"]}, {"stop": ("a", "b", "c", "d")}),
        ({"stop": []}, {}),
        ({"logprobs": 0}, {"details": True}),
        ({"logprobs": 5}, {"details": True, "top_logprobs": 5}),
        ({"echo": True}, {"return_full_text": True}),
        (
            {"echo": True, "logprobs": 0},
            {"return_full_text": True, "prompt_logprobs": True, "details": True},
        ),
        (
            {"echo": True, "max_tokens": 0},
            {"return_full_text": True, "prompt_logprobs": True, "max_new_tokens": 0},
        ),
        ({"seed": 7}, {"seed": 7}),
        ({"seed": 2**63 - 1}, {"seed": 2**63 - 1}),
        ({"presence_penalty": -2}, {"presence_penalty": -2.0}),
        ({"frequency_penalty": 1.5}, {"frequency_penalty": 1.5}),
        ({"logit_bias": {"50256": -100, "3": 0.5}}, {"logit_bias": {50256: -100.0, 3: 0.5}}),
        ({"user": "somebody"}, {}),
        ({"stream": False}, {}),
        ({"top_k": 5}, {"top_k": 5}),
        ({"top_k": -1}, {}),
        ({"min_p": 0.25}, {"min_p": 0.25}),
        ({"repetition_penalty": 1.5}, {"repetition_penalty": 1.5}),
        ({"min_tokens": 4}, {"min_new_tokens": 4}),
        ({"ignore_eos": True}, {"ignore_eos": True}),
    ],
    ids=str,
)
def test_every_field_reaches_the_engine(fields: dict[str, Any], changes: dict[str, Any]) -> None:
    assert asked(**fields) == msgspec.structs.replace(DEFAULTS, **changes)


def test_every_field_has_a_test_here() -> None:
    (mark,) = (m for m in test_every_field_reaches_the_engine.pytestmark if m.name == "parametrize")
    tried = {name for fields, _ in mark.args[1] for name in fields}
    assert tried | {"suffix", "stream_options"} == set(OPTIONAL)


@pytest.mark.parametrize(
    ("prompt", "prompts"),
    [
        ("a", ["a"]),
        ("", [""]),
        (None, [""]),
        (["a", "b"], ["a", "b"]),
        ([1, 2], [[1, 2]]),
        ([[1, 2], [3]], [[1, 2], [3]]),
    ],
    ids=str,
)
def test_prompts_are_texts_or_tokens_one_or_many(prompt: Any, prompts: list[Any]) -> None:
    server = served()
    answer = complete(server, prompt=prompt)
    assert [given for _, given, _ in server.engine.asked] == prompts
    assert [choice["index"] for choice in answer.json()["choices"]] == list(range(len(prompts)))


# -- what is refused --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": []}, "prompt"),
        ({"prompt": [[]]}, "prompt"),
        ({"prompt": ["a", 1]}, "prompt"),
        ({"prompt": [1, [1]]}, "prompt"),
        ({"prompt": [1.5]}, "prompt"),
        ({"prompt": [-1]}, "prompt"),
        ({"prompt": ["a"] * 5}, "prompt"),
        ({"model": 1}, "model"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": "16"}, "max_tokens"),
        ({"n": 0}, "n"),
        ({"n": 9}, "n"),
        ({"n": 2, "temperature": 0}, "n"),
        ({"best_of": 0}, "best_of"),
        ({"best_of": 9}, "best_of"),
        ({"n": 3, "best_of": 2}, "best_of"),
        ({"best_of": 2, "temperature": 0}, "best_of"),
        ({"best_of": 2, "stream": True}, "best_of"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"top_p": 1.1}, "top_p"),
        ({"top_p": -0.1}, "top_p"),
        ({"stop": ""}, "stop"),
        ({"stop": ["a"] * 5}, "stop"),
        ({"stop": [1]}, "stop"),
        ({"stop": "a" * 257}, "stop"),
        ({"logprobs": 6}, "logprobs"),
        ({"logprobs": -1}, "logprobs"),
        ({"logprobs": True}, "logprobs"),
        ({"echo": 1}, "echo"),
        ({"seed": -1}, "seed"),
        ({"seed": 2**63}, "seed"),
        ({"seed": 1.5}, "seed"),
        ({"presence_penalty": 2.1}, "presence_penalty"),
        ({"frequency_penalty": -2.1}, "frequency_penalty"),
        ({"logit_bias": {"1": 101}}, "logit_bias"),
        ({"logit_bias": {"1": None}}, "logit_bias"),
        ({"logit_bias": {"a": 1}}, "logit_bias"),
        ({"logit_bias": {"-1": 1}}, "logit_bias"),
        ({"logit_bias": [1]}, "logit_bias"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": {}}, "stream_options"),
        ({"stream": True, "stream_options": {"other": 1}}, "stream_options.other"),
        (
            {"stream": True, "stream_options": {"include_obfuscation": True}},
            "stream_options.include_obfuscation",
        ),
        ({"user": 1}, "user"),
        ({"suffix": "the end"}, "suffix"),
        ({"top_k": -2}, "top_k"),
        ({"min_p": 1.1}, "min_p"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"min_tokens": -1}, "min_tokens"),
        ({"ignore_eos": 0}, "ignore_eos"),
        ({"messages": []}, "messages"),
        ({"num_return_sequences": 1}, "num_return_sequences"),
    ],
    ids=str,
)
def test_what_cannot_be_honoured_is_refused_by_name(fields: dict[str, Any], param: str) -> None:
    server = served()
    answer = complete(server, **fields)
    message = assert_error(answer, 400, "invalid_request_error", "invalid_value", param)
    assert message.startswith(f"{param}: ")
    assert server.engine.given == []


@pytest.mark.parametrize("name", ["model", "prompt"])
def test_what_is_missing_is_named(name: str) -> None:
    body = {key: value for key, value in MINIMAL.items() if key != name}
    answer = served().request("POST", "/v1/completions", json=body)
    assert_error(answer, 400, "invalid_request_error", "invalid_value", name)


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'"x"', b"\xff", b"[" * 100_000])
def test_a_body_that_is_no_json_object_is_400(body: bytes) -> None:
    answer = served().request("POST", "/v1/completions", content=body)
    assert_error(answer, 400, "invalid_request_error", "malformed_body")


def test_a_body_that_is_too_large_is_413() -> None:
    answer = Served(max_body_bytes=100).request(
        "POST", "/v1/completions", json=MINIMAL | {"prompt": "x" * 200}
    )
    assert_error(answer, 413, "invalid_request_error", "body_too_large")


@pytest.mark.parametrize(
    ("error", "status", "kind", "code", "param"),
    [
        (errors.ModelNotFound("x"), 404, "invalid_request_error", "model_not_found", "model"),
        (errors.InvalidModelId("x"), 404, "invalid_request_error", "model_not_found", "model"),
        (
            errors.InvalidRequest("max_new_tokens", "too many"),
            *(400, "invalid_request_error", "invalid_value", "max_tokens"),
        ),
        (
            errors.InvalidRequest("prompt", "too long"),
            *(400, "invalid_request_error", "invalid_value", "prompt"),
        ),
        (
            errors.ContextExceeded.by("max_new_tokens", 8, "too few"),
            *(400, "invalid_request_error", "context_length_exceeded", "max_tokens"),
        ),
        (
            errors.Overloaded("full", retry_after=2.5),
            *(429, "rate_limit_error", "overloaded", None),
        ),
        (errors.StepFailed("secret"), 500, "server_error", "generation_failed", None),
        (RuntimeError("secret"), 500, "server_error", "internal_error", None),
        (errors.EngineClosed(), 503, "server_error", "draining", None),
        (errors.ModelLoadFailed("secret"), 503, "server_error", "model_load_failed", None),
    ],
    ids=lambda value: type(value).__name__,
)
def test_errors_have_openais_shape(
    error: Exception, status: int, kind: str, code: str, param: str | None
) -> None:
    answer = complete(served(fails=error))
    message = assert_error(answer, status, kind, code, param)
    assert "secret" not in message
    assert answer.headers.get("retry-after") == {429: "3", 503: {"draining": "5"}.get(code)}.get(
        status
    )


def test_the_engines_names_are_translated() -> None:
    answer = complete(served(fails=errors.InvalidRequest("min_new_tokens", "is too much")))
    message = assert_error(answer, 400, "invalid_request_error", "invalid_value", "min_tokens")
    assert message == "min_tokens: is too much"


@pytest.mark.parametrize("model", ["nobody", "../etc"])
def test_an_unknown_model_comes_before_fields_that_do_not_go_together(model: str) -> None:
    answer = complete(served(), model=model, n=2, best_of=1)
    assert_error(answer, 404, "invalid_request_error", "model_not_found", "model")


def test_a_model_id_that_cannot_be_is_unknown() -> None:
    answer = complete(served(), model="../etc")
    assert_error(answer, 404, "invalid_request_error", "model_not_found", "model")


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/embeddings", "/v1/files/a/b"])
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_the_rest_of_the_api_is_not_there(path: str, method: str) -> None:
    answer = served().request(method, path)
    message = assert_error(answer, 404, "invalid_request_error", "not_found")
    assert "/v1/completions" in message


@pytest.mark.parametrize("path", ["/v1", "/v1/models/a/b/c", "/v1/completions/x"])
def test_deeper_and_shallower_addresses_are_not_there(path: str) -> None:
    answer = served().request("GET", path)
    message = assert_error(answer, 404, "invalid_request_error", "not_found")
    assert "/v1/completions" in message


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/v1/completions", "POST"),
        ("POST", "/v1/models", "GET"),
        ("DELETE", "/v1/models/me/model", "GET"),
        ("PUT", "/v1/files", "POST"),
    ],
)
def test_a_wrong_method_is_told_in_openais_shape(method: str, path: str, allowed: str) -> None:
    answer = served().request(method, path)
    assert_error(answer, 405, "invalid_request_error", "method_not_allowed")
    assert allowed in answer.headers["allow"]
    assert answer.headers["x-request-id"]


def test_only_addresses_of_openais_api_have_its_shape() -> None:
    answer = served().request("GET", "/v1beta/models")
    assert answer.headers["content-type"] == "application/problem+json"


def test_so_it_is_where_the_app_is_mounted() -> None:
    inner = served().app

    async def outer(scope: Any, receive: Any, send_: Any) -> None:
        await inner(dict(scope, root_path="/here"), receive, send_)

    answer = asyncio.run(send(outer, "GET", "/here/v1/completions"))
    assert_error(answer, 405, "invalid_request_error", "method_not_allowed")


# -- what is answered -------------------------------------------------------------------------


def test_answer_has_openais_shape() -> None:
    server = served()
    answer = complete(server)
    body = answer.json()
    assert body.pop("created") > 1.7e9
    assert body == {
        "id": f"cmpl-{answer.headers['x-request-id']}",
        "object": "text_completion",
        "model": MODEL,
        "choices": [{"text": " a time.", "index": 0, "logprobs": None, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 2, "completion_tokens": 3, "total_tokens": 5},
        "system_fingerprint": "ab" * 8,
    }
    assert server.engine.given[-1] is False  # no token events are made that nobody reads
    (line,) = server.log
    assert (line["event"], line["model"], line["code"]) == ("generate", MODEL, "ok")


@pytest.mark.parametrize(
    ("reason", "told"), [("eos", "stop"), ("stop", "stop"), ("length", "length")]
)
def test_finish_reasons(reason: str, told: str) -> None:
    (choice,) = choices(served(ended(sequence(0, A_TIME, reason))))
    assert choice["finish_reason"] == told


def test_the_text_is_there_without_its_tokens_too() -> None:
    (choice,) = choices(served(ended(sequence(0, A_TIME, "eos", details=False))))
    assert choice["text"] == " a time."


def test_without_best_of_completions_stay_in_their_order() -> None:
    steps = sequence(0, [token(3, " a", -2.0)]) + sequence(1, [token(4, " b", -1.0)])
    assert [choice["text"] for choice in choices(served(ended(steps)), n=2)] == [" a", " b"]


def test_choices_of_many_prompts_are_numbered_through_and_tokens_add_up() -> None:
    first, second = sequence(0, [token(3)]), sequence(1, [token(4)])
    answer = complete(served(ended(first + second)), prompt=["a", "b"], n=2).json()
    assert [(choice["index"], choice["text"]) for choice in answer["choices"]] == [
        (0, " a"),
        (1, " time"),
        (2, " a"),
        (3, " time"),
    ]
    assert answer["usage"] == {"prompt_tokens": 4, "completion_tokens": 6, "total_tokens": 10}


def test_best_of_returns_the_likeliest_per_token_and_counts_all() -> None:
    # The sum of the second is the least, its mean is not.
    steps: list[Delivery] = []
    for index, logprobs in enumerate([(-2.0,), (-1.0, -1.0, -1.0), (-1.5, -1.5)]):
        steps += sequence(index, [token(3, f" {index}", logprob) for logprob in logprobs])
    answer = complete(served(ended(steps, 6)), n=2, best_of=3).json()
    assert [(choice["index"], choice["text"]) for choice in answer["choices"]] == [
        (0, " 1 1 1"),
        (1, " 2 2"),
    ]
    assert answer["choices"][0]["logprobs"] is None
    assert answer["usage"]["completion_tokens"] == 6


def test_echo_puts_the_prompt_first() -> None:
    steps = ended(sequence(0, A_TIME, "eos", prompt="Once upon"))
    (choice,) = choices(served(steps, Prepared("Once upon")), echo=True)
    assert choice["text"] == "Once upon a time."
    assert choice["logprobs"] is None


# -- models -----------------------------------------------------------------------------------


def test_models_are_listed() -> None:
    answer = served().request("GET", "/v1/models")
    assert answer.json() == {
        "object": "list",
        "data": [
            {"id": "a", "object": "model", "created": 0, "owned_by": "gpt2serve"},
            {"id": "b/c", "object": "model", "created": 0, "owned_by": "b"},
            {"id": "d", "object": "model", "created": 0, "owned_by": "gpt2serve"},
        ],
        "has_more": False,
        "first_id": "a",
        "last_id": "d",
    }


def test_very_many_models_come_in_pages() -> None:
    server = served()
    first = server.request("GET", "/v1/models?limit=2").json()
    assert ([model["id"] for model in first["data"]], first["has_more"]) == (["a", "b/c"], True)
    rest = server.request("GET", f"/v1/models?after={first['last_id']}").json()
    assert ([model["id"] for model in rest["data"]], rest["has_more"]) == (["d"], False)
    exact = server.request("GET", "/v1/models?limit=3").json()
    assert (len(exact["data"]), exact["has_more"]) == (3, False)
    none = server.request("GET", "/v1/models?after=d").json()
    assert (none["data"], none["first_id"], none["last_id"]) == ([], None, None)


@pytest.mark.parametrize("limit", ["0", "10001", "x"])
def test_a_wrong_limit_is_refused_by_name(limit: str) -> None:
    answer = served().request("GET", f"/v1/models?limit={limit}")
    assert_error(answer, 400, "invalid_request_error", "invalid_value", "limit")


@pytest.mark.parametrize("path", ["me/model", "me%2Fmodel"])
def test_one_model_whose_id_has_a_slash(path: str) -> None:
    answer = served().request("GET", f"/v1/models/{path}")
    assert answer.json() == {"id": MODEL, "object": "model", "created": 0, "owned_by": "me"}


@pytest.mark.parametrize("path", ["nobody", "no/body", "-"])
def test_unknown_model(path: str) -> None:
    answer = served().request("GET", f"/v1/models/{path}")
    assert_error(answer, 404, "invalid_request_error", "model_not_found", "model")


# -- what /schema says ------------------------------------------------------------------------


def test_examples_in_the_schema_are_accepted() -> None:
    document = served().request("GET", "/schema").json()
    fields = document["components"]["schemas"]["CompletionRequest"]["properties"]
    assert set(fields) == set(CompletionRequest.__struct_fields__)
    for name, field in fields.items():
        assert field["description"] or name == "stream_options"
        for example in field.get("examples", []):
            msgspec.convert(MINIMAL | {name: example}, CompletionRequest, str_keys=True)


def test_the_schema_tells_streams_and_errors() -> None:
    document = served().request("GET", "/schema").json()
    responses = document["paths"]["/v1/completions"]["post"]["responses"]
    assert set(responses["200"]["content"]) == {"application/json", "text/event-stream"}
    for status in ("400", "404", "413", "429", "500", "503"):
        (kind, content), *rest = responses[status]["content"].items()
        assert (kind, rest) == ("application/json", [])
        assert content["schema"]["$ref"].endswith("/ErrorBody")
    prompt = document["components"]["schemas"]["CompletionRequest"]["properties"]["prompt"]
    kinds = ["string", "array", "array", "array", "null"]
    assert [kind["type"] for kind in prompt["oneOf"]] == kinds


def test_the_documentation_has_every_field() -> None:
    page = (Path(__file__).parents[2] / "docs" / "openai.md").read_text()
    table = page.split("## `POST /v1/completions`")[1].split("\n\n")[2]
    rows = [re.match(r"\| `(\w+)` \|", line) for line in table.splitlines()[2:]]
    assert {row[1] for row in rows if row} == set(CompletionRequest.__struct_fields__)
