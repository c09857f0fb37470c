"""Every situation of the isolation benchmark, for a moment, on a real server."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from benchmarks.common.servers import gpt2serve
from benchmarks.common.worker import Worker
from benchmarks.isolation.__main__ import one_round
from benchmarks.isolation.plan import LEAVING, LONG_SAME, SITUATIONS, STORM, Plan

pytest.importorskip("aiohttp", reason="the clients need it: pip install -e '.[dev]'")

MODEL = "george-washington"
COLD = [f"cold{number}" for number in range(6)]


def test_all_situations_on_a_real_server(sample_store: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    for name in ("hot", "neighbour", *COLD):
        shutil.copytree(sample_store / MODEL / "cpu-int8", store / name / "cpu-int8")
    asked = {
        "hot": "hot",
        "neighbour": "neighbour",
        "cold": COLD,
        "prompts": ["The people", "My fellow citizens"],
        "long_prompts": ["of the " * 90],
    }
    options = ["--pin", "hot", "--pin", "neighbour", "--model-cache-bytes", "20MB"]
    plan = Plan(
        rounds=1, seconds=1.2, tokens=200, streams=2, tries=1, long_every=0.4, leave_rate=20
    )
    with (
        gpt2serve(
            store, tmp_path / "server.log", precision="int8", threads=2, options=options
        ) as server,
        Worker("benchmarks.isolation.clients:Clients", {"url": server.url} | asked) as clients,
    ):
        entries = {entry["situation"]: entry for entry in one_round(server, clients, plan)}
    assert tuple(entries) == SITUATIONS
    for entry in entries.values():
        assert entry["failed"] == 0
        assert entry["tokens"] > 20
        assert entry["empty_seconds"] is not None
    beside = entries[STORM]["beside"]
    assert 0 < beside["loads"] <= beside["models"] == beside["requests"] <= len(COLD)
    assert beside["cold_left"] == len(COLD) - beside["requests"]
    assert entries[LONG_SAME]["beside"]["codes"] == {"ok": 3}
    assert entries[LONG_SAME]["beside"]["prompt_tokens"] > 128  # more than one chunk
    left = entries[LEAVING]["beside"]["codes"]["left"]
    assert left >= 20
    # One may be over before the server sees that its client has left.
    assert entries[LEAVING]["ends"]["aborted"] >= 0.8 * left
