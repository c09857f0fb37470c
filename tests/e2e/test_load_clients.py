"""Load clients that others wrote, against a real server: guidellm and aiperf.

Each wants an environment of its own, so they are looked for on PATH or where GUIDELLM and AIPERF
say; docs/openai.md has the commands that install them.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT
from tests.e2e.server_support import Server

MODEL = "george-washington"
TOKENIZER = ROOT / "samples" / MODEL
REQUESTS, STREAMS, PROMPT_TOKENS, OUTPUT_TOKENS = 20, 4, 16, 40


GUIDELLM = shutil.which(os.environ.get("GUIDELLM", "guidellm"))
AIPERF = shutil.which(os.environ.get("AIPERF", "aiperf"))
HOW = "there is no {0} here: pip install {0}=={1}, in a venv of its own"


def run(command: list[str], folder: Path, **environment: str) -> None:
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        command,
        cwd=folder,
        env=kept | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.skipif(GUIDELLM is None, reason=HOW.format("guidellm", "0.8.1"))
def test_guidellm(serve: Callable[..., Server], tmp_path: Path) -> None:
    server = serve()
    backend = f"kind=openai_http,target={server.url},model={MODEL},request_format=/v1/completions"
    data = f"prompt_tokens={PROMPT_TOKENS},output_tokens={OUTPUT_TOKENS}"
    command = [
        *(str(GUIDELLM), "run", "--backend", backend),
        *("--profile", f"kind=concurrent,streams={STREAMS}"),
        *("--constraint", f"kind=max_requests,count={REQUESTS}"),
        *("--tokenizer", f"kind=huggingface_auto,model={TOKENIZER}"),
        *("--data", f"kind=synthetic_text,{data}"),
        *("--output", f"kind=json,path={tmp_path / 'guidellm.json'}"),
        "--disable-progress",
    ]
    run(command, tmp_path, HF_HUB_OFFLINE="1")
    report: dict[str, Any] = json.loads((tmp_path / "guidellm.json").read_text())
    (benchmark,) = report["benchmarks"]
    totals = benchmark["metrics"]["request_totals"]
    assert (totals["successful"], totals["errored"]) == (REQUESTS, 0)
    assert server.metric('requests_total{code="ok"}') >= REQUESTS
    # It asks to go on after the end of text, and for the usage.
    assert server.metric("generation_tokens_total") >= REQUESTS * OUTPUT_TOKENS


@pytest.mark.skipif(AIPERF is None, reason=HOW.format("aiperf", "0.13.0"))
def test_aiperf(serve: Callable[..., Server], tmp_path: Path) -> None:
    server = serve()
    command = [
        *(str(AIPERF), "profile", "-m", MODEL, "--url", server.url),
        *("--endpoint-type", "completions", "--streaming", "--tokenizer", str(TOKENIZER)),
        *("--concurrency", str(STREAMS), "--request-count", str(REQUESTS)),
        *("--synthetic-input-tokens-mean", str(PROMPT_TOKENS)),
        *("--output-tokens-mean", str(OUTPUT_TOKENS), "--extra-inputs", "ignore_eos:true"),
        *("--ui", "none", "--output-artifact-dir", str(tmp_path)),
    ]
    run(command, tmp_path)
    report: dict[str, Any] = json.loads((tmp_path / "profile_export_aiperf.json").read_text())
    assert report["error_summary"] == []
    assert report["request_count"]["avg"] == REQUESTS
    assert server.metric('requests_total{code="ok"}') >= REQUESTS
