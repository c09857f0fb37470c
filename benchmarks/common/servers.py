"""Server processes on free ports of this machine."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from benchmarks.common.machine import process_seconds
from benchmarks.common.model import ROOT

#: Seconds for a server to end after a signal.
_END_PATIENCE = 30.0
#: Seconds for a server to answer its first request.
START_PATIENCE = 180.0
_POLL_SECONDS = 0.1

EVERYWHERE = "0.0.0.0"


class ServerFailed(Exception):
    """The server did not start; the end of what it said is in the message."""


class Server:
    """A process that answers HTTP at `url` once it is made, and ends with the `with` block.

    command: gets the port where it says "{port}". ready: the path that answers 200 when the
    server can take work. What it prints goes to `log`, a file.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        ready: str,
        log: Path,
        environment: Mapping[str, str] | None = None,
        patience: float = START_PATIENCE,
    ) -> None:
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        self._log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        self._output: IO[bytes] = log.open("wb")
        self._process = subprocess.Popen(
            [part.replace("{port}", str(port)) for part in command],
            stdout=self._output,
            stderr=subprocess.STDOUT,
            cwd=ROOT,
            env={**os.environ, **(environment or {})},
            start_new_session=True,
        )
        try:
            self._wait_until_ready(self.url + ready, patience)
        except BaseException:
            self.kill()
            self._output.close()
            raise

    def _wait_until_ready(self, url: str, patience: float) -> None:
        deadline = time.monotonic() + patience
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                raise ServerFailed(f"It ended with status {self._process.returncode}: {self._tail}")
            with contextlib.suppress(urllib.error.URLError, OSError):
                urllib.request.urlopen(url, timeout=5).close()
                return
            time.sleep(_POLL_SECONDS)
        raise ServerFailed(f"{url} gave no answer in {patience:.0f} s: {self._tail}")

    @property
    def _tail(self) -> str:
        return self._log.read_text(errors="replace")[-2000:]

    @property
    def pid(self) -> int:
        return self._process.pid

    def main_thread_seconds(self) -> float:
        """Processor time of the main thread, which runs the event loop of an asyncio server."""
        return process_seconds(self.pid, thread=self.pid)

    def kill(self) -> None:
        """At once, with all processes that it started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def close(self) -> None:
        """Ask it to end; kill it if it does not."""
        self._process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_END_PATIENCE)
        self.kill()
        self._output.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def free_port(host: str = "127.0.0.1") -> int:
    """One that is free on `host`; `EVERYWHERE`: on each address of this machine."""
    with socket.create_server((host, 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def wait_until(condition: Callable[[], bool], seconds: float) -> None:
    """Raises `TimeoutError` if it does not come true in that time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"it did not come true in {seconds:.0f} s")
        time.sleep(0.02)


def gpt2serve(
    store: Path,
    log: Path,
    *,
    precision: str,
    threads: int,
    options: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
) -> Server:
    """This project's server. options: more of `gpt2serve`'s own, such as "--max-queue", "2000"."""
    command = [sys.executable, "-m", "gpt2serve.cli", "--store", str(store), "--port", "{port}"]
    command += ["--precision", precision, "--threads", str(threads), "--log-format", "json"]
    return Server([*command, *options], ready="/readyz", log=log, environment=environment)


def read_json(url: str) -> object:
    with urllib.request.urlopen(url, timeout=30) as response:
        return json.load(response)


def metric(url: str, name: str) -> float:
    """A number of a server's metrics. Labels, where it has some, are part of `name`.

    Raises `RuntimeError` if there is no such number.
    """
    with urllib.request.urlopen(f"{url}/metrics", timeout=30) as response:
        text = response.read().decode()
    match = re.search(rf"^gpt2serve_{re.escape(name)} (\S+)$", text, re.MULTILINE)
    if match is None:
        raise RuntimeError(f"{url}/metrics has no gpt2serve_{name}.")
    return float(match[1])
