"""Programs that run as they are, such as Envoy."""

from __future__ import annotations

import os
import shutil

from benchmarks.common.model import ROOT

#: `make test-cluster` installs what comes from the package index here.
TOOLS = ROOT / ".venv-cluster" / "bin"


def find(name: str) -> str | None:
    """The program's path, of `.venv-cluster` first, or None."""
    return shutil.which(name, path=f"{TOOLS}{os.pathsep}{os.environ.get('PATH', os.defpath)}")


def need(name: str) -> str:
    """The program's path. Raises `FileNotFoundError`."""
    path = find(name)
    if path is None:
        raise FileNotFoundError(f"{name} is not installed: make test-cluster")
    return path
