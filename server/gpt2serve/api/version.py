"""The version that is installed."""

from __future__ import annotations

from importlib import metadata


def version() -> str:
    try:
        return metadata.version("gpt2serve")
    except metadata.PackageNotFoundError:  # run from a checkout that is not installed
        return "0.0.0"
