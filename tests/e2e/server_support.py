"""A server process as a user starts it, and what the tests ask of it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

import httpx
from prometheus_client.parser import text_string_to_metric_families

MODEL = "george-washington"
PROMPT = "My fellow citizens,"
SEQUENCES, TOKENS = 32, 240
#: As much as the sample models' context and the batch allow: seconds of work, so that what a
#: test does meanwhile comes before the end on a busy machine too.
LONG = {
    "model": MODEL,
    "prompt": PROMPT,
    "max_new_tokens": TOKENS,
    "min_new_tokens": TOKENS,
    "num_return_sequences": SEQUENCES,
    "do_sample": True,
}


KEY = "correct-horse-battery"
STREAM = {"Accept": "text/event-stream"}
SHORT = {"prompt": PROMPT, "max_new_tokens": 3}


class Server:
    """`gpt2serve` as a user starts it, on a free port."""

    def __init__(self, store: Path | str, *options: str, wait: bool = True) -> None:
        command = [sys.executable, "-m", "gpt2serve.cli", "--store", str(store), "--port", "0"]
        command += ["--kv-cache-bytes", "256MiB", *options]
        # Without it the lines of a pipe arrive late.
        environment = os.environ | {"PYTHONUNBUFFERED": "1"}
        # Its log is read at the end: a pipe of the usual size is full after 200 lines, and then the
        # server waits.
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, env=environment, pipesize=1024 * 1024
        )
        assert self.process.stdout is not None
        first = json.loads(self.process.stdout.readline())
        assert first["event"] == f"listening on {first['url']}"
        self.url: str = first["url"]
        if wait:
            assert json.loads(self.process.stdout.readline())["event"] == "ready"

    def client(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=30)

    def metric(self, name: str) -> float:
        return metric_of(self.url, name)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> tuple[int, list[dict[str, Any]]]:
        """Exit status and log lines."""
        self.process.send_signal(number)
        output, _ = self.process.communicate(timeout=20)
        return self.process.returncode, [json.loads(line) for line in output.splitlines()]


def metric_of(url: str, name: str) -> float:
    """The value of a server's metric that has no labels."""
    text = httpx.get(f"{url}/metrics", timeout=30).text
    (line,) = [line for line in text.splitlines() if line.startswith(f"gpt2serve_{name} ")]
    return float(line.split()[-1])


def eventually(condition: Callable[[], bool], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def events(lines: Iterator[str]) -> Iterator[Any]:
    for line in lines:
        if line:
            data = line.removeprefix("data: ")
            yield data if data == "[DONE]" else json.loads(data)


class Operator:
    """A client with the admin key."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.client = server.client()
        self.client.headers["Authorization"] = f"Bearer {KEY}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.client.close()

    def do(self, action: str, model: str, **options: Any) -> httpx.Response:
        return self.client.post(f"/admin/models/{model}/{action}", **options)

    def done(self, action: str, model: str) -> dict[str, Any]:
        answer = self.do(action, model)
        assert answer.status_code == 200, answer.text
        entry: dict[str, Any] = answer.json()
        return entry

    def entry(self, model: str) -> dict[str, Any]:
        entry: dict[str, Any] = self.client.get(f"/admin/models/{model}/info").json()
        return entry

    def progress(self, action: str, model: str, told: list[Any] | None = None) -> list[Any]:
        """All events of the answer, which are added to `told` as they come."""
        told = [] if told is None else told
        path = f"/admin/models/{model}/{action}"
        with self.client.stream("POST", path, headers=STREAM) as answer:
            assert answer.status_code == 200, answer.read()
            for event in events(answer.iter_lines()):
                told.append(event)
        return told

    def states(self) -> dict[str, str]:
        models = self.client.get("/models").json()["models"]
        return {model["id"]: model["state"] for model in models}

    def generate(self, model: str) -> dict[str, Any]:
        answer = self.client.post("/generate", json=SHORT | {"model": model})
        assert answer.status_code == 200, answer.text
        body: dict[str, Any] = answer.json()
        return body

    def metrics(self) -> dict[str, float]:
        """All samples that are not of histograms, as `name{labels}` without the prefix."""
        found = {}
        for family in text_string_to_metric_families(self.client.get("/metrics").text):
            for sample in family.samples:
                labels = ",".join(f"{k}={v}" for k, v in sorted(sample.labels.items()))
                assert sample.name.startswith(("gpt2serve_", "process_"))
                found[f"{sample.name.removeprefix('gpt2serve_')}{{{labels}}}"] = sample.value
        return found
