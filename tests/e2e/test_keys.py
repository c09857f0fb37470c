"""API keys as users have them: a real server process, a real file, real clients."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import huggingface_hub
import openai
import pytest

from tests.e2e.server_support import KEY as ADMIN_KEY
from tests.e2e.server_support import LONG, MODEL, PROMPT, SHORT, Server, events, eventually

OTHER = "thomas-jefferson"
#: A `LONG` takes more than a full bucket has, and what is missing then takes minutes to come.
RATE = 2_000


@dataclass(frozen=True)
class Made:
    key: str
    line: str

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.key}"}


def make_key(*arguments: str) -> Made:
    done = subprocess.run(
        [sys.executable, "-m", "gpt2serve.keys", *arguments],
        capture_output=True,
        text=True,
        check=True,
    )
    return Made(done.stderr.strip(), done.stdout.strip())


@pytest.fixture(scope="module")
def alice() -> Made:
    return make_key("alice")


@pytest.fixture(scope="module")
def bob() -> Made:
    return make_key("bob", "--rate", str(RATE), "--models", "george-*")


@pytest.fixture
def file(tmp_path: Path, alice: Made, bob: Made) -> Path:
    path = tmp_path / "keys"
    path.write_text(f"# who may in\n{alice.line}\n{bob.line}\n")
    return path


@pytest.fixture
def server(serve: Callable[..., Server], file: Path) -> Server:
    return serve("--api-key-file", str(file), "--admin-key", ADMIN_KEY)


def status(client: httpx.Client, made: Made | None, **fields: Any) -> int:
    headers = made.headers if made else {}
    body = SHORT | {"model": MODEL} | fields
    return client.post("/generate", json=body, headers=headers).status_code


def stop(server: Server, *made: Made) -> list[dict[str, Any]]:
    """The log, in which no key is."""
    code, log = server.stop()
    assert code == 0
    for one in made:
        assert one.key not in json.dumps(log)
    return log


def test_who_may_in_and_what_it_may_use(server: Server, alice: Made, bob: Made) -> None:
    with server.client() as client:
        assert status(client, None) == 401
        assert status(client, Made("gpt2serve_wrong", "")) == 401
        assert status(client, Made(ADMIN_KEY, "")) == 401
        assert status(client, alice, model=OTHER) == 200
        assert status(client, bob) == 200
        assert status(client, bob, model=OTHER) == 403
        assert status(client, bob, model="nobody") == 403
        for path in ("/", "/healthz", "/readyz", "/metrics", "/schema"):
            assert client.get(path).status_code == 200, path
        models = client.get("/models", headers=bob.headers).json()["models"]
        assert [model["id"] for model in models] == [MODEL]
        assert client.get("/models").status_code == 401
        assert client.get(f"/models/{OTHER}/info", headers=bob.headers).status_code == 403
        # Neither kind of key opens what the other one does.
        load = f"/admin/models/{MODEL}/load"
        assert client.post(load, headers=alice.headers).status_code == 401
        admin = {"Authorization": f"Bearer {ADMIN_KEY}"}
        assert client.post(load, headers=admin).status_code == 200
    log = stop(server, alice, bob)
    lines = [line for line in log if line["event"] == "generate"]
    assert [line.get("key") for line in lines] == [None, None, None, "alice", *["bob"] * 3]
    assert [line["code"] for line in lines[-2:]] == ["model_not_allowed"] * 2


def test_a_changed_file_holds_within_a_second(
    server: Server, file: Path, alice: Made, bob: Made
) -> None:
    carol = make_key("carol")
    with server.client() as client:
        assert status(client, alice) == 200
        new = file.with_name("new")
        new.write_text(f"{bob.line}\n{carol.line}\n")
        new.replace(file)
        eventually(lambda: status(client, alice) == 401, seconds=5)
        assert status(client, carol) == 200
        # A file that cannot be used changes nothing.
        file.write_text(f"{alice.line}\n{carol.key} carol\n")
        eventually(lambda: status(client, alice) == 401 and status(client, carol) == 200)
        file.unlink()
        assert status(client, carol) == 200
        file.write_text(f"{alice.line}\n")
        eventually(lambda: status(client, carol) == 401, seconds=5)
        assert status(client, alice) == 200
    log = stop(server, alice, bob, carol)
    assert [line["keys"] for line in log if line["event"] == "API keys reloaded"] == [2, 1]
    told = [line for line in log if line["event"].startswith("API keys not reloaded")]
    assert all(line["level"] == "error" and str(file) in line["error"] for line in told)


def test_the_rate_and_what_comes_back(server: Server, bob: Made, alice: Made) -> None:
    with server.client() as client, server.client() as other:
        with client.stream(
            "POST", "/generate", json=LONG | {"stream": True}, headers=bob.headers
        ) as answer:
            assert answer.status_code == 200
            assert answer.headers["x-ratelimit-remaining-tokens"] == "0"
            received = events(answer.iter_lines())  # which closes the connection when it goes
            next(received)
            refused = other.post("/generate", json=LONG, headers=bob.headers)
            assert (refused.status_code, refused.json()["code"]) == (429, "rate_limited")
            assert int(refused.headers["retry-after"]) > 60
            assert refused.headers["x-ratelimit-reset-tokens"].partition("m")[0].isdigit()
            assert refused.headers["x-ratelimit-limit-tokens"] == str(RATE)
            assert status(other, alice, model=OTHER) == 200
        # The client has left: what was not generated comes back.
        eventually(lambda: status(other, bob) == 200)
    log = stop(server, bob, alice)
    gone = [line for line in log if line.get("client_gone")]
    assert [line["key"] for line in gone] == ["bob"]


def test_clients_of_other_people_send_it_too(server: Server, alice: Made, bob: Made) -> None:
    base = f"{server.url}/v1"
    with openai.OpenAI(base_url=base, api_key=alice.key, max_retries=0) as client:
        answer = client.completions.create(model=OTHER, prompt=PROMPT, max_tokens=3)
        assert answer.choices[0].text
        assert len(client.models.list().data) == 3
    with openai.OpenAI(base_url=base, api_key="wrong", max_retries=0) as client:
        with pytest.raises(openai.AuthenticationError):
            client.completions.create(model=OTHER, prompt=PROMPT)
        with pytest.raises(openai.AuthenticationError):
            client.models.list()
    with openai.OpenAI(base_url=base, api_key=bob.key, max_retries=0) as client:
        assert [model.id for model in client.models.list().data] == [MODEL]
        with pytest.raises(openai.PermissionDeniedError, match="may not use the model"):
            client.completions.create(model=OTHER, prompt=PROMPT)
        large: dict[str, Any] = {"model": MODEL, "prompt": PROMPT, "max_tokens": 200, "n": 32}
        client.completions.create(**large, extra_body={"ignore_eos": True})
        with pytest.raises(openai.RateLimitError) as refused:
            client.completions.create(**large)
        assert int(refused.value.response.headers["retry-after"]) > 0
    for made, wanted in ((alice, 200), (bob, 403)):
        hub = huggingface_hub.InferenceClient(f"{server.url}/models/{OTHER}", token=made.key)
        if wanted == 200:
            assert hub.text_generation(PROMPT, max_new_tokens=3)
        else:
            with pytest.raises(huggingface_hub.errors.HfHubHTTPError) as forbidden:
                hub.text_generation(PROMPT, max_new_tokens=3)
            assert forbidden.value.response.status_code == wanted
    stop(server, alice, bob)


@pytest.mark.parametrize(
    ("options", "open_to_all"), [(["--host", "0.0.0.0"], True), (["--host", "127.0.0.1"], False)]
)
def test_an_open_server_says_so(
    serve: Callable[..., Server], options: list[str], open_to_all: bool
) -> None:
    server = serve(*options, wait=False)
    assert server.process.stdout is not None
    log = [json.loads(server.process.stdout.readline())]
    while log[-1]["event"] != "ready":
        log.append(json.loads(server.process.stdout.readline()))
    warned = [line for line in log if line["level"] == "warning"]
    assert [("--api-key-file" in line["event"]) for line in warned] == [True] * open_to_all


def test_with_keys_it_is_not_open(serve: Callable[..., Server], file: Path, alice: Made) -> None:
    server = serve("--host", "0.0.0.0", "--api-key-file", str(file))
    with server.client() as client:
        assert status(client, alice) == 200
    assert all(line["level"] == "info" for line in stop(server, alice))


def test_a_wrong_file_stops_the_start(sample_store: Path, tmp_path: Path) -> None:
    secret = make_key("alice").key
    file = tmp_path / "keys"
    file.write_text(f"\n{secret} alice\n")
    for path, wrong in ((file, "line 2 begins with no"), (tmp_path / "none", "cannot be read")):
        command = [sys.executable, "-m", "gpt2serve.cli", "--store", str(sample_store)]
        command += ["--port", "0", "--api-key-file", str(path)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == 2
        assert wrong in done.stderr
        assert secret not in done.stdout + done.stderr
