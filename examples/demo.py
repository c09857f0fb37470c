"""Serve a store and ask every model in it for five texts: what `make demo` runs.

python examples/demo.py --store models/
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from typing import Any

START_SECONDS = 60


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--store", required=True, help="folder that gpt2export wrote")
    parser.add_argument("--seed", type=int, default=7)
    args = parser.parse_args()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "gpt2serve.cli", "--store", args.store, "--port", str(port)]
    print(f"==> gpt2serve --store {args.store} --port {port}", flush=True)
    environment = {**os.environ, "GPT2SERVE_LOG_FORMAT": "json"}
    server = subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        wait_until_ready(url, server)
        for model in call(f"{url}/models")["models"]:
            show(url, model["id"], args.seed)
    finally:
        server.terminate()
        status = server.wait(timeout=60)
    print(f"==> server stopped with status {status}")
    return status


def wait_until_ready(url: str, server: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and server.poll() is None:
        try:
            call(f"{url}/readyz")
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.1)
        else:
            return
    raise SystemExit("The server did not become ready; run gpt2serve by hand to see why.")


def show(url: str, model: str, seed: int) -> None:
    prompts = call(f"{url}/models/{model}/info")["card"]["example_prompts"]
    prompt = prompts[0] if prompts else "My dream is"
    request = {"model": model, "prompt": prompt, "num_return_sequences": 5, "seed": seed}
    answer = call(f"{url}/generate", request)
    print(f"\n{model}: five continuations of {prompt!r} (made by a machine)")
    for number, generation in enumerate(answer["generations"], start=1):
        print(f"  {number}. {generation['text']}")
    print("  ", json.dumps(answer["timing"]), flush=True)


def call(url: str, body: dict[str, Any] | None = None) -> Any:
    """GET, or POST `body` as JSON; returns the decoded answer."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as response:
        text = response.read()
    return json.loads(text) if response.headers.get_content_subtype().endswith("json") else text


if __name__ == "__main__":
    sys.exit(main())
