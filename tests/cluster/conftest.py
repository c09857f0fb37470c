"""Fixtures of the tests with several servers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster import containers
from tests.conftest import SAMPLES
from tests.engine_driver import copy_model

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


@pytest.fixture(scope="session")
def container_engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[containers.Engine]:
    with containers.engine(tmp_path_factory.mktemp("containers")) as engine:
        yield engine


@pytest.fixture(scope="session")
def server_image(container_engine: containers.Engine) -> str:
    # The name that the manifests have.
    return container_engine.build("server/Dockerfile", "gpt2serve:0.1.0")


@pytest.fixture(scope="session")
def readable_store(sample_store: Path) -> Path:
    """The sample models, for a container that is not root: pytest's folders are root's alone."""
    sample_store.chmod(0o755)
    return sample_store
