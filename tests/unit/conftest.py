"""An engine whose models are fakes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gpt2serve import Engine
from gpt2serve.engine import loader
from tests.engine_fakes import FakeModels
from tests.unit.model_life import publish


@pytest.fixture
def models(monkeypatch: pytest.MonkeyPatch) -> FakeModels:
    made = FakeModels()
    monkeypatch.setattr(loader, "Runner", made)
    monkeypatch.setattr(loader, "heap_in_use", lambda: 0)
    return made


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A store."""
    for model in ("a", "b", "c"):
        publish(tmp_path, model)
    return tmp_path


@pytest.fixture
def opened(folder: Path, models: FakeModels) -> Iterator[Callable[..., Engine]]:
    """Makes engines that are closed in the end, and started unless told not to."""
    engines: list[Engine] = []

    def make(*, start: bool = True, **options: Any) -> Engine:
        room = {"model_cache_bytes": 1000, "kv_cache_bytes": 2**20, "device": "cpu"}
        engine = Engine(folder, **(room | {"store_refresh": 0.0} | options))
        engine._warm_up = lambda: None  # type: ignore[method-assign]
        engines.append(engine)
        if start:
            engine.start()
        return engine

    yield make
    models.go.set()
    for engine in engines:
        engine.close()
