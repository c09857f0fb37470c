"""An object in a process of its own, driven over a pipe.

Thread pools of several systems in one process disturb each other: their idle threads spin for
work. Here each system has its own process, and all but the one being measured sleep in a read.

    with Worker("benchmarks.peers.transformers:Peer", {...}) as worker:
        worker.call("generate", prompts=prompts, tokens=48)
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import subprocess
import sys
import traceback
from collections.abc import Mapping
from types import TracebackType
from typing import IO, Any, Self

from benchmarks.common.model import ROOT

_PATIENCE = 10.0


class WorkerFailed(Exception):
    """What went wrong in the worker, with its traceback."""


class Worker:
    """The near side. `arguments` and results must be JSON. python: the interpreter there.

    environment: more variables, such as a PYTHONPATH with other code.
    """

    def __init__(
        self,
        target: str,
        arguments: dict[str, Any],
        *,
        python: str = sys.executable,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._process = subprocess.Popen(
            [python, "-m", "benchmarks.common.worker", target],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={**os.environ, **(environment or {})},
        )
        try:
            self._send(arguments)
        except BaseException:
            self.close()
            raise

    @property
    def pid(self) -> int:
        return self._process.pid

    def call(self, method: str, **arguments: Any) -> Any:
        """Raises `WorkerFailed`."""
        return self._send({"method": method, "arguments": arguments})

    def _send(self, message: dict[str, Any]) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(message) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise WorkerFailed(f"The worker ended with status {self._process.wait(_PATIENCE)}.")
        answer = json.loads(line)
        if "error" in answer:
            raise WorkerFailed(answer["error"])
        return answer["result"]

    def close(self) -> None:
        """The far side ends when its input does."""
        with self._process as process:  # which closes the pipes, then waits
            try:
                assert process.stdin is not None
                process.stdin.close()
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


def main(target: str) -> None:
    """The far side: make the object, then call its methods until the input ends."""
    answers = _claim_stdout()
    instance: Any = None
    for line in sys.stdin:
        message = json.loads(line)
        try:
            if instance is None:
                instance, result = _make(target, message), None
            else:
                result = getattr(instance, message["method"])(**message["arguments"])
            answer = {"result": result}
        except Exception:
            answer = {"error": traceback.format_exc()}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
    close = getattr(instance, "close", None)
    if close is not None:
        close()


def _claim_stdout() -> IO[str]:
    """Keep stdout for answers; what libraries print goes to stderr."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return answers


def _make(target: str, arguments: dict[str, Any]) -> Any:
    module, name = target.split(":")
    return getattr(importlib.import_module(module), name)(**arguments)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):  # the near side gets it too, and tells
        main(sys.argv[1])
