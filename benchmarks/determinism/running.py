"""A system that is running: a server asked over HTTP, or a peer in a process of its own."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self

from benchmarks.common import servers
from benchmarks.common.model import Assets
from benchmarks.common.worker import Worker
from benchmarks.determinism.comparing import Answers
from benchmarks.determinism.requests import Request

#: Most new tokens of a text.
TOKENS = 40
TOP_K = 50
#: Seconds for one answer.
_PATIENCE = 120.0


class Gpt2Serve:
    """A real server; `batch` is the number of requests that are on their way at any time."""

    def __init__(
        self, assets: Assets, precision: str, threads: int, requests: Sequence[Request], log: Path
    ) -> None:
        self._model = assets.model
        self._requests = requests
        self._server = servers.gpt2serve(assets.store, log, precision=precision, threads=threads)

    def texts(self, order: Sequence[int], batch: int, *, greedy: bool = False) -> Answers:
        with ThreadPoolExecutor(batch) as clients:
            made = clients.map(lambda n: self._ask(self._requests[n], greedy=greedy), order)
            return dict(zip(order, made, strict=True))

    def _ask(self, request: Request, *, greedy: bool) -> str:
        """The text without its prompt. Raises `OSError` if the server refuses."""
        body = {
            "model": self._model,
            "prompt": request.prompt,
            "seed": request.seed,
            "max_new_tokens": TOKENS,
            "do_sample": not greedy,
            "temperature": 1.0,
            "top_k": TOP_K,
            "top_p": 1.0,
            "return_full_text": False,
        }
        answer = _post(f"{self._server.url}/generate", body)
        text: str = answer["generations"][0]["text"]
        return text

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._server.close()


def _post(url: str, body: dict[str, Any]) -> Any:
    request = urllib.request.Request(
        url, json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=_PATIENCE) as response:
        return json.load(response)


class Sampler:
    """One of `benchmarks.determinism.samplers`; its answers are token ids."""

    def __init__(
        self,
        target: str,
        assets: Assets,
        precision: str,
        threads: int,
        requests: Sequence[dict[str, Any]],
    ) -> None:
        self._requests = requests
        self._worker = Worker(target, {"precision": precision, "threads": threads})
        try:
            self._worker.call("load", assets=assets.arguments)
        except BaseException:
            self._worker.close()
            raise

    def texts(self, order: Sequence[int], batch: int, *, greedy: bool = False) -> Answers:
        requests = [self._requests[number] for number in order]
        made = self._worker.call("texts", requests=requests, batch=batch, greedy=greedy)
        return dict(zip(order, made, strict=True))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._worker.close()
