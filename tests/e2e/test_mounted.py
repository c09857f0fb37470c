"""The routes below /gpt2 of other apps: the examples, as they are, under uvicorn."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urljoin

import httpx
import pytest

from tests.conftest import SAMPLES
from tests.e2e.server_support import LONG, MODEL, PROMPT, TOKENS, events, eventually

if TYPE_CHECKING:
    from playwright.sync_api import Page

EXAMPLES = Path(__file__).parents[2] / "examples"
#: Many tokens, and not much work.
LONG_STREAM = LONG | {"stream": True, "num_return_sequences": 2}
FRAMEWORKS = ("fastapi_app", "starlette_app", "litestar_app")


class Host:
    """An example, running."""

    def __init__(self, name: str, store: Path) -> None:
        self.name = name
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
        command = [sys.executable, "-W", "error", str(EXAMPLES / f"{name}.py")]
        self.process = subprocess.Popen(
            [*command, str(store), str(port)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.url = f"http://127.0.0.1:{port}"
        self.client = httpx.Client(base_url=self.url, timeout=30)
        self._wait_until_ready()

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                if self.client.get("/gpt2/readyz").status_code == 200:
                    return
            except httpx.TransportError:
                time.sleep(0.05)
        self.process.kill()
        raise AssertionError(self.process.communicate()[0])

    def metric(self, name: str) -> float:
        text = self.client.get("/gpt2/metrics").text
        (line,) = [line for line in text.splitlines() if line.startswith(f"gpt2serve_{name} ")]
        return float(line.split()[-1])

    def stop(self) -> str:
        """SIGTERM; what it has printed."""
        self.process.send_signal(signal.SIGTERM)
        output, _ = self.process.communicate(timeout=30)
        # uvicorn ends well, and then with the signal that it was sent.
        assert self.process.returncode in (0, -signal.SIGTERM), output
        return output

    def close(self) -> None:
        self.client.close()
        self.process.kill()
        self.process.communicate()


@pytest.fixture(scope="module", params=[*FRAMEWORKS, "mounted"])
def host(request: pytest.FixtureRequest, sample_store: Path) -> Iterator[Host]:
    running = Host(request.param, sample_store)
    yield running
    running.close()


def test_the_app_around_has_its_own_routes(host: Host) -> None:
    if host.name == "mounted":
        assert host.client.get("/").text == "This is another app.\n"
        return
    answer = host.client.get("/dream", params={"model": MODEL})
    assert answer.status_code == 200
    assert "My dream is " in answer.text
    assert host.client.get("/dream", params={"model": "nobody"}).status_code == 404
    assert host.client.get("/models").status_code == 404


def test_generate_and_models(host: Host) -> None:
    models = host.client.get("/gpt2/models").json()["models"]
    assert [model["id"] for model in models] == sorted(SAMPLES)
    assert host.client.get(f"/gpt2/models/{MODEL}/info").json()["id"] == MODEL
    body = {"model": MODEL, "prompt": PROMPT, "max_new_tokens": 5, "seed": 7}
    answer = host.client.post("/gpt2/generate", json=body, headers={"X-Request-Id": "mine"})
    assert answer.status_code == 200
    assert answer.json()["generations"][0]["text"].startswith(PROMPT)
    assert answer.headers["x-request-id"] == "mine"


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "code"),
    [
        ("POST", "/gpt2/generate", {"model": MODEL, "prompt": 5}, 422, "invalid_value"),
        ("POST", "/gpt2/generate", {"model": "nobody", "prompt": "x"}, 404, "model_not_found"),
        ("POST", "/gpt2/generate", [], 400, "malformed_body"),
        ("GET", "/gpt2/models/nobody/info", None, 404, "model_not_found"),
    ],
)
def test_errors_are_problem_documents(
    host: Host, method: str, path: str, body: Any, status: int, code: str
) -> None:
    answer = host.client.request(method, path, json=body, headers={"X-Request-Id": "mine"})
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["x-request-id"] == "mine"


def test_a_path_that_is_not_there(host: Host) -> None:
    assert host.client.get("/gpt2/nothing").status_code == 404


def test_a_stream_is_not_held_back(host: Host) -> None:
    with host.client.stream("POST", "/gpt2/generate", json=LONG_STREAM) as answer:
        pieces = list(answer.iter_raw())
    # Held back somewhere, all would come in one or two pieces at the end.
    assert len(pieces) > 50
    assert pieces[-1].endswith(b"data: [DONE]\n\n")


def test_a_client_that_leaves_is_not_worked_for(host: Host) -> None:
    with host.client.stream("POST", "/gpt2/generate", json=LONG | {"stream": True}) as answer:
        next(answer.iter_raw())
    eventually(lambda: host.metric("requests_running") == 0)


def test_metrics_tell_about_the_engine(host: Host) -> None:
    body = {"model": MODEL, "prompt": PROMPT, "max_new_tokens": 5}
    before = host.metric("generation_tokens_total")
    assert host.client.post("/gpt2/generate", json=body).status_code == 200
    assert host.metric("generation_tokens_total") > before
    assert host.metric("model_cache_misses_total") >= 1


def test_the_schema_names_addresses_that_are_there(host: Host) -> None:
    # In a Litestar app the routes are in its own schema.
    inside = host.name == "litestar_app"
    schema = host.client.get("/schema/openapi.json" if inside else "/gpt2/schema").json()
    (server,) = schema.get("servers") or [{"url": "/"}]
    paths = [urljoin(server["url"].rstrip("/") + "/", path.lstrip("/")) for path in schema["paths"]]
    assert {"/gpt2/generate", "/gpt2/models", "/gpt2/v1/completions"} <= set(paths)
    for path in paths:
        filled = path.replace("{name}", MODEL).replace("{model_id}", MODEL)
        if "{" not in filled:
            assert host.client.options(filled).status_code != 404, filled


def test_the_page_and_its_files(host: Host) -> None:
    page = host.client.get("/gpt2/")
    assert page.headers["content-type"].startswith("text/html")
    files = re.findall(r'(?:src|href)="(playground/[^"]*)"', page.text)
    assert len(files) >= 3
    for file in files:
        assert host.client.get(urljoin("/gpt2/", file)).status_code == 200
    if host.name != "mounted":  # which has a route of its own there
        answer = host.client.get("/gpt2", follow_redirects=True)
        assert answer.url.path == "/gpt2/"
        assert answer.text == page.text


def test_the_compatible_surfaces(host: Host) -> None:
    from huggingface_hub import InferenceClient
    from openai import OpenAI

    with OpenAI(base_url=f"{host.url}/gpt2/v1", api_key="any", max_retries=0) as client:
        made = client.completions.create(model=MODEL, prompt=PROMPT, max_tokens=5, seed=7)
        assert made.usage is not None
        assert 1 <= made.usage.completion_tokens <= 5
        assert MODEL in [model.id for model in client.models.list()]
    hub = InferenceClient(model=f"{host.url}/gpt2/models/{MODEL}")
    assert "".join(hub.text_generation(PROMPT, max_new_tokens=5, stream=True)) != ""


def test_the_page_and_the_component_in_a_browser(host: Host, page: Page) -> None:
    page.goto(f"{host.url}/gpt2/")
    page.get_by_role("combobox", name="Model").fill(MODEL)
    page.get_by_role("option", name=MODEL).click()
    page.locator("#card").wait_for()
    page.get_by_role("button", name="Generate", exact=True).click()
    page.locator(".seed").first.wait_for()

    html = f"""<!doctype html>
      <script type="module" src="/gpt2/playground/embed.js"></script>
      <gpt2-generate model="{MODEL}" prompt="{PROMPT}" max-new-tokens="5"></gpt2-generate>"""
    page.route(f"{host.url}/a-page", lambda to: to.fulfill(content_type="text/html", body=html))
    page.goto(f"{host.url}/a-page")
    page.get_by_role("button", name="Generate").click()
    page.get_by_text("Written by a machine.").first.wait_for()


@pytest.mark.parametrize("name", FRAMEWORKS)
def test_sigterm_lets_running_requests_end(name: str, sample_store: Path) -> None:
    host = Host(name, sample_store)
    try:
        with host.client.stream("POST", "/gpt2/generate", json=LONG_STREAM) as answer:
            received = events(answer.iter_lines())
            next(received)
            host.process.send_signal(signal.SIGTERM)
            *_, last, done = received
        assert last["usage"]["completion_tokens"] == 2 * TOKENS
        assert done == "[DONE]"
        host.client.close()
        output, _ = host.process.communicate(timeout=30)
    finally:
        host.close()
    assert "Application shutdown complete." in output
    assert "Traceback" not in output
    lines = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
    assert [line["event"] for line in lines] == ["generate"]
