"""The HTTP surface over a fake engine: what is accepted, refused, streamed, cancelled, logged."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from typing import Any

import pytest
from litestar import Litestar, Request, Response, post
from litestar.di import NamedDependency
from litestar.params import FromQuery

from gpt2serve import errors
from gpt2serve.api.exchange import Exchange
from gpt2serve.api.generation import GENERATION, Ask, begin
from gpt2serve.api.problems import Problem
from gpt2serve.api.router import build_router
from gpt2serve.api.service import Service
from gpt2serve.app import create_router, service_of
from gpt2serve.engine.events import Event, Token
from gpt2serve.engine.params import SamplingParams
from gpt2serve.engine.stream import Delivery, TokenStream
from gpt2serve.package import ModelCard
from gpt2serve.settings import engine_settings
from tests.unit.api_support import (
    DONE,
    GOOD,
    MANIFEST,
    PROMPT,
    STEPS,
    TEXT,
    FakeEngine,
    RawClient,
    Served,
    assert_problem,
    ending,
    frames,
    lifespan,
    send,
    with_client,
)

# -- what is accepted -------------------------------------------------------------------------


def test_answer_has_the_documented_shape() -> None:
    served = Served()
    answer = served.generate()
    assert answer.status_code == 200
    assert answer.json() == {
        "model": "me/model",
        "model_version": "ab" * 8,
        "generations": [
            {"text": TEXT, "finish_reason": "eos", "tokens": 2, "seed": 9},
            {"text": TEXT, "finish_reason": "eos", "tokens": 2, "seed": 10},
        ],
        "usage": {"prompt_tokens": 4, "completion_tokens": 4},
        "timing": {"queue_ms": 1.0, "load_ms": 2.0, "prefill_ms": 3.0, "decode_ms": 4.0},
    }
    assert served.engine.given[1] is False  # no token events are made that nobody reads


def test_times_are_in_a_header_too() -> None:
    header = Served().generate().headers["server-timing"]
    assert header == "queue;dur=1.0, load;dur=2.0, prefill;dur=3.0, decode;dur=4.0"
    assert "server-timing" not in Served().request("GET", "/models").headers
    assert "server-timing" not in Served().generate(model="").headers


def test_a_stream_has_the_times_until_its_first_token_in_the_header() -> None:
    times = Served().generate(stream=True).headers["server-timing"].split(", ")
    assert [time.split(";dur=")[0] for time in times] == ["queue", "load", "prefill"]
    assert [float(time.split("=")[1]) for time in times] == [1.0, 2.0, 3.0]


def test_details_are_there_if_the_engine_has_them() -> None:
    end = ending(0, details=(Token(7, "a ", -0.5),))
    answer = Served(FakeEngine([Delivery([end, DONE])])).generate(details=True)
    assert answer.json()["generations"][0]["details"] == [{"id": 7, "text": "a ", "logprob": -0.5}]


def test_every_field_reaches_the_engine() -> None:
    fields = {
        "num_return_sequences": 5,
        "max_new_tokens": 60,
        "min_new_tokens": 1,
        "max_length": 80,
        "min_length": 2,
        "do_sample": True,
        "temperature": 0.5,
        "top_k": 51,
        "top_p": 0.25,
        "repetition_penalty": 1.5,
        "no_repeat_ngram_size": 3,
        "seed": 2**63 - 1,
        "return_full_text": False,
        "details": True,
    }
    served = Served()
    assert served.generate(stop=["\n", "."], **fields).status_code == 200
    model, prompt, params = served.engine.given[0]
    assert (model, prompt) == (GOOD["model"], GOOD["prompt"])
    assert {name: getattr(params, name) for name in fields} == fields
    assert params.stop == ("\n", ".")


@pytest.mark.parametrize(("stop", "expected"), [("end", ("end",)), ([], ()), (None, ())])
def test_stop_is_a_string_or_a_list(stop: Any, expected: tuple[str, ...]) -> None:
    served = Served()
    assert served.generate(stop=stop).status_code == 200
    assert served.engine.given[0][2].stop == expected


def test_an_integer_may_be_written_as_json_writes_it() -> None:
    served = Served()
    assert served.generate(seed=7.0, top_k=5e1, temperature=1).status_code == 200
    params = served.engine.given[0][2]
    assert (params.seed, params.top_k, params.temperature) == (7, 50, 1.0)
    assert {type(params.seed), type(params.top_k)} == {int}


# -- what is refused --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def refusing() -> Served:
    """One app for the long tables: nothing that is refused changes it."""
    return Served()


WRONG_VALUES: list[tuple[str, Any]] = [
    ("model", 1),
    ("model", None),
    ("prompt", ["a"]),
    ("prompt", None),
    *[
        (name, value)
        for name in ("num_return_sequences", "max_new_tokens", "max_length")
        for value in (0, -1, 1.5, "1", True, [1], 2**31, 10**30)
    ],
    *[
        (name, value)
        for name in ("min_new_tokens", "min_length", "top_k", "no_repeat_ngram_size")
        for value in (-1, 0.5, "0", False, {}, 2**31)
    ],
    ("do_sample", 1),
    ("do_sample", "true"),
    *[("temperature", value) for value in (0, -1, "1", True, [1.0])],
    *[("top_p", value) for value in (0, 1.01, -0.5, "0.9")],
    *[("repetition_penalty", value) for value in (0, -1, "1")],
    *[("stop", value) for value in (1, [1], {"a": 1}, ["x"] * 17)],
    *[("seed", value) for value in (-1, 2**63, 1.5, 1e30, "7")],
    ("return_full_text", "yes"),
    ("return_full_text", None),
    ("details", 1),
    ("stream", "true"),
    ("unheard_of", 1),
]


@pytest.mark.parametrize(("name", "value"), WRONG_VALUES)
def test_wrong_value_is_refused_by_name(refusing: Served, name: str, value: Any) -> None:
    problem = assert_problem(refusing.generate(**{name: value}), 422, "invalid_value")
    assert problem["field"] == name
    assert refusing.engine.given == []


@pytest.mark.parametrize("name", ["model", "prompt"])
def test_missing_field_is_refused_by_name(name: str) -> None:
    body = {key: value for key, value in GOOD.items() if key != name}
    problem = assert_problem(Served().request("POST", "/generate", json=body), 422, "invalid_value")
    assert problem["field"] == name


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"text"',
        b'{"model": "a", "prompt": NaN}',
        b'{"model": "a", "prompt": "\xff"}',
        b'{"model": "a", "prompt": "\\ud800"}',
        b'{"model": "a", "prompt": "b"} more',
        b"[" * 100_000,
    ],
)
def test_malformed_body_is_400(refusing: Served, body: bytes) -> None:
    problem = assert_problem(
        refusing.request("POST", "/generate", content=body), 400, "malformed_body"
    )
    assert "field" not in problem


@pytest.mark.parametrize("model", ["../etc", "", "a/b/c", "a b", "info", "a/generate", "x" * 97])
def test_impossible_model_id_is_422(refusing: Served, model: str) -> None:
    problem = assert_problem(refusing.generate(model=model), 422, "invalid_model_id")
    assert problem["field"] == "model"


@pytest.mark.parametrize("chunked", [False, True])
def test_large_body_is_413(chunked: bool) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        yield b'{"model": "a", "prompt": "'
        yield b"x" * 2000

    served = Served(max_body_bytes=1000)
    content = chunks() if chunked else b"x" * 1001
    answer = served.request("POST", "/generate", content=content)
    assert "--max-body-bytes" in assert_problem(answer, 413, "body_too_large")["detail"]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("error", "status", "code", "retry"),
    [
        (errors.InvalidRequest("prompt", "too long"), 422, "invalid_value", None),
        (errors.ModelNotFound("me/model"), 404, "model_not_found", None),
        (errors.CorruptPackage("/srv/secret: bad"), 503, "corrupt_package", None),
        (errors.UnknownRevision("/srv/secret: 9"), 503, "unknown_package_revision", None),
        (errors.ModelTooLarge("too large"), 503, "model_too_large", None),
        (errors.ModelLoadFailed("/srv/secret", retry_after=3.2), 503, "model_load_failed", "4"),
        (errors.StoreUnavailable("s3://secret", retry_after=2), 503, "store_unavailable", "2"),
        (errors.Overloaded("busy", retry_after=0.1), 429, "overloaded", "1"),
        (errors.EngineClosed(), 503, "draining", "5"),
        (errors.RequestAborted("aborted"), 503, "aborted", None),
        (errors.StepFailed("/srv/secret"), 500, "generation_failed", None),
        (RuntimeError("/srv/secret"), 500, "internal_error", None),
    ],
)
@pytest.mark.parametrize("where", ["prepare", "submit", "started"])
def test_errors_become_problems(
    error: Exception, status: int, code: str, retry: str | None, stream: bool, where: str
) -> None:
    engine = {
        "prepare": FakeEngine(fails=error),
        "submit": FakeEngine(refuses=error),
        "started": FakeEngine([Delivery(error=error)]),
    }[where]
    served = Served(engine)
    answer = served.generate(stream=stream)
    problem = assert_problem(answer, status, code)
    assert answer.headers.get("retry-after") == retry
    assert "secret" not in answer.text
    assert problem.get("field") == {422: "prompt", 404: "model"}.get(status)
    (line,) = served.log
    assert (line["status"], line["code"]) == (status, code)
    if "secret" in str(error):  # the operator learns what the client does not
        assert "secret" in line["exception" if status == 500 else "error"]


def test_unknown_address_and_method() -> None:
    served = Served()
    assert_problem(served.request("GET", "/nothing"), 404, "not_found")
    answer = served.request("GET", "/generate")
    assert_problem(answer, 405, "method_not_allowed")
    assert "POST" in answer.headers["allow"]


# -- streaming --------------------------------------------------------------------------------


def test_stream_has_the_documented_frames() -> None:
    served = Served()
    answer = served.generate(stream=True)
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["cache-control"] == "no-cache"
    assert answer.headers["x-accel-buffering"] == "no"
    first, _, _, end, _, _, last, done = frames(answer.text)
    assert first == {"index": 0, "token": {"id": 7, "text": "a ", "logprob": -0.5}}
    assert end == {"index": 0, "finish_reason": "eos", "text": TEXT, "tokens": 2, "seed": 9}
    assert last == {
        "model_version": "ab" * 8,
        "usage": {"prompt_tokens": 4, "completion_tokens": 4},
        "timing": {"queue_ms": 1.0, "load_ms": 2.0, "prefill_ms": 3.0, "decode_ms": 4.0},
    }
    assert done == "[DONE]"
    assert served.engine.given[1] is True


def test_error_after_the_first_token_ends_the_stream_without_done() -> None:
    failing = [STEPS[0], Delivery(error=errors.StepFailed("/srv/secret"))]
    served = Served(FakeEngine(failing))
    answer = served.generate(stream=True)
    assert answer.status_code == 200
    *_, last = frames(answer.text)
    assert last["error"]["code"] == "generation_failed"
    assert last["error"]["status"] == 500
    assert "secret" not in answer.text
    (line,) = served.log
    assert line["code"] == "generation_failed"
    assert "secret" in line["exception"]


# -- a client by hand: httpx buffers answers, this one does not -------------------------------


def test_one_chunk_per_step_as_it_comes() -> None:
    served = Served(FakeEngine(held_from=1))

    async def work(client: RawClient) -> None:
        await client.until(lambda: bool(client.chunks))
        (chunk,) = client.chunks
        assert [frame["index"] for frame in frames(chunk.decode())] == [0, 1]
        await client.leave()

    with_client(served, work, stream=True)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("held_from", [0, 1])
def test_client_that_leaves_cancels(stream: bool, held_from: int) -> None:
    served = Served(FakeEngine(held_from=held_from))

    async def work(client: RawClient) -> None:
        await asyncio.sleep(0.05)
        assert served.engine.cancelled == 0
        await client.leave()
        assert served.engine.cancelled >= 1

    with_client(served, work, stream=stream)
    (line,) = served.log
    assert line["client_gone"] is True
    assert line["code"] == "client_disconnected"


def test_client_that_leaves_while_a_send_is_blocked_cancels() -> None:
    served = Served(FakeEngine(held_from=1))

    async def work(client: RawClient) -> None:
        client.blocks = True
        await client.until(lambda: bool(client.chunks))
        await client.leave()
        assert served.engine.cancelled >= 1

    with_client(served, work, stream=True)


def test_client_that_leaves_before_its_body_is_there_is_no_server_error() -> None:
    served = Served()

    async def work(client: RawClient) -> None:
        client._body.clear()
        await client.leave()

    with_client(served, work)
    (line,) = served.log
    assert line["code"] == "client_disconnected"
    assert "exception" not in line


def test_finished_request_is_not_cancelled() -> None:
    for stream in (False, True):
        served = Served()
        served.generate(stream=stream)
        assert served.engine.cancelled == 0


# -- request id, log, metrics -----------------------------------------------------------------


@pytest.mark.parametrize("path", ["/healthz", "/nothing"])
def test_request_id_is_made_or_kept(path: str) -> None:
    served = Served()
    made = served.request("GET", path).headers["x-request-id"]
    assert len(made) == 32
    kept = served.request("GET", path, headers={"X-Request-Id": "trace-1.2:3"})
    assert kept.headers["x-request-id"] == "trace-1.2:3"
    for bad in ("x" * 129, "a b", '"}', "é"):
        answer = served.request("GET", path, headers={"X-Request-Id": bad.encode()})
        assert len(answer.headers["x-request-id"]) == 32


@pytest.mark.parametrize("stream", [False, True])
def test_one_log_line_without_words(stream: bool) -> None:
    served = Served()
    served.generate(stream=stream)
    (line,) = served.log
    assert line["event"] == "generate"
    assert (line["model"], line["model_version"]) == ("me/model", "ab" * 8)
    assert line["status"] == 200
    assert line["code"] == "ok"
    assert line["stream"] is stream
    assert line["client_gone"] is False
    assert line["finish_reasons"] == ["eos", "eos"]
    assert (line["prompt_tokens"], line["completion_tokens"]) == (4, 4)
    assert (line["queue_ms"], line["decode_ms"]) == (1.0, 4.0)
    assert line["duration_ms"] > 0
    assert "secret" not in served.output.getvalue()


def test_no_log_line_holds_words_whatever_goes_wrong() -> None:
    for engine in (
        FakeEngine(fails=ValueError("unexpected")),
        FakeEngine(fails=errors.InvalidRequest("prompt", f"not {PROMPT}")),
        FakeEngine([STEPS[0], Delivery(error=errors.StepFailed("failed"))]),
    ):
        for fields in ({}, {"stream": True}, {"stop": PROMPT}, {"model": PROMPT}, {PROMPT: 1}):
            served = Served(engine)
            served.generate(**fields)
            assert len(served.log) == 1
            assert "secret" not in served.output.getvalue()


def test_metrics_count_requests_by_template_and_code() -> None:
    served = Served()
    served.generate()
    served.generate(model="a/b/c")
    served.request("GET", "/models/me/model/info")
    answer = served.request("GET", "/metrics")
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    name = "gpt2serve_http_requests_total"
    assert f'{name}{{code="ok",route="/generate",status="200"}} 1.0' in answer.text
    assert f'{name}{{code="invalid_model_id",route="/generate",status="422"}} 1.0' in answer.text
    assert 'route="/models/{owner}/{name}/info"' in answer.text
    assert "gpt2serve_requests_running 3.0" in answer.text
    assert "a/b/c" not in answer.text


# -- the other routes -------------------------------------------------------------------------


def test_models_come_in_pages() -> None:
    served = Served()
    everything = served.request("GET", "/models").json()
    assert [model["id"] for model in everything["models"]] == ["a", "b/c", "d"]
    assert everything["models"][0] == {
        "id": "a",
        "state": "cold",
        "bytes": 5,
        "pinned": False,
        **dict.fromkeys(("version", "last_used", "error")),
    }
    assert "next" not in everything
    page = served.request("GET", "/models?limit=2").json()
    assert page["next"] == "b/c"
    rest = served.request("GET", "/models", params={"after": page["next"]}).json()
    assert [model["id"] for model in rest["models"]] == ["d"]


def test_list_shows_how_the_server_has_a_model() -> None:
    served = Served()
    served.engine.becomes("a", state="fetching", fetched_bytes=3, fetch_total_bytes=9, pinned=True)
    served.engine.becomes(
        "b/c", state="resident", version="cd" * 8, last_used=1234.5, leases=2, old_versions=1
    )
    served.engine.becomes("d", state="failed", error="s3://secret/d: no such key")
    answer = served.request("GET", "/models")
    fetching, resident, failed = answer.json()["models"]
    assert (fetching["fetched_bytes"], fetching["fetch_total_bytes"]) == (3, 9)
    assert fetching["pinned"] is True
    assert (resident["version"], resident["last_used"]) == ("cd" * 8, 1234.5)
    assert not {"fetched_bytes", "leases", "old_versions"} & set(resident)
    assert failed["error"]
    assert "secret" not in answer.text


@pytest.mark.parametrize("limit", ["0", "1001", "x"])
def test_wrong_page_size_is_refused_by_name(limit: str) -> None:
    answer = Served().request("GET", "/models", params={"limit": limit})
    problem = assert_problem(answer, 422, "invalid_value")
    assert problem["field"] == "limit"
    assert problem["detail"].startswith("limit: expected int")


def test_models_are_searched() -> None:
    served = Served()
    for model in ("ab", "cab", "cb"):
        served.engine.becomes("a", id=model)
        served.engine.models[model] = served.engine.models["a"]
    page = served.request("GET", "/models?search=b&limit=2").json()
    assert [model["id"] for model in page["models"]] == ["ab", "b/c"]
    rest = served.request("GET", "/models", params={"search": "b", "after": page["next"]}).json()
    assert [model["id"] for model in rest["models"]] == ["cab", "cb"]
    assert "next" not in rest


def test_a_list_shows_the_card_as_far_as_it_is_known() -> None:
    served = Served()
    served.engine.becomes("a", card=ModelCard(title="Me", handle="@me", picture="http://x/y.png"))
    served.engine.becomes("b/c", card=ModelCard(title="<b>"))
    full, part, none = served.request("GET", "/models").json()["models"]
    assert (full["title"], full["handle"], full["picture"]) == ("Me", "@me", "http://x/y.png")
    assert part["title"] == "<b>"
    assert not {"handle", "picture"} & set(part)
    assert not {"title", "handle", "picture"} & set(none)


def test_models_in_memory() -> None:
    served = Served()
    served.engine.becomes("d", state="resident")
    served.engine.becomes("a", state="loading")
    (model,) = served.request("GET", "/models?state=resident").json()["models"]
    assert model["id"] == "d"


@pytest.mark.parametrize(
    ("field", "value"), [("state", "cold"), ("state", ""), ("search", "a" * 201)]
)
def test_wrong_searches_are_refused_by_name(field: str, value: str) -> None:
    answer = Served().request("GET", "/models", params={field: value})
    assert assert_problem(answer, 422, "invalid_value")["field"] == field


def test_model_info_has_what_clients_of_tgi_read() -> None:
    served = Served(FakeEngine(settings=engine_settings("models/", max_queue=9, max_batch_size=3)))
    info = served.request("GET", "/models/me/model/info").json()
    assert {name: info[name] for name in info if name.startswith(("m", "model_"))} == {
        "model_id": "me/model",
        "model_dtype": "int8",
        "model_pipeline_tag": "text-generation",
        "max_concurrent_requests": 9,
        "max_best_of": 3,
        "max_stop_sequences": 16,
        "max_input_tokens": 7,
        "max_total_tokens": 8,
    }


def test_model_info_shows_no_paths() -> None:
    answer = Served().request("GET", "/models/me/model/info")
    assert answer.status_code == 200
    info = answer.json()
    assert (info["id"], info["version"], info["card"]["title"]) == ("me/model", "ab" * 8, "Me")
    assert "somebody" not in answer.text


@pytest.mark.parametrize("at", ["/models/a/copy/info", "/v1/models/a/copy"])
def test_a_package_that_was_copied_answers_to_its_folders_name(
    at: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its manifest has the id that it was exported under."""
    monkeypatch.setattr(FakeEngine, "describe", lambda *_: MANIFEST)
    assert Served().request("GET", at).json()["id"] == "a/copy"


def test_unknown_model_info() -> None:
    assert_problem(Served().request("GET", "/models/none/info"), 404, "model_not_found")
    assert_problem(Served().request("GET", "/models/a/-b/info"), 422, "invalid_model_id")


@pytest.mark.parametrize("path", ["/readyz", "/health"])
def test_health_and_readiness(path: str) -> None:
    engine = FakeEngine()
    served = Served(engine)
    assert served.request("GET", path).json() == {"status": "ready"}
    engine.alive = False
    answer = served.request("GET", path)
    assert_problem(answer, 503, "not_ready")
    assert "retry-after" in answer.headers
    assert served.request("GET", "/healthz").status_code == 200


def test_not_ready_before_what_is_loaded_at_start_is_there() -> None:
    served = Served(FakeEngine(may_start=threading.Event()))
    service = service_of(served.app)

    async def main() -> None:
        service.begin()
        assert_problem(await send(served.app, "GET", "/readyz"), 503, "not_ready")
        assert (await send(served.app, "GET", "/healthz")).status_code == 200
        assert (await send(served.app, "POST", "/generate", json=GOOD)).status_code == 200
        served.engine.may_start.set()
        await service.started()
        assert (await send(served.app, "GET", "/readyz")).status_code == 200

    asyncio.run(main())


def test_not_ready_while_draining() -> None:
    served = Served()
    assert shown(served, "gpt2serve_ready") == 1
    asyncio.run(served.app.state["gpt2serve"].drain())
    assert_problem(served.request("GET", "/readyz"), 503, "draining")
    assert shown(served, "gpt2serve_ready") == 0


def shown(served: Served, metric: str) -> float:
    lines = served.request("GET", "/metrics").text.splitlines()
    (value,) = [float(line.split()[1]) for line in lines if line.startswith(f"{metric} ")]
    return value


def test_metrics_tell_readiness_without_asking_the_engine() -> None:
    """Its thread may be stuck: a scrape must not wait for it."""
    engine = FakeEngine(may_start=threading.Event())
    served = Served(engine)
    assert shown(served, "gpt2serve_ready") == 1
    engine.unresponsive = 60.0
    assert shown(served, "gpt2serve_ready") == 0
    assert shown(served, "gpt2serve_engine_unresponsive_seconds") == 60
    engine.unresponsive, engine.alive = 0.5, False
    assert shown(served, "gpt2serve_ready") == 0
    engine.alive = True
    assert shown(served, "gpt2serve_ready") == 1

    async def main() -> None:
        service_of(served.app).begin()
        answer = await send(served.app, "GET", "/metrics")
        assert "gpt2serve_ready 0.0" in answer.text, "starting"
        assert engine.may_start is not None
        engine.may_start.set()
        await service_of(served.app).started()

    asyncio.run(main())
    assert shown(served, "gpt2serve_ready") == 1


def test_index_points_to_the_schema() -> None:
    served = Served()
    wanted = {"Accept": "application/json"}
    assert served.request("GET", "/", headers=wanted).json()["schema"] == "/schema"
    schema = served.request("GET", "/schema").json()
    body = schema["paths"]["/generate"]["post"]["requestBody"]["content"]["application/json"]
    name = body["schema"]["$ref"].rsplit("/", 1)[-1]
    fields = schema["components"]["schemas"][name]["properties"]
    assert all(field.get("description") for field in fields.values()), fields
    assert {"200", "400", "404", "422", "429", "503"} <= set(
        schema["paths"]["/generate"]["post"]["responses"]
    )


def test_router_in_an_app_of_ones_own() -> None:
    engine: Any = FakeEngine()
    app = Litestar([create_router(engine, path="/texts")], logging_config=None)
    answer = asyncio.run(send(app, "POST", "/texts/generate", json=GOOD))
    assert answer.status_code == 200
    wrong = asyncio.run(send(app, "POST", "/texts/generate", json=GOOD | {"top_p": 2}))
    assert_problem(wrong, 422, "invalid_value")


@pytest.mark.parametrize("shift", [False, True])
def test_mounted_below_a_prefix(shift: bool) -> None:
    served = Served()

    async def parent(scope: Any, receive: Any, send_: Any) -> None:
        path = scope["path"].removeprefix("/gpt2") if shift else scope["path"]
        await served.app(dict(scope, path=path, root_path="/gpt2"), receive, send_)

    answer = asyncio.run(send(parent, "POST", "/gpt2/generate", json=GOOD))
    assert answer.status_code == 200


def test_an_engine_handed_in_is_not_closed() -> None:
    served = Served()

    async def main() -> None:
        async with lifespan(served.app):
            pass

    asyncio.run(main())
    assert served.engine.closed == 0


# -- several prompts in one request --------------------------------------------------------------


class PairFrames:
    def events(self, ask: int, events: list[Event]) -> bytes:
        return f"{ask}:{len(events)};".encode()

    def end(self) -> bytes:
        return b"end"

    def error(self, problem: Problem) -> bytes:
        return problem.code.encode()


@post("/pair", status_code=200, opt=GENERATION)
async def pair(
    request: Request[Any, Any, Any],
    service: NamedDependency[Service],
    exchange: NamedDependency[Exchange],
    stream: FromQuery[bool],
) -> Response[Any]:
    asks = [Ask(PROMPT, SamplingParams()), Ask(PROMPT, SamplingParams())]
    running = await begin(request, service, exchange, "me/model", asks, stream=stream)
    if stream:
        return await running.respond(PairFrames())
    return Response([len(result.generations) for result in await running.results()])


def served_pair(engine: FakeEngine) -> Served:
    served = Served(engine)
    router = build_router(service_of(served.app), "/two")
    router.register(pair)
    served.app.register(router)
    return served


def test_several_prompts_end_together_and_their_tokens_add_up() -> None:
    served = served_pair(FakeEngine())
    answer = served.request("POST", "/two/pair?stream=false")
    assert answer.json() == [2, 2]
    (line,) = served.log
    assert (line["prompt_tokens"], line["completion_tokens"], line["queue_ms"]) == (8, 8, 1.0)
    assert line["finish_reasons"] == ["eos"] * 4


def test_a_stream_of_several_prompts_has_one_end() -> None:
    served = served_pair(FakeEngine())
    text = served.request("POST", "/two/pair?stream=true").text
    parts = text.removesuffix("end").split(";")[:-1]
    assert text.endswith("end")
    assert sorted(parts) == sorted(["0:2", "0:2", "0:3", "1:2", "1:2", "1:3"])
    assert served.log[0]["client_gone"] is False


class FirstFails(FakeEngine):
    """The second request is still running when the first fails."""

    def submit(self, request: Any, *, wants_tokens: bool, owner: str = "") -> TokenStream:
        stream = super().submit(request, wants_tokens=wants_tokens, owner=owner)
        self.steps = [STEPS[0]]
        return stream


@pytest.mark.parametrize("stream", ["true", "false"])
def test_if_one_of_several_fails_all_are_cancelled(stream: str) -> None:
    engine = FirstFails([STEPS[0], Delivery(error=errors.StepFailed("no"))])
    answer = served_pair(engine).request("POST", f"/two/pair?stream={stream}")
    assert "generation_failed" in answer.text
    assert engine.cancelled > 0  # which is idempotent


def test_if_one_of_several_is_refused_none_runs() -> None:
    class Full(FakeEngine):
        def submit(self, request: Any, *, wants_tokens: bool, owner: str = "") -> TokenStream:
            stream = super().submit(request, wants_tokens=wants_tokens, owner=owner)
            self.refuses = errors.Overloaded("full", retry_after=1.0)
            return stream

    engine = Full()
    answer = served_pair(engine).request("POST", "/two/pair?stream=false")
    assert answer.status_code == 429
    assert engine.cancelled == 1
