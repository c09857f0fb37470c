"""Programs that the tests run as they are: Envoy, kubectl, promtool, podman, ..."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.cluster.programs import find

ROOT = Path(__file__).parents[2]

_FROM_DEBIAN = {
    "buildah": "buildah",
    "catatonit": "catatonit",
    "debootstrap": "debootstrap",
    "podman": "podman",
    "prometheus": "prometheus",
    "promtool": "prometheus",
    "runc": "runc",
}


def program(name: str) -> str:
    """The program's path. Skips the test where it is not there, and says how to get it."""
    path = find(name)
    if path is None:
        package = _FROM_DEBIAN.get(name)
        how = f"apt-get install {package}" if package else "make test-cluster"
        pytest.skip(f"{name} is not installed: {how}")
    return path
