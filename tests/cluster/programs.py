"""Programs that the tests run as they are: Envoy, kubectl, promtool, podman, ..."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
#: `make test-cluster` installs what comes from the package index here.
TOOLS = ROOT / ".venv-cluster" / "bin"

_FROM_DEBIAN = {
    "buildah": "buildah",
    "catatonit": "catatonit",
    "debootstrap": "debootstrap",
    "podman": "podman",
    "prometheus": "prometheus",
    "promtool": "prometheus",
    "runc": "runc",
}


def find(name: str) -> str | None:
    """The program's path, of `.venv-cluster` first, or None."""
    return shutil.which(name, path=f"{TOOLS}{os.pathsep}{os.environ.get('PATH', os.defpath)}")


def program(name: str) -> str:
    """The program's path. Skips the test where it is not there, and says how to get it."""
    path = find(name)
    if path is None:
        package = _FROM_DEBIAN.get(name)
        how = f"apt-get install {package}" if package else "make test-cluster"
        pytest.skip(f"{name} is not installed: {how}")
    return path
