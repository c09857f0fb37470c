"""What the tests of how models come and go share."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from gpt2serve import Engine, SamplingParams
from gpt2serve.engine.fetcher import size_of
from gpt2serve.engine.store import ModelStore, Package
from gpt2serve.engine.worker import ModelWorker
from gpt2serve.errors import NotOnDisk
from gpt2serve.package import TOKENIZER_FILE, WEIGHTS_FILE
from tests.engine_driver import in_engine_thread, send
from tests.engine_fakes import letters_tokenizer, write_package
from tests.waiting import wait_until

PATIENCE = 8.0
PARAMS = SamplingParams(max_new_tokens=3, do_sample=True, seed=1)


def publish(folder: Path, model: str, version: int = 1, size: int = 100) -> None:
    """A package whose weights say which version they are."""
    files = {TOKENIZER_FILE: letters_tokenizer(), WEIGHTS_FILE: f"{model} {version}".encode()}
    # As an exporter does it: new files take the place of the old ones.
    shutil.rmtree(folder / model, ignore_errors=True)
    write_package(folder, model, files=files, bytes_needed=size)


def version_of(engine: Engine, model: str) -> str:
    return engine.describe(model).version


class HeldUp:
    """A request whose model makes no step until `go`; the engine goes on meanwhile."""

    def __init__(self, engine: Engine, model: str) -> None:
        self._engine = engine
        self._going = False
        engine.generate(model, "x", PARAMS)
        in_engine_thread(engine, lambda: self._hold(engine._core.models.workers, model))
        self.stream = send(engine, model, "x", PARAMS).stream
        wait_until(lambda: engine.status(model).leases == 1)

    def _hold(self, workers: dict[str, ModelWorker], model: str) -> None:
        (worker,) = (w for key, w in workers.items() if key.startswith(f"{model}/"))
        step = worker.step
        worker.step = lambda: step() if self._going else False  # type: ignore[method-assign]

    def go(self) -> None:
        def go() -> None:
            self._going = True

        in_engine_thread(self._engine, go)


class Far:
    """Makes a store one whose packages are not on the disk; its network does what a test says."""

    def __init__(self, store: ModelStore) -> None:
        self._resolve, self._hold = store.resolve, store.hold
        self.fetches: list[str] = []
        self.here: set[str] = set()
        self.errors: list[Exception] = []
        self.go = threading.Event()
        self.go.set()
        store.resolve = self.resolve  # type: ignore[method-assign]
        store.fetch = self.fetch  # type: ignore[method-assign, assignment]
        store.hold = self.hold  # type: ignore[method-assign, assignment]

    def resolve(self, model: str) -> Package:
        package = self._resolve(model)
        return replace(package, local=package.key in self.here)

    def fetch(self, package: Package, progress: Callable[[int, int], None]) -> Package:
        self.fetches.append(package.model)
        progress(3, size_of(package))
        assert self.go.wait(PATIENCE)
        if self.errors:
            raise self.errors.pop(0)
        self.here.add(package.key)
        return replace(package, local=True)

    def hold(self, package: Package) -> Any:
        if package.key not in self.here:
            raise NotOnDisk(package.model)
        return self._hold(package)
