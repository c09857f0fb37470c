"""Fixtures of the tests with several servers."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import SAMPLES
from tests.integration.engine_support import copy_model

#: Ids with and without an organisation.
MODELS = tuple(
    f"org{number % 5}/m{number:02}" if number % 2 else f"m{number:02}" for number in range(60)
)


@pytest.fixture(scope="session")
def many_models(sample_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with `MODELS`, each one of the samples under another name."""
    store = tmp_path_factory.mktemp("many-models")
    for number, model in enumerate(MODELS):
        copy_model(sample_store, SAMPLES[number % 3], store, model, linked=True)
    return store
