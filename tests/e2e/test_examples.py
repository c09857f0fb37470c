"""The examples run as they are; those that mount the routes in an app are in test_mounted.py."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.conftest import SAMPLES
from tests.e2e.server_support import Server

EXAMPLES = Path(__file__).parents[2] / "examples"
NOTEBOOK = "notebook.ipynb"
MODEL, PROMPT = "ronald-reagan", "My fellow Americans,"


def run(name: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / name), *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_in_process(sample_store: Path) -> None:
    output = run("in_process.py", str(sample_store), MODEL, PROMPT)
    assert output.count(PROMPT) >= 4


def test_all_at_once(sample_store: Path) -> None:
    lines = run("all_at_once.py", str(sample_store), PROMPT).splitlines()
    assert [line.partition(": ")[0] for line in lines] == sorted(SAMPLES)
    assert all(line.partition(": ")[2].startswith(PROMPT) for line in lines)


def test_http_client(sample_store: Path, serve: Callable[..., Server]) -> None:
    output = run("http_client.py", serve().url, MODEL, PROMPT)
    assert output.count(PROMPT) >= 4


def test_notebook(sample_store: Path, tmp_path: Path) -> None:
    shutil.copy(EXAMPLES / NOTEBOOK, tmp_path)
    environment = os.environ | {
        "GPT2SERVE_STORE": str(sample_store),
        # Nothing of whoever runs the tests, and nothing left behind.
        "IPYTHONDIR": str(tmp_path / "ipython"),
        "JUPYTER_CONFIG_DIR": str(tmp_path / "config"),
        "JUPYTER_RUNTIME_DIR": str(tmp_path / "runtime"),
    }
    done = subprocess.run(
        [*(sys.executable, "-m", "jupyter", "execute"), "--output=done.ipynb", NOTEBOOK],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    printed = {cell["id"]: text_printed(cell) for cell in cells(tmp_path / "done.ipynb")}
    assert printed["generate"].count("My fellow citizens,") == 3
    assert printed["stream"].startswith("My fellow citizens, ")
    assert printed["again"] == "the same\n"


def test_the_notebook_is_kept_without_what_it_printed() -> None:
    for cell in cells(EXAMPLES / NOTEBOOK):
        assert cell.get("outputs", []) == []
        assert cell.get("execution_count") is None


def test_code_in_the_documentation_is_of_examples() -> None:
    examples = [stripped(path.read_text(encoding="utf-8")) for path in EXAMPLES.iterdir()]
    page = (EXAMPLES.parent / "docs" / "embedding.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```\w+\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    assert len(blocks) > 5
    for block in blocks:
        parts = stripped(block).split("\n\n")
        assert any(all(part in example for part in parts) for example in examples), block


def stripped(text: str) -> str:
    return "\n".join(line.strip() for line in text.strip().splitlines())


def cells(notebook: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return found


def text_printed(cell: dict[str, Any]) -> str:
    outputs = cell.get("outputs", [])
    return "".join("".join(output.get("text", [])) for output in outputs)
