"""Starts what is measured, each in a process of its own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from itertools import repeat
from pathlib import Path

from benchmarks.coldstart import store
from benchmarks.coldstart.failing import noting
from benchmarks.coldstart.names import CHECKED, HTTP, PACKED_FIRST
from benchmarks.coldstart.page_cache import files_in
from benchmarks.coldstart.subjects import ColdEngine, ColdPeer, ColdServer, Prompt, Subject
from benchmarks.common import servers
from benchmarks.common.model import Assets
from benchmarks.common.worker import Worker
from benchmarks.peers import ENGINE_INT8, System


class Opener:
    """What it starts ends with `stack`. Stores and logs go to `folder`.

    new_models: how many there must be for loads of models that are new to the engine. failed: for
    what cannot be started, and why.
    """

    def __init__(
        self,
        stack: ExitStack,
        assets: Assets,
        folder: Path,
        threads: int,
        *,
        new_models: int,
        failed: dict[str, str],
    ) -> None:
        self._stack = stack
        self._assets = assets
        self._folder = folder
        self._threads = threads
        self._new_models = new_models
        self._failed = failed

    def open(self, system: System, prompt: Prompt) -> Iterator[Subject]:
        """The system, and its variants, without those that fail."""
        with noting(self._failed, system.name):
            if system.package == "gpt2serve":
                yield from self._engine(system, prompt)
            else:
                yield self._peer(system, prompt)

    def _engine(self, system: System, prompt: Prompt) -> Iterator[Subject]:
        precision = system.precision
        folder = self._folder / f"store-{precision}"
        # What is replaced for the engine's cold start must not be new to the server.
        usual, served, *new = store.large_ids(2 + self._new_models)
        budget = store.build(self._assets, folder, precision, [usual, served, *new])

        def files_of(model: str) -> list[Path]:
            return files_in(folder / model / f"cpu-{precision}")

        worker = self._worker(
            "engine:Engine", store=str(folder), budget=budget, precision=precision
        )
        yield ColdEngine(system.name, files_of, worker, repeat(usual), prompt)
        if system.name == ENGINE_INT8:
            yield ColdEngine(CHECKED, files_of, worker, iter(new), prompt)
            simple = self._worker(
                "engine:Engine",
                store=str(folder),
                budget=budget,
                precision=precision,
                packed_first=True,
            )
            yield ColdEngine(PACKED_FIRST, files_of, simple, repeat(usual), prompt)
            with noting(self._failed, HTTP):
                server = self._server(folder, precision, budget)
                yield ColdServer(HTTP, files_of(served), server, served, prompt)

    def _server(self, folder: Path, precision: str, budget: int) -> servers.Server:
        server = servers.gpt2serve(
            folder,
            self._folder / "server.log",
            precision=precision,
            threads=self._threads,
            options=["--model-cache-bytes", str(budget)],
        )
        return self._stack.enter_context(server)

    def _peer(self, system: System, prompt: Prompt) -> Subject:
        path = {
            "": self._assets.checkpoint,
            "onnx-fp32": self._assets.onnx,
            "ct2-int8": self._assets.ct2 / "int8",
            "ct2-fp32": self._assets.ct2 / "fp32",
            "gguf-q8_0": self._assets.gguf,
        }[system.format]
        worker = self._worker("peer:Cold", target=system.target, precision=system.precision)
        return ColdPeer(system.name, files_in(path), worker, self._assets, prompt)

    def _worker(self, far_side: str, **arguments: str | int | bool) -> Worker:
        worker = Worker(f"benchmarks.coldstart.{far_side}", {**arguments, "threads": self._threads})
        return self._stack.enter_context(worker)
