"""`/admin` over a fake engine: who gets in, what comes back, and when."""

from __future__ import annotations

import asyncio
import json
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import httpx
import pytest

from gpt2serve import errors
from gpt2serve.api import admin
from gpt2serve.errors import SettingsError
from tests.unit.api_support import FakeEngine, RawClient, Served, assert_problem, frames, send

KEY = "correct-horse-battery"
ACTIONS = ("load", "unload", "pin", "unpin")


def bearer(key: str = KEY) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def post(served: Served, path: str, **headers: str) -> httpx.Response:
    return served.request("POST", f"/admin/models/{path}", headers=bearer() | headers)


@pytest.fixture
def served() -> Served:
    return Served(admin_key=KEY)


@pytest.fixture
def busy() -> Served:
    """Nothing that is begun ends by itself."""
    return Served(FakeEngine(work=Future()), admin_key=KEY)


@pytest.fixture(autouse=True)
def short_polls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admin, "POLL_SECONDS", 0.01)


# -- who gets in ------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["a/load", "b/c/unload", "a/pin", "a"])
def test_without_a_key_there_is_no_admin(path: str) -> None:
    served = Served()
    for method in ("GET", "POST"):
        answer = served.request(method, f"/admin/models/{path}", headers=bearer())
        assert_problem(answer, 404, "not_found")
    assert "/admin" not in json.dumps(served.request("GET", "/schema").json()["paths"])


@pytest.mark.parametrize(
    "given",
    [
        None,
        "",
        "Bearer",
        "Bearer ",
        f"Bearer {KEY}x",
        f"Bearer {KEY[:-1]}",
        f"Bearer x {KEY}",
        "Bearer \xff" + KEY[1:],
        f"Basic {KEY}",
        KEY,
    ],
)
@pytest.mark.parametrize("path", ["a/load", "nobody/load", "../load", "a/dance"])
def test_wrong_key_is_401_whatever_else_is_wrong(
    served: Served, given: str | None, path: str
) -> None:
    headers = {} if given is None else {"Authorization": given.encode("latin-1")}
    answer = served.request("POST", f"/admin/models/{path}", headers=headers)
    if path == "../load":  # httpx makes /admin/load of it
        assert_problem(answer, 404, "not_found")
        return
    problem = assert_problem(answer, 401, "unauthorized")
    assert answer.headers["www-authenticate"] == "Bearer"
    assert "field" not in problem
    assert served.engine.given == []
    (line,) = served.log
    assert (line["event"], line["status"], line["model"]) == ("admin", 401, None)


def test_info_needs_the_key_too(served: Served) -> None:
    assert_problem(served.request("GET", "/admin/models/a/info"), 401, "unauthorized")


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
def test_right_key_gets_in(served: Served, scheme: str) -> None:
    answer = served.request(
        "GET", "/admin/models/a/info", headers={"Authorization": f"{scheme} {KEY}"}
    )
    assert answer.status_code == 200


def test_key_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text(f"{KEY}\n")
    served = Served(admin_key_file=file)
    file.unlink()  # read once
    assert post(served, "a/load").status_code == 200


@pytest.mark.parametrize(
    ("content", "message"), [(b"", "16"), (b"\n", "16"), (b"short\n", "16"), (b"\xff" * 20, "UTF")]
)
def test_unusable_key_file(tmp_path: Path, content: bytes, message: str) -> None:
    file = tmp_path / "key"
    file.write_bytes(content)
    with pytest.raises(SettingsError, match=message) as caught:
        Served(admin_key_file=file)
    assert str(file) in str(caught.value)


def test_missing_key_file(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="No such file"):
        Served(admin_key_file=tmp_path / "key")


def test_key_is_nowhere_to_be_seen(served: Served) -> None:
    post(served, "a/load")
    served.engine.fails = RuntimeError("unexpected")
    answer = post(served, "a/load")
    assert_problem(answer, 500, "internal_error")
    seen = served.output.getvalue() + answer.text + repr(served.app.state["gpt2serve"].settings)
    seen += served.request("GET", "/schema").text + served.request("GET", "/metrics").text
    assert "horse" not in seen


# -- what is done -----------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["a", "b/c"])
@pytest.mark.parametrize("action", ACTIONS)
def test_answer_is_the_entry_when_it_is_done(served: Served, model: str, action: str) -> None:
    served.engine.becomes(model, state="loading", pinned=True, leases=3, old_versions=1)
    answer = post(served, f"{model}/{action}")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    entry = answer.json()
    assert served.engine.given == [(action, model)]
    assert entry["id"] == model
    assert entry["state"] == {"unload": "cold", "unpin": "loading"}.get(action, "resident")
    assert entry["pinned"] is (action in ("pin", "unload"))
    assert (entry["leases"], entry["old_versions"]) == (3, 1)


def test_info_tells_the_whole_error(served: Served) -> None:
    served.engine.becomes("b/c", state="failed", error="/srv/secret: no such file")
    answer = served.request("GET", "/admin/models/b/c/info", headers=bearer())
    assert (answer.json()["state"], answer.json()["error"]) == (
        "failed",
        "/srv/secret: no such file",
    )


@pytest.mark.parametrize("name", ACTIONS)
def test_models_may_be_called_like_actions(served: Served, name: str) -> None:
    for model in (name, f"org/{name}", f"{name}/{name}"):
        served.engine.models[model] = served.engine.models["a"]
        assert post(served, f"{model}/pin").status_code == 200
        assert served.engine.given.pop() == ("pin", model)
        answer = served.request("GET", f"/admin/models/{model}/info", headers=bearer())
        assert answer.status_code == 200


def test_unknown_model_action_and_id(served: Served) -> None:
    for action in ACTIONS:
        assert_problem(post(served, f"nobody/{action}"), 404, "model_not_found")
    assert_problem(post(served, "a/dance"), 404, "not_found")
    assert_problem(post(served, "-a/load"), 422, "invalid_model_id")
    answer = served.request("GET", "/admin/models/nobody/info", headers=bearer())
    assert_problem(answer, 404, "model_not_found")
    assert_problem(post(served, "a/load?wait=perhaps"), 422, "invalid_value")
    assert served.engine.given == []


@pytest.mark.parametrize("accept", ["application/json", "text/event-stream"])
@pytest.mark.parametrize(
    ("error", "status", "code", "retry"),
    [
        (errors.ModelTooLarge("too large"), 503, "model_too_large", None),
        (errors.ModelLoadFailed("/secret", retry_after=3.2), 503, "model_load_failed", "4"),
        (errors.StoreUnavailable("s3://secret", retry_after=2), 503, "store_unavailable", "2"),
        (errors.EngineClosed(), 503, "draining", "5"),
        (RuntimeError("/secret"), 500, "internal_error", None),
    ],
)
@pytest.mark.parametrize("where", ["call", "future"])
def test_what_fails_at_once_is_a_problem(
    error: Exception, status: int, code: str, retry: str | None, accept: str, where: str
) -> None:
    engine = FakeEngine(fails=error) if where == "call" else FakeEngine(work=Future())
    if engine.work is not None:
        engine.work.set_exception(error)
    answer = post(Served(engine, admin_key=KEY), "a/load", Accept=accept)
    assert_problem(answer, status, code)
    assert answer.headers.get("retry-after") == retry
    assert "secret" not in answer.text


def test_refused_while_draining(served: Served) -> None:
    asyncio.run(served.app.state["gpt2serve"].drain())
    assert_problem(post(served, "a/load"), 503, "draining")
    assert served.engine.given == []


def test_without_waiting_it_is_202_with_the_entry_as_it_is(busy: Served) -> None:
    busy.engine.becomes("a", state="fetching", fetched_bytes=3, fetch_total_bytes=9)
    answer = post(busy, "a/load?wait=false")
    assert answer.status_code == 202
    assert (answer.json()["state"], answer.json()["fetched_bytes"]) == ("fetching", 3)
    assert not busy.engine.work.cancelled()


# -- progress ---------------------------------------------------------------------------------


class Watching(RawClient):
    """A client of the load of model `a`."""

    def __init__(self, served: Served, **headers: str) -> None:
        super().__init__(served.app, {}, "/admin/models/a/load", bearer() | headers)

    @property
    def events(self) -> list[Any]:
        return frames(b"".join(self.chunks).decode()) if self.chunks else []

    async def sees(self, number: int) -> list[Any]:
        await self.until(lambda: len(self.events) >= number)
        return self.events


def test_progress_is_told_as_it_changes(busy: Served) -> None:
    async def main() -> None:
        engine = busy.engine
        client = Watching(busy, accept="text/event-stream")
        assert [event["state"] for event in await client.sees(1)] == ["cold"]
        await asyncio.sleep(0.1)
        assert len(client.events) == 1  # nothing changed, nothing is told
        engine.becomes("a", state="fetching", fetched_bytes=0, fetch_total_bytes=9)
        await client.sees(2)
        engine.becomes("a", fetched_bytes=5)
        await client.sees(3)
        engine.becomes("a", state="resident", fetched_bytes=None, fetch_total_bytes=None)
        engine.work.set_result(None)
        await asyncio.wait_for(client.task, 5)
        *entries, done = client.events
        assert done == "[DONE]"
        assert [entry["state"] for entry in entries] == ["cold", *["fetching"] * 2, "resident"]
        assert [entry.get("fetched_bytes") for entry in entries] == [None, 0, 5, None]
        (head,) = [m for m in client.sent if m["type"] == "http.response.start"]
        headers = {name.decode().lower(): value.decode() for name, value in head["headers"]}
        assert head["status"] == 200
        assert headers["content-type"].startswith("text/event-stream")
        assert headers["cache-control"] == "no-cache"

    asyncio.run(main())
    (line,) = busy.log
    assert (line["code"], line["client_gone"]) == ("ok", False)


def test_failure_after_the_first_event_ends_the_stream_without_done(busy: Served) -> None:
    async def main() -> None:
        client = Watching(busy, accept="text/event-stream")
        await client.sees(1)
        busy.engine.becomes("a", state="failed", error="/srv/secret: broken")
        busy.engine.work.set_exception(errors.ModelLoadFailed("/srv/secret", retry_after=1))
        await asyncio.wait_for(client.task, 5)
        *_, entry, last = client.events
        assert entry["state"] == "failed"
        assert (last["error"]["status"], last["error"]["code"]) == (503, "model_load_failed")
        assert "secret" not in json.dumps(last)

    asyncio.run(main())
    (line,) = busy.log
    assert (line["code"], line["error"]) == ("model_load_failed", "/srv/secret")


def test_model_that_goes_meanwhile_is_a_failure_too(busy: Served) -> None:
    async def main() -> None:
        client = Watching(busy, accept="text/event-stream")
        await client.sees(1)
        del busy.engine.models["a"]
        await asyncio.wait_for(client.task, 5)
        assert client.events[-1]["error"]["code"] == "model_not_found"

    asyncio.run(main())


def test_a_quiet_stream_is_kept_open(busy: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admin, "QUIET_SECONDS", 0.02)

    async def main() -> None:
        client = Watching(busy, accept="text/event-stream")
        await client.until(lambda: len(client.chunks) >= 3)
        assert all(chunk.startswith(b":") for chunk in client.chunks[1:])
        await client.leave()

    asyncio.run(main())


@pytest.mark.parametrize("accept", ["application/json", "text/event-stream"])
@pytest.mark.parametrize("outcome", [None, errors.ModelLoadFailed("broken")])
def test_client_that_leaves_cancels_nothing(
    busy: Served, accept: str, outcome: Exception | None
) -> None:
    async def main() -> None:
        client = Watching(busy, accept=accept)
        await client.until(lambda: bool(client.chunks) or accept != "text/event-stream")
        await asyncio.sleep(0.05)
        await client.leave()
        assert busy.engine.given == [("load", "a")]
        # The engine must still be able to tell how it ended.
        if outcome is None:
            busy.engine.work.set_result(None)
        else:
            busy.engine.work.set_exception(outcome)
        await asyncio.sleep(0.01)

    asyncio.run(main())
    (line,) = busy.log
    assert (line["client_gone"], line["code"]) == (True, "client_disconnected")


@pytest.mark.parametrize(
    ("accept", "stream"),
    [
        ("*/*", False),
        ("application/json", False),
        ("text/html", False),
        ("text/event-stream", True),
        ("text/event-stream, application/json;q=0.5", True),
    ],
)
def test_accept_decides(served: Served, accept: str, stream: bool) -> None:
    answer = post(served, "a/load", Accept=accept)
    assert answer.headers["content-type"].startswith("text/event-stream") is stream
    if stream:
        entry, done = frames(answer.text)
        assert (entry["state"], done) == ("resident", "[DONE]")


# -- log, metrics, schema ---------------------------------------------------------------------


def test_one_log_line_each(served: Served) -> None:
    post(served, "b/c/pin")
    post(served, "nobody/unload")
    served.request("GET", "/admin/models/a/info", headers=bearer())
    told = [(line["action"], line["model"], line["status"], line["code"]) for line in served.log]
    assert told == [
        ("pin", "b/c", 200, "ok"),
        ("unload", "nobody", 404, "model_not_found"),
        ("info", "a", 200, "ok"),
    ]
    assert all(line["event"] == "admin" and line["duration_ms"] > 0 for line in served.log)


def test_metrics_count_by_action(served: Served) -> None:
    for path in ("a/load", "b/c/load", "a/unload", "a/dance"):
        post(served, path)
    served.request("GET", "/admin/models/a/info", headers=bearer())
    served.request("GET", "/admin/models/b/c/info", headers=bearer())
    served.request("POST", "/admin/models/a/load")
    counted = [
        line.removeprefix("gpt2serve_http_requests_total")
        for line in served.request("GET", "/metrics").text.splitlines()
        if line.startswith("gpt2serve_http_requests_total") and "admin" in line
    ]
    assert sorted(counted) == [
        '{code="not_found",route="/admin/models/{name}/{action}",status="404"} 1.0',
        '{code="ok",route="/admin/models/{id}/info",status="200"} 2.0',
        '{code="ok",route="/admin/models/{id}/load",status="200"} 2.0',
        '{code="ok",route="/admin/models/{id}/unload",status="200"} 1.0',
        '{code="unauthorized",route="/admin/models/{name}/{action}",status="401"} 1.0',
    ]


def test_schema_tells_of_key_and_actions(served: Served) -> None:
    schema = served.request("GET", "/schema").json()
    operation = schema["paths"]["/admin/models/{owner}/{name}/{action}"]["post"]
    (parameter,) = [one for one in operation["parameters"] if one["name"] == "action"]
    assert parameter["schema"]["enum"] == list(ACTIONS)
    assert {"200", "202", "401", "404", "503"} <= set(operation["responses"])
    (requirement,) = operation["security"]
    (scheme,) = requirement
    assert schema["components"]["securitySchemes"][scheme]["scheme"] == "bearer"


def test_below_a_prefix_of_ones_own() -> None:
    from litestar import Litestar

    from gpt2serve.app import create_router
    from gpt2serve.settings import server_settings

    engine: Any = FakeEngine()
    router = create_router(engine, path="/texts", server_settings=server_settings(admin_key=KEY))
    app = Litestar([router], logging_config=None)
    path = "/texts/admin/models/a/load"
    assert asyncio.run(send(app, "POST", path, headers=bearer())).status_code == 200
    text = asyncio.run(send(app, "GET", "/texts/metrics")).text
    assert 'route="/texts/admin/models/{id}/load"' in text
