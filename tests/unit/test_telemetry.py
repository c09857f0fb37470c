"""Nothing phones home: onnxruntime does, by default, and is told not to."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

#: Where one of these is set, onnxruntime sends nothing anyway.
_QUIET_THERE = ("CI", "ORT_DISABLE_TELEMETRY", "XDG_CACHE_HOME")


@pytest.mark.parametrize("module", ["gpt2serve.engine.sessions", "gpt2export.cli"])
def test_onnxruntime_leaves_no_identifier(module: str, tmp_path: Path) -> None:
    """What it sends begins with an identifier, kept in a file in the home folder."""
    kept = {name: text for name, text in os.environ.items() if name not in _QUIET_THERE}
    code = f"import {module}, os, onnxruntime; assert os.environ['ORT_DISABLE_TELEMETRY'] == '1'"
    subprocess.run([sys.executable, "-c", code], check=True, env=kept | {"HOME": str(tmp_path)})
    assert list(tmp_path.rglob("*")) == []


def test_who_asks_for_it_gets_it() -> None:
    code = "import gpt2serve.engine, gpt2export, os; print(os.environ['ORT_DISABLE_TELEMETRY'])"
    done = subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        env=os.environ | {"ORT_DISABLE_TELEMETRY": "0"},
        capture_output=True,
        text=True,
    )
    assert done.stdout == "0\n"
