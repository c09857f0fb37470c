"""A real server process, real sockets, real models."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from huggingface_hub import InferenceClient

from tests.e2e.server_support import (
    LONG,
    MODEL,
    PROMPT,
    SEQUENCES,
    TOKENS,
    Server,
    events,
    eventually,
)


def test_one_life_of_a_server(serve: Callable[..., Server]) -> None:
    """Answers, streams, refuses, tells about itself, and ends with status 0."""
    server = serve("--preload", "thomas-jefferson")
    with server.client() as client:
        assert client.get("/readyz").status_code == 200
        states = {model["id"]: model["state"] for model in client.get("/models").json()["models"]}
        assert states["thomas-jefferson"] == "resident"
        assert states[MODEL] == "cold"

        body = {"model": MODEL, "prompt": PROMPT, "seed": 7, "max_new_tokens": 20}
        whole = client.post("/generate", json=body | {"details": True}).json()
        (text,) = whole["generations"]
        assert text["text"].startswith(PROMPT)
        assert len(text["details"]) == text["tokens"] == whole["usage"]["completion_tokens"]
        assert text["text"] == PROMPT + "".join(token["text"] for token in text["details"])

        with client.stream("POST", "/generate", json=body | {"stream": True}) as answer:
            *tokens, end, last, done = events(answer.iter_lines())
        assert "".join(event["token"]["text"] for event in tokens) == text["text"][len(PROMPT) :]
        assert (end["text"], end["seed"]) == (text["text"], 7)
        assert last["usage"] == whole["usage"]
        assert done == "[DONE]"

        wrong = client.post("/generate", json=body | {"num_return_sequences": 10_000})
        assert (wrong.status_code, wrong.json()["field"]) == (422, "num_return_sequences")
        assert client.get(f"/models/{MODEL}/info").json()["id"] == MODEL
        assert client.get("/models/nobody/info").status_code == 404
    assert server.metric('requests_total{code="ok"}') == 2
    assert server.metric("model_cache_misses_total") == 1
    status, log = server.stop()
    assert status == 0
    assert [line["event"] for line in log] == ["generate"] * 3 + ["draining"]
    assert PROMPT not in json.dumps(log)
    assert text["text"] not in json.dumps(log)


def test_a_picker_finds_models_by_what_people_call_them(serve: Callable[..., Server]) -> None:
    server = serve("--preload", MODEL)

    def found(**query: Any) -> list[str]:
        return [one["id"] for one in client.get("/models", params=query).json()["models"]]

    with server.client() as client:
        assert found(search="ge") == [MODEL]
        assert found(search="o", limit=2) == [MODEL, "ronald-reagan"]
        assert found(search="o", limit=2, after="ronald-reagan") == ["thomas-jefferson"]
        eventually(lambda: found(search="@george_w") == [MODEL])
        (entry,) = client.get("/models", params={"search": "GEORGE wash"}).json()["models"]
        assert entry["title"] == "George Washington"
        assert entry["handle"] == "@george_washington"
        assert entry["picture"].startswith("data:image/svg+xml;base64,")
        assert found(state="resident") == [MODEL]
        assert found(state="resident", search="jefferson") == []


def test_huggingface_clients_read_what_a_model_can_do(serve: Callable[..., Server]) -> None:
    server = serve("--max-queue", "17", "--max-batch-size", "5")
    info = InferenceClient(provider="hf-inference").get_endpoint_info(
        model=f"{server.url}/models/{MODEL}"
    )
    assert (info["model_id"], info["model_dtype"]) == (MODEL, "int8")
    assert info["max_total_tokens"] == info["dimensions"]["context_length"]
    assert info["max_input_tokens"] == info["max_total_tokens"] - 1
    assert (info["max_concurrent_requests"], info["max_best_of"]) == (17, 5)


def test_a_stream_arrives_in_pieces(serve: Callable[..., Server]) -> None:
    server = serve()
    with (
        server.client() as client,
        client.stream(
            "POST", "/generate", json=LONG | {"stream": True, "num_return_sequences": 2}
        ) as answer,
    ):
        times = [time.monotonic() for _ in answer.iter_raw()]
    # Buffered somewhere, everything would come in one or two pieces at the end.
    assert len(times) > 50
    assert times[-1] - times[0] > 5 * (times[-1] - times[-20])


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_is_not_worked_for(serve: Callable[..., Server], stream: bool) -> None:
    server = serve()
    with server.client() as client:
        if stream:
            with client.stream("POST", "/generate", json=LONG | {"stream": True}) as answer:
                next(answer.iter_raw())
        else:
            with pytest.raises(httpx.ReadTimeout):
                client.post("/generate", json=LONG, timeout=0.1)
    eventually(lambda: server.metric("requests_running") == 0)
    assert server.metric("generation_tokens_total") < SEQUENCES * TOKENS
    status, log = server.stop()
    assert status == 0
    (line,) = [line for line in log if line["event"] == "generate"]
    assert (line["client_gone"], line["stream"]) == (True, stream)


def test_sigterm_lets_running_requests_end(serve: Callable[..., Server]) -> None:
    server = serve()
    with server.client() as client, server.client() as other:
        assert other.get("/readyz").status_code == 200
        with client.stream(
            "POST", "/generate", json=LONG | {"stream": True, "num_return_sequences": 16}
        ) as answer:
            received = events(answer.iter_lines())
            next(received)
            server.process.send_signal(signal.SIGTERM)
            eventually(lambda: other.get("/readyz").status_code == 503)
            refused = other.post("/generate", json=LONG)
            assert (refused.status_code, refused.json()["code"]) == (503, "draining")
            assert int(refused.headers["retry-after"]) >= 1
            assert other.get("/healthz").status_code == 200
            *_, last, done = received
    assert last["usage"]["completion_tokens"] == 16 * TOKENS
    assert done == "[DONE]"
    assert server.process.wait(timeout=10) == 0


@pytest.mark.parametrize("twice", [False, True])
def test_what_outlasts_the_drain_is_told_so(serve: Callable[..., Server], twice: bool) -> None:
    server = serve("--drain-seconds", "60" if twice else "0.1", "--threads", "1")
    with (
        server.client() as client,
        client.stream("POST", "/generate", json=LONG | {"stream": True}) as answer,
    ):
        received = events(answer.iter_lines())
        next(received)
        server.process.send_signal(signal.SIGINT)
        if twice:
            time.sleep(0.1)
            server.process.send_signal(signal.SIGTERM)
        *_, last = received
    assert last["error"]["status"] == 503
    assert server.process.wait(timeout=10) == 0


def test_work_is_taken_while_balancers_notice(serve: Callable[..., Server]) -> None:
    server = serve("--drain-delay", "3")
    short = {"model": MODEL, "prompt": PROMPT, "max_new_tokens": 2}
    with server.client() as client:
        begin = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        eventually(lambda: client.get("/readyz").status_code == 503)
        ready = client.get("/readyz")
        assert ready.json()["code"] == "draining"
        assert ready.headers["x-envoy-immediate-health-check-fail"] == "true"
        answer = client.post("/generate", json=short)
        assert "x-envoy-immediate-health-check-fail" not in answer.headers
        assert answer.status_code == 200
        # One after the other they take longer than the delay on any machine.
        with ThreadPoolExecutor(6) as pool:
            running = [pool.submit(client.post, "/generate", json=LONG) for _ in range(6)]
            eventually(lambda: client.post("/generate", json=short).status_code == 503, 30)
            assert time.monotonic() - begin > 3
            refused = client.post("/generate", json=short)
        assert refused.json()["code"] == "draining"
        assert refused.headers["x-envoy-immediate-health-check-fail"] == "true"
        assert [one.result().status_code for one in running] == [200] * 6
    assert server.process.wait(timeout=10) == 0


def test_a_second_signal_ends_the_delay_too(serve: Callable[..., Server]) -> None:
    server = serve("--drain-delay", "600")
    server.process.send_signal(signal.SIGTERM)
    with server.client() as client:
        eventually(lambda: client.get("/readyz").status_code == 503)
    assert server.stop()[0] == 0


def test_sigterm_while_models_are_loaded_at_start(serve: Callable[..., Server]) -> None:
    server = serve("--preload", MODEL, "--pin", "ronald-reagan", wait=False)
    status, log = server.stop()
    assert status == 0
    assert "draining" in [line["event"] for line in log]


def test_model_that_cannot_be_loaded_at_start_ends_the_server(sample_store: Path) -> None:
    command = [sys.executable, "-m", "gpt2serve.cli", "--store", str(sample_store), "--port", "0"]
    options = ["--preload", MODEL, "--model-cache-bytes", "1MiB"]
    done = subprocess.run([*command, *options], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "gpt2serve: error: " in line
    assert "--model-cache-bytes" in line


def test_overload_is_429_with_retry_after(serve: Callable[..., Server]) -> None:
    server = serve("--max-queue", "1")
    with server.client() as client:
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda _: client.post("/generate", json=LONG), range(8)))
        refused = [answer for answer in answers if answer.status_code == 429]
        # One at a time is let in; of eight that come together some must find it there.
        assert refused
        assert len(refused) < len(answers)
        for answer in refused:
            assert answer.json()["code"] == "overloaded"
            assert int(answer.headers["retry-after"]) >= 1
        eventually(lambda: server.metric("requests_running") == 0)
        small = {"model": MODEL, "prompt": PROMPT, "max_new_tokens": 2}
        eventually(lambda: client.post("/generate", json=small).status_code == 200)


def test_many_clients_at_once_get_what_one_alone_gets(serve: Callable[..., Server]) -> None:
    server = serve()
    models = [MODEL, "thomas-jefferson", "ronald-reagan"]
    bodies = [
        {"model": models[n % 3], "prompt": PROMPT, "seed": n, "max_new_tokens": 12}
        for n in range(12)
    ]
    with server.client() as client:

        def text(body: dict[str, Any]) -> str:
            generation = client.post("/generate", json=body).json()["generations"][0]
            return str(generation["text"])

        alone = [text(body) for body in bodies]
        with ThreadPoolExecutor(6) as pool:
            assert list(pool.map(text, bodies)) == alone
