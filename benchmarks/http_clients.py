"""Clients of `POST /generate`, and the real server that they talk to.

The clients are one asyncio program in a process of its own (`benchmarks.worker`), so that they
share no interpreter with the server. They do share the processor's cores with it, as everything
on one machine does.
"""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from benchmarks.machine import process_seconds
from benchmarks.model import MODEL, PROMPT, ROOT
from benchmarks.peers import sampling

#: Seconds for the server to end after a signal.
_PATIENCE = 30.0
_DONE = b"data: [DONE]\n\n"


class Server:
    """A `gpt2serve` process on a free port of this machine, with the model loaded."""

    def __init__(self, store: Path, *, precision: str, threads: int) -> None:
        options = ["--store", str(store), "--port", "0", "--preload", MODEL]
        options += ["--precision", precision, "--threads", str(threads), "--log-format", "json"]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "gpt2serve.cli", *options],
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        try:
            self.url = self._read_url()
        except BaseException:
            self._process.kill()
            self._process.wait()
            raise
        # Log lines go nowhere from here on, but somebody must take them.
        self._drain = subprocess.Popen(
            ["cat"], stdin=self._process.stdout, stdout=subprocess.DEVNULL
        )

    def _read_url(self) -> str:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            url = json.loads(line).get("url")
            if url:
                return str(url)
        raise RuntimeError(f"gpt2serve ended with status {self._process.wait()}.")

    @property
    def pid(self) -> int:
        return self._process.pid

    def event_loop_seconds(self) -> float:
        """Processor time of the server's main thread, which runs the event loop."""
        return process_seconds(self.pid, thread=self.pid)

    def close(self) -> None:
        with self._drain, self._process as process:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(_PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


class Clients:
    """`run` has one keep-alive client for each list of lengths; each asks for them in turn."""

    def __init__(self, url: str) -> None:
        self._url = url

    def run(self, plan: list[list[int]], *, stream: bool) -> dict[str, Any]:
        """{"seconds", "tokens", "cpu_seconds"}: wall time, tokens received, the clients' own work.

        Raises if an answer is not what was asked for.
        """
        return asyncio.run(self._run(plan, stream=stream))

    async def _run(self, plan: list[list[int]], *, stream: bool) -> dict[str, Any]:
        import httpx

        limits = httpx.Limits(max_connections=len(plan), max_keepalive_connections=len(plan))
        async with httpx.AsyncClient(base_url=self._url, limits=limits, timeout=60) as client:
            # One connection for each client is open before the clock starts.
            await asyncio.gather(*(client.get("/healthz") for _ in plan))
            begin, cpu = time.perf_counter(), time.process_time()
            answers = await asyncio.gather(
                *(_client(client, lengths, stream=stream) for lengths in plan)
            )
            seconds, cpu = time.perf_counter() - begin, time.process_time() - cpu
        made = sum(
            check(body, tokens, stream=stream)
            for bodies, lengths in zip(answers, plan, strict=True)
            for body, tokens in zip(bodies, lengths, strict=True)
        )
        return {"seconds": seconds, "tokens": made, "cpu_seconds": cpu}


async def _client(client: Any, lengths: list[int], *, stream: bool) -> list[bytes]:
    bodies = []
    for tokens in lengths:
        body = {"model": MODEL, "prompt": PROMPT, "stream": stream, **sampling(tokens)}
        async with client.stream("POST", "/generate", json=body) as response:
            chunks = [chunk async for chunk in response.aiter_raw()]
        response.raise_for_status()
        bodies.append(b"".join(chunks))
    return bodies


def check(body: bytes, tokens: int, *, stream: bool) -> int:
    """Number of tokens in an answer; raises `RuntimeError` if it is not `tokens`."""
    if stream:
        if not body.endswith(_DONE):
            raise RuntimeError(f"The stream broke off: {body[-200:]!r}")
        frames = [json.loads(line[6:]) for line in body.removesuffix(_DONE).split(b"\n\n") if line]
        made = sum("token" in frame for frame in frames)
    else:
        made = json.loads(body)["usage"]["completion_tokens"]
    if made != tokens:
        raise RuntimeError(f"Asked for {tokens} tokens and got {made}.")
    return tokens
