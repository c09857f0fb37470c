"""The Hugging Face surface: shapes, errors and headers, over a fake engine."""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from gpt2serve import errors
from gpt2serve.api.huggingface.schemas import InferenceOptions, PipelineParameters
from gpt2serve.engine.events import (
    Event,
    Generation,
    PromptToken,
    PromptTokens,
    Token,
    TokenEvent,
    TopToken,
)
from gpt2serve.engine.stream import Delivery
from tests.unit.api_support import (
    DONE,
    MANIFEST,
    PROMPT,
    FakeEngine,
    RawClient,
    Served,
    model_status,
)

EOS = 0
WORDS = {EOS: "", 5: "five", 6: "six", 7: "seven"}
ONE, GENERATE, STREAM = "/models/me/model", "/models/me/model/generate", "/models/a/generate_stream"


def made(token: int, text: str, logprob: float = -0.5) -> Token:
    top = (TopToken(6, -0.25), TopToken(EOS, -4.0))
    return Token(token, text, logprob, top)


TOKENS = (made(7, "a "), made(5, ""), made(EOS, "b", -1.5))


def text_events(
    index: int = 0, tokens: tuple[Token, ...] = TOKENS, reason: Any = "eos", text: str = "a b"
) -> list[Event]:
    end = Generation(
        index=index,
        text=text,
        finish_reason=reason,
        tokens=len(tokens),
        seed=90 + index,
        details=tokens,
    )
    return [*(TokenEvent(index, token) for token in tokens), end]


def steps(events: list[Event]) -> list[Delivery]:
    """A step for each token; the last one ends the text, and the request."""
    *before, last, end = events
    return [*(Delivery([event]) for event in before), Delivery([last, end, DONE])]


PROMPT_TOKENS = PromptTokens((PromptToken(EOS, None), PromptToken(6, -2.5)))


@dataclass
class Prepared:
    model: str
    prompt_tokens: int = 4

    package = SimpleNamespace(manifest=MANIFEST)
    tokenizer = SimpleNamespace(
        is_special=lambda token: token == EOS,
        special_name=lambda token: "<|end|>" if token == EOS else None,
    )

    def text_of(self, tokens: list[int]) -> str:
        return "".join(WORDS[token] for token in tokens)


class Engine(FakeEngine):
    def prepare(self, model: str, prompt: str, params: Any) -> Any:
        return Prepared(super().prepare(model, prompt, params))


def served(*events: Event, **engine: Any) -> Served:
    return Served(Engine(steps(list(events or text_events())), **engine))


def ask(at: str, server: Served | None = None, **body: Any) -> httpx.Response:
    return (server or served()).request("POST", at, json={"inputs": PROMPT} | body)


def told(answer: httpx.Response) -> Any:
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/json"
    return answer.json()


def stream_events(answer: httpx.Response) -> list[Any]:
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/event-stream")
    parts = answer.text.split("\n\n")
    assert parts.pop() == ""
    return [httpx.Response(200, text=part.removeprefix("data: ")).json() for part in parts]


def refused(answer: httpx.Response, status: int, error_type: str | None) -> str:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    body = answer.json()
    assert body.get("error_type") == error_type
    assert set(body) <= {"error", "error_type", "estimated_time"}
    return str(body["error"])


# -- whole answers ----------------------------------------------------------------------------


@pytest.mark.parametrize("at", ["/models/me", "/models/me/model", "/models/me%2Fmodel"])
def test_an_answer_is_a_list(at: str) -> None:
    server = served()
    assert told(ask(at, server)) == [{"generated_text": "a b"}]
    assert server.engine.given[0][:2] == (at[len("/models/") :].replace("%2F", "/"), PROMPT)


def test_one_object_for_each_sequence() -> None:
    server = Served(Engine([Delivery([*text_events(1), *text_events(0, text="x"), DONE])]))
    answer = ask(ONE, server, parameters={"num_return_sequences": 2})
    assert told(answer) == [{"generated_text": "x"}, {"generated_text": "a b"}]
    assert answer.headers["x-generated-tokens"] == "4"


def test_one_list_for_each_input() -> None:
    server = served()
    answer = ask(ONE, server, inputs=["one", "three"])
    assert told(answer) == [[{"generated_text": "a b"}], [{"generated_text": "a b"}]]
    assert [prompt for _, prompt, _ in server.engine.given[:2]] == ["one", "three"]
    assert told(ask(ONE, inputs=["one"])) == [[{"generated_text": "a b"}]]
    assert answer.headers["x-compute-characters"] == "8"
    assert answer.headers["x-prompt-tokens"] == "8"


def test_more_inputs_than_the_queue_holds_are_refused_for_good() -> None:
    inputs = 5 * ["x"]  # and the queue holds 4
    answer = ask(ONE, inputs=inputs)
    assert refused(answer, 422, "validation").startswith("inputs: 5 prompts are more than ")
    assert len(told(ask(ONE, inputs=inputs[1:]))) == 4
    refused(ask("/models/nobody", inputs=inputs), 404, None)


@pytest.mark.parametrize("at", ["/models/me/generate", "/models/me/model/generate"])
def test_generate_answers_with_one_object(at: str) -> None:
    server = served()
    assert told(ask(at, server)) == {"generated_text": "a b"}
    assert server.engine.given[0][0] == at.removeprefix("/models/").removesuffix("/generate")


DETAILS = {
    "finish_reason": "eos_token",
    "generated_tokens": 3,
    "seed": 90,
    "prefill": [],
    "tokens": [
        {"id": 7, "text": "a ", "logprob": -0.5, "special": False},
        {"id": 5, "text": "", "logprob": -0.5, "special": False},
        {"id": EOS, "text": "b", "logprob": -1.5, "special": True},
    ],
}


@pytest.mark.parametrize("at", [ONE, GENERATE])
def test_details(at: str) -> None:
    answer = told(ask(at, parameters={"details": True, "do_sample": True}))
    (output,) = answer if at == ONE else [answer]
    assert output == {"generated_text": "a b", "details": DETAILS}


def test_nothing_was_drawn_so_there_is_no_seed() -> None:
    answer = told(ask(GENERATE, parameters={"details": True, "seed": 3}))
    assert answer["details"]["seed"] is None


@pytest.mark.parametrize(
    ("reason", "name"), [("length", "length"), ("stop", "stop_sequence"), ("eos", "eos_token")]
)
def test_finish_reasons(reason: str, name: str) -> None:
    answer = told(ask(GENERATE, served(*text_events(reason=reason)), parameters={"details": True}))
    assert answer["details"]["finish_reason"] == name


def test_likeliest_tokens_beside_each() -> None:
    answer = told(ask(GENERATE, parameters={"details": True, "top_n_tokens": 2}))
    assert answer["details"]["top_tokens"] == 3 * [
        [
            {"id": 6, "text": "six", "logprob": -0.25, "special": False},
            {"id": EOS, "text": "<|end|>", "logprob": -4.0, "special": True},
        ]
    ]


def test_tokens_of_inputs_bring_details_along() -> None:
    server = served(PROMPT_TOKENS, *text_events())
    answer = told(ask(GENERATE, server, parameters={"decoder_input_details": True}))
    assert answer["details"]["prefill"] == [
        {"id": EOS, "text": "<|end|>", "logprob": None},
        {"id": 6, "text": "six", "logprob": -2.5},
    ]


def test_best_of_returns_what_is_likeliest_by_token() -> None:
    short = (made(7, "short", -1.0),)
    long = tuple(made(6, "", -0.9) for _ in range(3))
    poor = (made(5, "", -3.0), made(5, "", -1.0))
    events = [
        *text_events(0, short, text="short"),
        *text_events(1, long, reason="length", text="long"),
        *text_events(2, poor, text="poor"),
    ]
    server = Served(Engine([Delivery([*events, DONE])]))
    fields = {"best_of": 3, "details": True, "do_sample": True}
    answer = told(ask(GENERATE, server, parameters=fields))
    assert server.engine.given[0][2].num_return_sequences == 3
    assert answer["generated_text"] == "long"
    assert answer["details"]["seed"] == 91
    others = answer["details"]["best_of_sequences"]
    assert [(one["generated_text"], one["seed"]) for one in others] == [("short", 90), ("poor", 92)]
    assert set(others[0]) == {*DETAILS, "generated_text"}
    del fields["details"]
    (only,) = told(ask(ONE, server, parameters=fields))
    assert only == {"generated_text": "long"}
    two = told(ask(ONE, server, parameters=fields | {"num_return_sequences": 2}))
    assert two == [{"generated_text": "long"}, {"generated_text": "short"}]


def test_headers_tell_what_it_took() -> None:
    answer = ask(GENERATE)
    numbers = {
        "x-compute-characters": len(PROMPT),
        "x-queue-time": 3,
        "x-inference-time": 7,
        "x-time-per-token": 2,
        "x-prompt-tokens": 4,
        "x-generated-tokens": 4,
    }
    assert {name: int(answer.headers[name]) for name in numbers} == numbers
    assert answer.headers["x-compute-type"] == "cpu"
    assert 0 < float(answer.headers["x-compute-time"]) < 60
    assert int(answer.headers["x-validation-time"]) <= int(answer.headers["x-total-time"])


# -- streams ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("at", "fields"),
    [
        (ONE, {"stream": True}),
        ("/models/me", {"stream": True}),
        (STREAM, {}),
        ("/models/me/model/generate_stream", {}),
    ],
)
def test_a_stream_has_an_event_for_each_token(at: str, fields: dict[str, Any]) -> None:
    answer = ask(at, **fields)
    events = stream_events(answer)
    assert [event["index"] for event in events] == [1, 2, 3]
    assert [event["token"] for event in events] == DETAILS["tokens"]
    assert [event["generated_text"] for event in events] == [None, None, "a b"]
    assert [event["details"] for event in events] == [None, None, None]
    assert "top_tokens" not in events[0]
    assert "[DONE]" not in answer.text
    assert answer.headers["x-compute-type"] == "cpu"
    assert answer.headers["x-compute-characters"] == str(len(PROMPT))
    assert answer.headers["x-accel-buffering"] == "no"


def test_the_last_event_has_the_details() -> None:
    answer = ask(STREAM, parameters={"details": True, "temperature": 1.0, "top_n_tokens": 2})
    *before, last = stream_events(answer)
    assert [event["details"] for event in before] == [None, None]
    assert last["details"] == {
        "finish_reason": "eos_token",
        "generated_tokens": 3,
        "seed": 90,
        "input_length": 4,
    }
    assert [token["text"] for token in last["top_tokens"]] == ["six", "<|end|>"]


@pytest.mark.parametrize(
    ("error", "error_type"),
    [
        (errors.StepFailed("at /secret"), "generation"),
        (errors.RequestAborted("aborted"), "incomplete_generation"),
        (errors.EngineClosed("closed"), "incomplete_generation"),
        (RuntimeError("at /secret"), "incomplete_generation"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_an_error_in_a_stream_is_an_event(error: Exception, error_type: str) -> None:
    broken = [Delivery([text_events()[0]]), Delivery(error=error)]
    first, last = stream_events(ask(STREAM, Served(Engine(broken))))
    assert first["index"] == 1
    assert set(last) == {"error", "error_type"}
    assert last["error_type"] == error_type
    assert "secret" not in last["error"]


@pytest.mark.parametrize("at", [STREAM, GENERATE])
def test_a_client_that_leaves_ends_its_request(at: str) -> None:
    server = Served(Engine(steps(text_events()), held_from=1))

    async def main() -> None:
        client = RawClient(server.app, {"inputs": PROMPT}, at)
        if at == STREAM:
            await client.until(lambda: len(client.chunks) == 1)
        await client.leave()

    asyncio.run(main())
    assert server.engine.cancelled > 0
    assert server.log[-1]["client_gone"] is True


@pytest.mark.parametrize(
    ("field", "fields"),
    [
        ("best_of", {"parameters": {"best_of": 2}}),
        ("num_return_sequences", {"parameters": {"num_return_sequences": 2}}),
        ("decoder_input_details", {"parameters": {"decoder_input_details": True}}),
        ("inputs", {"inputs": ["one", "two"]}),
    ],
)
def test_what_has_no_place_in_a_stream_is_refused(field: str, fields: dict[str, Any]) -> None:
    answer = ask(ONE, **fields, stream=True)
    assert refused(answer, 422, "validation").startswith(f"{field}: ")
    refused(ask("/models/nobody", **fields, stream=True), 404, None)


# -- errors -----------------------------------------------------------------------------------


@pytest.mark.parametrize("at", [ONE, GENERATE, STREAM])
@pytest.mark.parametrize(
    ("error", "status", "error_type"),
    [
        (errors.InvalidRequest("top_p", "no"), 422, "validation"),
        (errors.ModelNotFound("me/model"), 404, None),
        (errors.Overloaded("full", retry_after=1.0), 429, "overloaded"),
        (errors.StepFailed("no"), 424, "generation"),
        (errors.RequestAborted("no"), 500, "incomplete_generation"),
        (errors.ModelLoadFailed("no"), 503, None),
        (errors.CorruptPackage("no"), 503, None),
        (RuntimeError("no"), 500, None),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else None,
)
def test_errors_have_the_surfaces_own_shape(
    at: str, error: Exception, status: int, error_type: str | None
) -> None:
    refused(ask(at, Served(Engine(fails=error))), status, error_type)
    started = Served(Engine([Delivery(error=error)]))
    refused(ask(at, started), status, error_type)
    assert started.log[-1]["status"] == status


@pytest.mark.parametrize("at", [ONE, GENERATE, STREAM])
def test_a_server_that_shuts_down_refuses_and_breaks_off(at: str) -> None:
    refused(ask(at, Served(Engine(refuses=errors.EngineClosed()))), 503, None)
    begun = Served(Engine([Delivery(error=errors.EngineClosed())]))
    refused(ask(at, begun), 500, "incomplete_generation")


def test_overloaded_says_when_to_try_again() -> None:
    full = Served(Engine(refuses=errors.Overloaded("full", retry_after=2.5)))
    assert ask(ONE, full).headers["retry-after"] == "3"


@pytest.mark.parametrize(("at", "name"), [("/models/-a", "-a"), ("/models/generate", "generate")])
def test_what_is_no_id_is_refused(at: str, name: str) -> None:
    assert repr(name) in refused(ask(at), 422, "validation")


@pytest.mark.parametrize(
    ("method", "at", "status"),
    [
        ("POST", "/models/me/model/v1/chat/completions", 404),
        ("GET", "/models/me/model/health", 404),
        ("GET", ONE, 405),
        ("PUT", GENERATE, 405),
    ],
)
def test_what_is_not_there_is_told_in_the_surfaces_own_shape(
    method: str, at: str, status: int
) -> None:
    error = refused(served().request(method, at), status, None)
    assert ("do not chat" in error) is (status == 404)
    assert served().request("PUT", "/models").json()["code"] == "method_not_allowed"


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'"x"'])
def test_a_body_that_is_no_object_is_refused(body: bytes) -> None:
    answer = served().request("POST", ONE, content=body)
    refused(answer, 400, "validation")


def test_a_body_that_is_too_large_is_refused() -> None:
    server = Served(Engine(), max_body_bytes=100)
    refused(ask(ONE, server, inputs=100 * "x"), 413, None)


@pytest.mark.parametrize(
    ("engines", "parameters", "name"),
    [
        ("prompt", {}, "inputs"),
        ("top_logprobs", {}, "top_n_tokens"),
        ("seed", {}, "seed"),
        ("num_return_sequences", {}, "num_return_sequences"),
        ("num_return_sequences", {"best_of": 2}, "best_of"),
        ("num_return_sequences", {"num_return_sequences": 3, "best_of": 2}, "num_return_sequences"),
    ],
)
def test_fields_have_the_names_that_clients_know(
    engines: str, parameters: dict[str, int], name: str
) -> None:
    server = Served(Engine(fails=errors.InvalidRequest(engines, "is too large")))
    answer = ask(ONE, server, parameters=parameters)
    assert refused(answer, 422, "validation") == f"{name}: is too large"


# -- waiting for a model ----------------------------------------------------------------------


def cold(**fields: Any) -> Served:
    server = served()
    server.engine.models["me/model"] = model_status("me/model", **fields)
    return server


def loads(server: Served) -> list[Any]:
    return [given for given in server.engine.given if given == ("load", "me/model")]


DO_NOT_WAIT: dict[str, Any] = {"options": {"wait_for_model": False}}


@pytest.mark.parametrize(
    ("at", "stream"),
    [(ONE, False), (ONE, True), (GENERATE, False), ("/models/me/model/generate_stream", True)],
)
def test_a_client_that_does_not_wait_is_told_and_the_model_is_loaded(at: str, stream: bool) -> None:
    server = cold()
    answer = ask(at, server, stream=stream, **DO_NOT_WAIT)
    assert refused(answer, 503, None) == "Model me/model is currently loading"
    assert answer.json()["estimated_time"] == 1.0
    assert answer.headers["retry-after"] == "1"
    assert loads(server) == [("load", "me/model")]
    assert (server.log[-1]["model"], server.log[-1]["code"]) == ("me/model", "model_loading")
    again = ask(at, server, **DO_NOT_WAIT, stream=stream)
    assert again.status_code == 200


def test_what_is_to_be_fetched_takes_longer() -> None:
    fetching = cold(state="fetching", fetched_bytes=10**8, fetch_total_bytes=3 * 10**8)
    assert ask(ONE, fetching, **DO_NOT_WAIT).json()["estimated_time"] == 5.0


@pytest.mark.parametrize(
    ("fields", "headers", "waits"),
    [
        ({}, {}, True),
        ({"options": {}}, {}, True),
        ({"options": {"use_cache": False}}, {}, True),
        ({"options": {"wait_for_model": None}}, {}, True),
        ({"options": {"wait_for_model": True}}, {}, True),
        (DO_NOT_WAIT, {}, False),
        (DO_NOT_WAIT, {"X-Wait-For-Model": "1"}, True),
        (DO_NOT_WAIT, {"X-Wait-For-Model": "true"}, True),
        ({}, {"X-Wait-For-Model": "0"}, False),
        ({}, {"X-Wait-For-Model": "False"}, False),
    ],
)
@pytest.mark.parametrize("at", [ONE, GENERATE, "/models/me/model/generate_stream"])
def test_who_waits(at: str, fields: dict[str, Any], headers: dict[str, str], waits: bool) -> None:
    answer = cold().request("POST", at, json={"inputs": PROMPT, **fields}, headers=headers)
    assert answer.status_code == (200 if waits else 503)


def test_a_client_that_does_not_wait_is_told_why_a_model_cannot_be_loaded() -> None:
    server = cold(state="failed", error="no")
    server.engine.refuses = errors.ModelLoadFailed("no", retry_after=9)
    answer = ask(ONE, server, **DO_NOT_WAIT)
    assert "loading" not in refused(answer, 503, None)
    assert loads(server) == []


def test_a_client_that_does_not_wait_is_told_what_does_not_exist() -> None:
    refused(ask("/models/none", **DO_NOT_WAIT), 404, None)


def test_a_server_that_shuts_down_loads_nothing() -> None:
    server = cold()
    server.app.state["gpt2serve"].draining = True
    assert "shutting down" in refused(ask(ONE, server, **DO_NOT_WAIT), 503, None)
    assert loads(server) == []


def test_the_documentation_has_every_field() -> None:
    page = (Path(__file__).parents[2] / "docs" / "huggingface.md").read_text(encoding="utf-8")
    part = page.split("## Parameters")[1].split("\n## ")[0]
    rows = [line.split("|")[1] for line in part.splitlines() if line.startswith("| `")]
    assert sorted(re.findall(r"`(\w+)`", " ".join(rows))) == sorted(
        PipelineParameters.__struct_fields__
    )
    options = re.findall(r"^- `(\w+)`", part, re.MULTILINE)
    assert options == list(InferenceOptions.__struct_fields__)


# -- what an operator and a reader of /schema see -----------------------------------------------


@pytest.mark.parametrize("at", [ONE, GENERATE, STREAM])
def test_one_log_line_without_words(at: str) -> None:
    server = served()
    ask(at, server)
    (line,) = server.log
    assert (line["event"], line["code"], line["finish_reasons"]) == ("generate", "ok", ["eos"])
    assert line["stream"] is (at == STREAM)
    assert PROMPT not in server.output.getvalue()


def test_schema_describes_it_all() -> None:
    document = served().request("GET", "/schema").json()
    for part in ("", "/{owner}"):
        paths = [f"/models{part}/{{name}}{last}" for last in ("", "/generate", "/generate_stream")]
        for path in paths:
            answers = document["paths"][path]["post"]["responses"]
            assert {"200", "400", "404", "413", "422", "424", "429", "500", "503"} <= set(answers)
            error = answers["422"]["content"]["application/json"]["schema"]["$ref"]
            assert error.endswith("/HuggingFaceError")
            assert "x-compute-type" in answers["200"]["headers"]
        one, whole, stream = (
            set(document["paths"][path]["post"]["responses"]["200"]["content"]) for path in paths
        )
        assert one == {"application/json", "text/event-stream"}
        assert (whole, stream) == ({"application/json"}, {"text/event-stream"})
        events = document["paths"][paths[2]]["post"]["responses"]["200"]["content"]
        data = events["text/event-stream"]["schema"]["properties"]["data"]
        assert data["contentSchema"]["$ref"].endswith("/TextGenerationStreamOutput")
    for name in ("TextGenerationParameters", "PipelineParameters", "InferenceOptions"):
        fields = document["components"]["schemas"][name]["properties"]
        assert all(field.get("description") for field in fields.values()), name
    assert fields.keys() == set(InferenceOptions.__struct_fields__)
    names = [
        operation["operationId"]
        for path in document["paths"].values()
        for operation in path.values()
    ]
    assert len(names) == len(set(names))
