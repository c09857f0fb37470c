"""What is measured: each can start its model, say which files that reads, and let it go."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from benchmarks.coldstart import service
from benchmarks.coldstart.eviction import evict
from benchmarks.common import servers
from benchmarks.common.model import Assets
from benchmarks.common.worker import Worker

TOKENS = 30

Prompt = dict[str, Any]


class Subject(Protocol):
    name: str
    #: Of its main process.
    pid: int

    @property
    def files(self) -> list[Path]:
        """What lies on the disk of the model that runs, or starts next; all may be read."""

    def start(self) -> dict[str, Any]:
        """Load the model and generate: seconds to the "first" token, until "done", "phases"."""

    def stop(self) -> None:
        """Let the model go; its memory is given back when this returns."""


class ColdEngine:
    """The engine, without HTTP. models: the ids to load in turn; one more than are started."""

    def __init__(
        self,
        name: str,
        files_of: Callable[[str], list[Path]],
        worker: Worker,
        models: Iterator[str],
        prompt: Prompt,
    ) -> None:
        self.name, self.pid = name, worker.pid
        self._files_of = files_of
        self._worker = worker
        self._models = models
        self._prompt: str = prompt["text"]
        self._model = next(models)

    @property
    def files(self) -> list[Path]:
        return self._files_of(self._model)

    def start(self) -> dict[str, Any]:
        result: dict[str, Any] = self._worker.call(
            "start", model=self._model, prompt=self._prompt, tokens=TOKENS
        )
        return result

    def stop(self) -> None:
        self._worker.call("stop", model=self._model)
        self._model = next(self._models)


class ColdServer:
    """A server, through HTTP."""

    def __init__(
        self, name: str, files: list[Path], server: servers.Server, model: str, prompt: Prompt
    ) -> None:
        self.name, self.files, self.pid = name, files, server.pid
        self._url = server.url
        self._model = model
        self._prompt: str = prompt["text"]

    def start(self) -> dict[str, Any]:
        if self._state(self._model) != "cold":
            raise RuntimeError(f"{self._model} is {self._state(self._model)}.")
        return service.generate(self._url, self._model, self._prompt, TOKENS)

    def stop(self) -> None:
        load = partial(service.generate, self._url, prompt=self._prompt, tokens=1)
        evict(self._model, self._state, load)

    def _state(self, model: str) -> str:
        return service.states(self._url)[model]


class ColdPeer:
    def __init__(
        self, name: str, files: list[Path], worker: Worker, assets: Assets, prompt: Prompt
    ) -> None:
        self.name, self.files, self.pid = name, files, worker.pid
        self._worker = worker
        self._arguments = {"assets": assets.arguments, "prompt": prompt, "tokens": TOKENS}

    def start(self) -> dict[str, Any]:
        result: dict[str, Any] = self._worker.call("start", **self._arguments)
        return result

    def stop(self) -> None:
        self._worker.call("stop")
