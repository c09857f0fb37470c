"""API keys over HTTP, around a fake engine: who may in, what they may use, what they have left."""

from __future__ import annotations

import asyncio
import errno
import functools
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
from litestar.handlers import HTTPRouteHandler

from gpt2serve.api import keys as keys_module
from gpt2serve.api import service as service_module
from gpt2serve.api.callers import LOADS_EACH
from gpt2serve.api.generation import GENERATION
from gpt2serve.api.keys import CHECK_SECONDS, Keyring
from gpt2serve.app import service_of
from gpt2serve.engine.stream import Delivery, TokenStream
from gpt2serve.errors import Overloaded, SettingsError, StepFailed
from gpt2serve.logs import create_logger
from tests.unit.api_support import (
    GOOD,
    STEPS,
    FakeEngine,
    RawClient,
    Served,
    assert_problem,
    model_status,
    send,
)
from tests.unit.test_key_file import hashed

ALICE, BOB, NEW = "alice-key", "bob-key", "new-key"
ADMIN = "admin-key-of-16-or-more"


class Prepared(str):
    """What the fake engine prepares: a model's name that says how large the request is."""

    most_tokens = 100


class CountingEngine(FakeEngine):
    """Knows whose each request is, and how large."""

    def __init__(self, **fields: Any) -> None:
        super().__init__(**fields)
        self.owners: list[str] = []
        self.submitted = asyncio.Event()

    def prepare(self, model: str, prompt: Any, params: Any) -> Any:
        return Prepared(super().prepare(model, prompt, params))

    def submit(self, request: Any, *, wants_tokens: bool, owner: str = "") -> TokenStream:
        self.owners.append(owner)
        self.submitted.set()
        return super().submit(str(request), wants_tokens=wants_tokens, owner=owner)


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(service_module, "Keyring", functools.partial(Keyring, clock=made))
    return made


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "keys"
    path.write_text(f"{hashed(ALICE)} alice\n{hashed(BOB)} bob rate=600 models=bob/*,me/model\n")
    return path


@pytest.fixture
def served(file: Path, clock: Clock) -> Served:
    return Served(CountingEngine(), api_key_file=file, admin_key=ADMIN)


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def generate(served: Served, key: str, **fields: Any) -> Any:
    return served.request("POST", "/generate", json=GOOD | fields, headers=bearer(key))


# -- who may in -------------------------------------------------------------------------------


def test_a_key_lets_in_and_the_log_has_its_name(served: Served) -> None:
    assert generate(served, ALICE).status_code == 200
    assert served.engine.owners == ["alice"]
    assert [(line["event"], line["key"]) for line in served.log] == [("generate", "alice")]
    assert ALICE not in served.output.getvalue()


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": ""},
        bearer(""),
        bearer("wrong"),
        bearer(ALICE + "x"),
        bearer(ALICE.upper()),
        bearer(hashed(ALICE)),
        bearer(hashed(ALICE)[7:]),
        bearer(f"{ALICE} {ALICE}"),
        bearer(ADMIN),
        {"Authorization": ALICE},
        {"Authorization": f"Basic {ALICE}"},
        {"Authorization": b"Bearer \xff\xfe"},
        {"X-Api-Key": ALICE},
        {"Cookie": f"Authorization=Bearer {ALICE}"},
    ],
)
def test_whatever_is_wrong_the_answer_is_the_same(served: Served, headers: Any) -> None:
    for model in ("me/model", "nobody", "no model id"):
        answer = served.request("POST", "/generate", json=GOOD | {"model": model}, headers=headers)
        problem = assert_problem(answer, 401, "unauthorized")
        assert problem["detail"] == "Send an API key as `Authorization: Bearer KEY`."
        assert answer.headers["www-authenticate"] == "Bearer"
    assert served.engine.given == []
    assert {line["code"] for line in served.log} == {"unauthorized"}
    assert all("key" not in line for line in served.log)


def test_the_scheme_is_bearer_however_it_is_written(served: Served) -> None:
    for text in (f"bearer {ALICE}", f"BEARER   {ALICE} "):
        answer = served.request("POST", "/generate", json=GOOD, headers={"Authorization": text})
        assert answer.status_code == 200


def routes(app: Any) -> list[tuple[str, str, HTTPRouteHandler]]:
    """Method, path and handler of all that the router serves, but for `/schema`."""
    return [
        (method, route.path_format, handler)
        for route in app.routes
        if hasattr(route, "route_handlers") and not route.path_format.startswith("/schema")
        for handler in route.route_handlers
        for method in sorted(handler.http_methods)
        if method != "OPTIONS"
    ]


RELOADED = "gpt2serve_api_keys_last_reload_successful"
OPEN = {"/", "/health", "/healthz", "/readyz", "/metrics", "/playground/{name}"}


def test_everything_else_takes_a_key(served: Served) -> None:
    """A route that is added and is not to take a key has to be named above."""
    asked = 0
    for method, template, handler in routes(served.app):
        path = template.replace("{", "").replace("}", "")
        answer = served.request(method, path)
        if template in OPEN:
            assert answer.status_code != 401, template
            continue
        asked += 1
        assert answer.status_code == 401, template
        assert answer.headers["www-authenticate"] == "Bearer"
        wrong_kind = ALICE if template.startswith("/admin") else ADMIN
        assert served.request(method, path, headers=bearer(wrong_kind)).status_code == 401
        if handler.opt.items() >= GENERATION.items():
            assert not template.startswith("/admin")
    assert asked >= 5
    assert served.request("GET", "/schema").status_code == 200


def test_without_a_file_everybody_may_in() -> None:
    served = Served(CountingEngine())
    assert service_of(served.app).keys is None
    assert served.generate().status_code == 200
    assert served.engine.owners == [""]
    assert all("key" not in line for line in served.log)
    assert "x-ratelimit-limit-tokens" not in served.generate().headers
    schema = served.request("GET", "/schema").json()
    assert "ApiKey" not in str(schema)


def test_the_schema_says_what_takes_a_key(served: Served) -> None:
    schema = served.request("GET", "/schema").json()
    assert schema["components"]["securitySchemes"]["ApiKey"] == {"type": "http", "scheme": "bearer"}
    operation = schema["paths"]["/generate"]["post"]
    assert operation["security"] == [{"ApiKey": []}]
    assert {"401", "403", "429"} <= operation["responses"].keys()
    assert "security" not in schema["paths"]["/healthz"]["get"]


def test_a_preflight_has_no_key(file: Path) -> None:
    served = Served(api_key_file=file, cors_origins=["https://page.example"])
    asked = {"Origin": "https://page.example", "Access-Control-Request-Method": "POST"}
    answer = served.request("OPTIONS", "/generate", headers=asked)
    assert answer.status_code == 204
    assert answer.headers["access-control-allow-origin"] == "https://page.example"


# -- which models -----------------------------------------------------------------------------


def test_a_model_that_the_key_may_not_use(served: Served) -> None:
    assert generate(served, BOB).status_code == 200
    served.engine.given.clear()
    for model in ("a", "nobody", "bob2/x", "bob"):
        problem = assert_problem(generate(served, BOB, model=model), 403, "model_not_allowed")
        assert problem["field"] == "model"
        assert problem["detail"] == f"This key may not use the model {model!r}."
    assert served.engine.given == []
    assert generate(served, BOB, model="bob/x").status_code == 200
    assert served.log[-2]["key"] == "bob"


def test_a_model_that_the_key_may_not_use_is_not_described(served: Served) -> None:
    for model in ("nobody", "a"):
        answer = served.request("GET", f"/models/{model}/info", headers=bearer(BOB))
        assert_problem(answer, 403, "model_not_allowed")
    assert served.request("GET", "/models/me/model/info", headers=bearer(BOB)).status_code == 200
    answer = served.request("GET", "/models/nobody/info", headers=bearer(ALICE))
    assert_problem(answer, 404, "model_not_found")


def test_lists_show_what_the_key_may_use(served: Served) -> None:
    served.engine.models = {
        name: model_status(name) for name in ("a", "bob", "bob/x", "bob/y", "me/model", "z/z")
    }

    def listed(key: str, query: str = "") -> tuple[list[str], str | None]:
        page = served.request("GET", f"/models?{query}", headers=bearer(key)).json()
        return [model["id"] for model in page["models"]], page.get("next")

    assert listed(BOB) == (["bob/x", "bob/y", "me/model"], None)
    assert listed(BOB, "limit=2") == (["bob/x", "bob/y"], "bob/y")
    assert listed(BOB, "limit=2&after=bob/y") == (["me/model"], None)
    assert listed(BOB, "search=z") == ([], None)
    assert listed(ALICE) == (sorted(served.engine.models), None)
    objects = served.request("GET", "/v1/models", headers=bearer(BOB)).json()["data"]
    assert [model["id"] for model in objects] == ["bob/x", "bob/y", "me/model"]


def test_no_search_goes_on_from_a_model_that_the_key_may_not_use(served: Served) -> None:
    """What comes next would tell whether its card has the words."""
    for model in ("a", "nobody"):
        path = f"/models?search=x&after={model}"
        answer = served.request("GET", path, headers=bearer(BOB))
        assert assert_problem(answer, 422, "invalid_value")["field"] == "after"
        assert served.request("GET", path, headers=bearer(ALICE)).status_code == 200
        path = f"/models?after={model}"
        assert served.request("GET", path, headers=bearer(BOB)).status_code == 200


def test_the_openai_surface_says_so_in_its_own_shape(served: Served) -> None:
    body = {"model": "a", "prompt": "x"}
    for method, path in (("POST", "/v1/completions"), ("GET", "/v1/models/a")):
        options = {"json": body} if method == "POST" else {}
        answer = served.request(method, path, headers=bearer(BOB), **options)
        assert answer.status_code == 403
        error = answer.json()["error"]
        assert (error["type"], error["code"]) == ("permission_error", "model_not_allowed")
        answer = served.request(method, path, **options)
        assert answer.status_code == 401
        error = answer.json()["error"]
        assert (error["type"], error["code"]) == ("authentication_error", "unauthorized")


def test_the_hugging_face_surface_says_so_in_its_own_shape(served: Served) -> None:
    for options in ({}, {"options": {"wait_for_model": False}}):
        body = {"inputs": "x", **options}
        answer = served.request("POST", "/models/a", json=body, headers=bearer(BOB))
        assert answer.status_code == 403
        assert answer.json() == {"error": "This key may not use the model 'a'."}
    answer = served.request("POST", "/models/a", json={"inputs": "x"})
    assert answer.status_code == 401
    assert answer.json() == {"error": "Send an API key as `Authorization: Bearer KEY`."}
    assert answer.headers["www-authenticate"] == "Bearer"


# -- turns ------------------------------------------------------------------------------------


def test_one_key_leaves_threads_to_others(file: Path) -> None:
    """What one asks the store, or has tokenised, may take long."""
    go_on = threading.Event()
    slow = threading.Semaphore(0)

    class SlowForAlice(CountingEngine):
        def prepare(self, model: str, prompt: Any, params: Any) -> Any:
            if prompt == "slow":
                slow.release()
                assert go_on.wait(20)
            return super().prepare(model, prompt, params)

        def list_models(self, **options: Any) -> Any:
            if options["search"] == "slow":
                slow.release()
                assert go_on.wait(20)
            return super().list_models(**options)

    served = Served(SlowForAlice(), api_key_file=file)

    async def main() -> None:
        body = GOOD | {"prompt": "slow"}
        flood = [
            send(served.app, "POST", "/generate", json=body, headers=bearer(ALICE))
            for _ in range(40)
        ]
        flood += [
            send(served.app, "GET", "/models?search=slow", headers=bearer(ALICE)) for _ in range(40)
        ]
        answers = asyncio.gather(*flood)
        try:
            await asyncio.to_thread(slow.acquire)
            async with asyncio.timeout(10):
                answer = await send(served.app, "POST", "/generate", json=GOOD, headers=bearer(BOB))
            assert answer.status_code == 200
        finally:
            go_on.set()
        assert {answer.status_code for answer in await answers} == {200}

    asyncio.run(main())
    assert served.engine.owners[0] == "bob"


def test_more_prompts_than_a_key_can_have_places_for(served: Served) -> None:
    """It is no 429: that would be tried again for ever."""
    places = served.engine.settings.max_queue // 2
    for prompts, status in ((places, 200), (places + 1, 400)):
        body = {"model": "me/model", "prompt": ["x"] * prompts}
        answer = served.request("POST", "/v1/completions", json=body, headers=bearer(ALICE))
        assert answer.status_code == status
    assert answer.json()["error"]["param"] == "prompt"
    body = {"inputs": ["x"] * (places + 1)}
    answer = served.request("POST", "/models/me/model", json=body, headers=bearer(ALICE))
    assert answer.status_code == 422
    assert answer.json()["error"].startswith("inputs: 3 prompts are more")


def test_one_key_has_few_models_loaded_that_it_does_not_wait_for(served: Served) -> None:
    """They take no place in the queue, and each may put others out of memory."""
    engine = served.engine
    engine.models = {f"bob/{n}": model_status(f"bob/{n}") for n in range(9)}

    def ask(model: int) -> None:
        body = {"inputs": "x", "options": {"wait_for_model": False}}
        path = f"/models/bob/{model}"
        answer = served.request("POST", path, json=body, headers=bearer(BOB))
        assert answer.status_code == 503
        assert answer.headers["retry-after"] == "1"

    def loaded() -> int:
        return sum(given[0] == "load" for given in engine.given)

    works = []
    for model in range(6):
        engine.work = Future()
        works.append(engine.work)
        ask(model)
    assert loaded() == LOADS_EACH
    works[0].set_result(None)
    works[1].set_exception(StepFailed("broken"))
    for model in range(3):
        ask(model + 6)
    assert loaded() == LOADS_EACH + 2
    engine.becomes("bob/0", state="loading")
    for work in works:
        if not work.done():
            work.set_result(None)
    ask(0)
    assert loaded() == LOADS_EACH + 2, "it is on its way already"


# -- how much ---------------------------------------------------------------------------------


def limits(answer: Any) -> list[str | None]:
    return [
        answer.headers.get(f"x-ratelimit-{name}-tokens") for name in ("limit", "remaining", "reset")
    ]


def test_the_rate_counts_what_was_used(served: Served, clock: Clock) -> None:
    served.engine.tokens_used = 40
    assert limits(generate(served, BOB)) == ["600", "560", "4s"]
    # The head of a stream goes out while it has all that it may use.
    assert limits(generate(served, BOB, stream=True)) == ["600", "460", "14s"]
    assert limits(generate(served, BOB)) == ["600", "480", "12s"]
    clock.now += 60
    assert limits(generate(served, BOB)) == ["600", "560", "4s"]
    assert limits(generate(served, ALICE)) == [None, None, None]


def test_beyond_the_rate(served: Served, clock: Clock) -> None:
    served.engine.tokens_used = 100
    answers = [generate(served, BOB) for _ in range(6)]
    assert [answer.status_code for answer in answers] == [200] * 6
    clock.now += 3.25
    answer = generate(served, BOB)
    problem = assert_problem(answer, 429, "rate_limited")
    assert problem["detail"] == (
        "This key may use 600 tokens a minute, and the request takes up to 100, prompt included; "
        "there are enough in 6.8 seconds."
    )
    assert answer.headers["retry-after"] == "7"
    assert limits(answer) == ["600", "32", "56.75s"]
    assert generate(served, ALICE).status_code == 200
    clock.now += 7
    assert generate(served, BOB).status_code == 200
    assert (served.log[-3]["code"], served.log[-3]["key"]) == ("rate_limited", "bob")


def test_what_is_refused_costs_nothing(served: Served) -> None:
    served.engine.refuses = Overloaded("full", retry_after=1.0)
    for _ in range(10):
        answer = generate(served, BOB)
        assert_problem(answer, 429, "overloaded")
        assert limits(answer)[1] == "600"


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_pays_for_what_was_made(
    file: Path, clock: Clock, stream: bool
) -> None:
    engine = CountingEngine(held_from=1, tokens_used=15)
    served = Served(engine, api_key_file=file)

    async def main() -> None:
        client = RawClient(served.app, GOOD | {"stream": stream}, headers=bearer(BOB))
        await engine.submitted.wait()
        await client.until(lambda: bool(client.chunks) or not stream)
        await client.leave()
        engine.held_from = None
        answer = await send(served.app, "POST", "/generate", json=GOOD, headers=bearer(BOB))
        assert limits(answer)[1] == str(600 - 15 - 15)

    asyncio.run(main())
    assert engine.cancelled > 0


def test_what_fails_while_it_streams_costs_what_was_made(file: Path, clock: Clock) -> None:
    broken = [STEPS[0], Delivery(error=StepFailed("broken"))]
    engine = CountingEngine(steps=broken, tokens_used=15)
    served = Served(engine, api_key_file=file)
    answer = generate(served, BOB, stream=True)
    assert "generation_failed" in answer.text
    assert limits(answer)[1] == "500"  # as it was when the answer began
    assert limits(generate(served, BOB, stream=True))[1] == str(600 - 15 - 100)


# -- the file changes -------------------------------------------------------------------------


def replace_file(file: Path, text: str) -> None:
    new = file.with_name("new")
    new.write_text(text)
    new.replace(file)


def test_a_changed_file_is_read_again(served: Served, file: Path, clock: Clock) -> None:
    replace_file(file, f"{hashed(NEW)} carol\n{hashed(ALICE)} alice\n")
    clock.now += CHECK_SECONDS
    assert generate(served, BOB).status_code == 401
    assert generate(served, NEW).status_code == 200
    assert generate(served, ALICE).status_code == 200
    told = [line for line in served.log if line["event"] == "API keys reloaded"]
    assert [line["keys"] for line in told] == [2]


def test_the_file_is_looked_at_once_a_second(served: Served, file: Path, clock: Clock) -> None:
    assert generate(served, ALICE).status_code == 200
    replace_file(file, f"{hashed(NEW)} carol\n")
    clock.now += CHECK_SECONDS * 0.9
    assert generate(served, NEW).status_code == 401
    clock.now += CHECK_SECONDS * 0.1
    assert generate(served, NEW).status_code == 200


def test_written_in_place_or_swapped_behind_a_link(
    tmp_path: Path, file: Path, clock: Clock
) -> None:
    link = tmp_path / "link"
    link.symlink_to(file)
    served = Served(CountingEngine(), api_key_file=link)
    other = tmp_path / "other"
    other.write_text(f"{hashed(NEW)} carol\n")
    swapped = tmp_path / "swapped"
    swapped.symlink_to(other)
    swapped.replace(link)
    clock.now += 1
    assert generate(served, NEW).status_code == 200
    assert generate(served, ALICE).status_code == 401
    other.write_text(f"{hashed(ALICE)} alice\n{hashed(BOB)} bob\n")
    clock.now += 1
    assert generate(served, ALICE).status_code == 200


@pytest.mark.parametrize("how", ["wrong", "binary", "gone", "a folder"])
def test_a_file_that_cannot_be_used_changes_nothing(
    served: Served, file: Path, clock: Clock, how: str
) -> None:
    text = file.read_text()
    file.unlink()
    if how == "wrong":
        file.write_text(f"{hashed(NEW)} carol\nrubbish {NEW}\n")
    elif how == "binary":
        file.write_bytes(b"\xff\xfe\x00")
    elif how == "a folder":
        file.mkdir()
    for _ in range(3):
        clock.now += 1
        assert generate(served, NEW).status_code == 401
        assert generate(served, ALICE).status_code == 200
    assert f"{RELOADED} 0.0" in served.request("GET", "/metrics").text
    (told,) = [line for line in served.log if line["level"] == "error"]
    assert told["event"] == "API keys not reloaded: the old ones still hold"
    assert str(file) in told["error"]
    assert NEW not in served.output.getvalue()
    if how == "a folder":
        file.rmdir()
    file.write_text(text + f"{hashed(NEW)} carol\n")
    clock.now += 1
    assert generate(served, NEW).status_code == 200
    assert f"{RELOADED} 1.0" in served.request("GET", "/metrics").text


def test_a_file_that_could_not_be_read_is_tried_again(
    served: Served, file: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was in the way, rights or too many open files, need not touch the file when it goes."""
    replace_file(file, f"{hashed(NEW)} carol\n")

    def refuse(_: Path) -> bytes:
        raise OSError(errno.EMFILE, "Too many open files")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", refuse)
        for _ in range(3):
            clock.now += 1
            assert generate(served, ALICE).status_code == 200
    (told,) = [line for line in served.log if line["level"] == "error"]
    assert "Too many open files" in told["error"]
    clock.now += 1
    assert generate(served, ALICE).status_code == 401
    assert generate(served, NEW).status_code == 200


def test_an_empty_file_lets_nobody_in(served: Served, file: Path, clock: Clock) -> None:
    replace_file(file, "# nobody\n")
    clock.now += 1
    assert generate(served, ALICE).status_code == 401
    assert "no API keys: nobody may in" in [line["event"] for line in served.log]
    at_start = Served(api_key_file=file)
    assert at_start.generate().status_code == 401
    assert at_start.log[0]["event"] == "no API keys: nobody may in"


def test_who_stays_keeps_what_is_left(served: Served, file: Path, clock: Clock) -> None:
    served.engine.tokens_used = 100
    for _ in range(6):
        generate(served, BOB)
    # A new key and other models, but the same name.
    replace_file(file, f"{hashed(NEW)} bob rate=600\n{hashed(ALICE)} alice rate=600\n")
    clock.now += 1
    assert_problem(generate(served, NEW), 429, "rate_limited")
    assert limits(generate(served, ALICE)) == ["600", "500", "10s"]
    # Another rate: as full as it was.
    replace_file(file, f"{hashed(NEW)} bob rate=6000\n")
    clock.now += 29
    assert limits(generate(served, NEW)) == ["6000", "2900", "31s"]
    replace_file(file, f"{hashed(NEW)} bob\n")
    clock.now += 1
    assert limits(generate(served, NEW)) == [None, None, None]


@pytest.mark.parametrize(
    ("write", "wrong"),
    [
        (lambda path: path.write_text(f"{hashed(ALICE)} alice\nrubbish"), "line 2 begins with no"),
        (lambda path: None, "No such file"),
        (lambda path: path.mkdir(), "Is a directory"),
        (lambda path: path.write_bytes(b"\xff"), "not UTF-8"),
    ],
)
def test_a_file_that_cannot_be_used_at_the_start(
    tmp_path: Path, write: Callable[[Path], object], wrong: str
) -> None:
    path = tmp_path / "keys"
    write(path)
    with pytest.raises(SettingsError, match=wrong) as caught:
        Served(api_key_file=path)
    assert f"api_key_file {path}" in str(caught.value)


def test_a_file_system_that_hangs_holds_up_nobody_for_long(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, go_on = Clock(), threading.Event()
    ring = Keyring(file, create_logger("json"), clock)
    look_again = keys_module._look_again

    def slow(*arguments: Any) -> Any:
        assert go_on.wait(10)
        return look_again(*arguments)

    monkeypatch.setattr(keys_module, "_look_again", slow)
    monkeypatch.setattr(keys_module, "PATIENCE_SECONDS", 0.05)
    clock.now += 1

    async def main() -> None:
        replace_file(file, f"{hashed(NEW)} carol\n")
        # The first is patient; who comes later finds that the patience is used up.
        assert (await ring.holder(f"Bearer {ALICE}")).name == "alice"
        clock.now += 1
        assert (await ring.holder(f"Bearer {ALICE}")).name == "alice"
        go_on.set()
        assert ring._looking is not None
        await ring._looking
        assert (await ring.holder(f"Bearer {NEW}")).name == "carol"

    asyncio.run(main())


def test_reading_the_file_never_blocks_the_event_loop(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, threads = Clock(), []
    ring = Keyring(file, create_logger("json"), clock)
    look_again = keys_module._look_again
    monkeypatch.setattr(
        keys_module,
        "_look_again",
        lambda *a: threads.append(threading.current_thread()) or look_again(*a),
    )
    clock.now += 1
    os.utime(file)

    async def main() -> None:
        found = await asyncio.gather(*(ring.holder(f"Bearer {ALICE}") for _ in range(20)))
        assert {holder.name for holder in found} == {"alice"}

    asyncio.run(main())
    assert len(threads) == 1, "one look for all who come meanwhile"
    assert threads[0] is not threading.main_thread()
