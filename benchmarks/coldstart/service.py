"""`POST /generate` of a real server: what a user of a cold model waits for."""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Sequence
from contextlib import closing
from typing import Any
from urllib.parse import urlsplit

from benchmarks.common.servers import read_json
from benchmarks.peers import TOP_K

_PATIENCE = 60.0


def states(url: str) -> dict[str, str]:
    """State of each model: cold, loading, resident or failed."""
    answer: Any = read_json(f"{url}/models?limit=1000")
    return {model["id"]: model["state"] for model in answer["models"]}


def generate(url: str, model: str, prompt: str, tokens: int) -> dict[str, Any]:
    """Seconds to the "first" token and until "done", and the "phases" of the first.

    Phases are the server's own; the rest is HTTP, tokenising and handing over. Raises
    `RuntimeError` if the answer is not what was asked for.
    """
    body = {
        "model": model,
        "prompt": prompt,
        "max_new_tokens": tokens,
        "min_new_tokens": tokens,
        "do_sample": True,
        "top_k": TOP_K,
        "top_p": 1.0,
        "stream": True,
    }
    begin = time.perf_counter()
    frames = _post(url, json.dumps(body))
    events = [(moment - begin, json.loads(frame)) for moment, frame in frames]
    moments = [moment for moment, event in events if "token" in event]
    if len(moments) != tokens:
        raise RuntimeError(f"Asked for {tokens} tokens, got {len(moments)}: {events[-1:]}")
    return {
        "first": moments[0],
        "done": moments[-1],
        "phases": _phases(events[-1][1]["timing"], moments[0]),
    }


def _post(url: str, body: str) -> Sequence[tuple[float, bytes]]:
    """Each event of the stream and when it was there."""
    headers = {"Content-Type": "application/json"}
    frames: list[tuple[float, bytes]] = []
    with closing(http.client.HTTPConnection(urlsplit(url).netloc, timeout=_PATIENCE)) as connection:
        connection.request("POST", "/generate", body, headers)
        response = connection.getresponse()
        if response.status != 200:
            raise RuntimeError(f"{response.status}: {response.read().decode()}")
        while (line := response.readline()) != b"data: [DONE]\n":
            if not line:
                raise RuntimeError(f"The stream broke off after {frames[-1:]}")
            if line.startswith(b"data: "):
                frames.append((time.perf_counter(), line.removeprefix(b"data: ")))
    return frames


def _phases(timing: dict[str, float], first: float) -> dict[str, float]:
    load, prefill = timing["load_ms"] / 1000, timing["prefill_ms"] / 1000
    return {"load": load, "prefill": prefill, "rest": first - load - prefill}
