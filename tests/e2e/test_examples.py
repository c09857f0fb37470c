"""The examples run as they are."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx

EXAMPLES = Path(__file__).parents[2] / "examples"
MODEL, PROMPT = "ronald-reagan", "My fellow Americans,"


def run(name: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / name), *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def free_port() -> str:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return str(taken.getsockname()[1])


def wait_for(url: str, process: subprocess.Popen[Any]) -> None:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        assert process.poll() is None, "the server has ended"
        try:
            if httpx.get(url).status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.05)
    raise AssertionError("the server did not start in time")


def test_in_process(sample_store: Path) -> None:
    output = run("in_process.py", str(sample_store), MODEL, PROMPT)
    assert output.count(PROMPT) >= 4


def test_mounted_and_http_client(sample_store: Path) -> None:
    port = free_port()
    command = [sys.executable, str(EXAMPLES / "mounted.py"), str(sample_store), port]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            wait_for(f"http://127.0.0.1:{port}/gpt2/readyz", server)
            assert "another app" in httpx.get(f"http://127.0.0.1:{port}/").text
            models = httpx.get(f"http://127.0.0.1:{port}/gpt2/models").text
            assert MODEL in [model["id"] for model in json.loads(models)["models"]]
            output = run("http_client.py", f"http://127.0.0.1:{port}/gpt2", MODEL, PROMPT)
            assert output.count(PROMPT) >= 4
        finally:
            server.terminate()
