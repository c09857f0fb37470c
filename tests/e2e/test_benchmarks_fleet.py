"""The fleet benchmark's calibration and validation on a real server, with small models."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from benchmarks.common.model import ROOT
from benchmarks.common.servers import gpt2serve
from benchmarks.common.worker import Worker
from benchmarks.fleet.calibrate import Calibration, Effort
from benchmarks.fleet.replica import Settings
from benchmarks.fleet.validate import Validation
from gpt2serve.package import package_path, read_manifest

pytest.importorskip("aiohttp", reason="the clients need it: pip install -e '.[dev]'")

MODEL = "george-washington"
MODELS = [f"m{number}" for number in range(6)]
PLACES = 2


def test_what_is_measured_and_what_is_predicted_are_about_the_same_requests(
    sample_store: Path, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    for name in MODELS:
        shutil.copytree(sample_store / MODEL / "cpu-int8", store / name / "cpu-int8")
    size = read_manifest(package_path(store, MODELS[0], "cpu", "int8")).bytes_needed
    settings = Settings(cache_bytes=PLACES * size)
    options = ["--model-cache-bytes", str(settings.cache_bytes)]
    log = tmp_path / "server.log"
    with (
        gpt2serve(store, log, precision="int8", threads=2, options=options) as server,
        Worker("benchmarks.load.worker:Clients", {}) as clients,
    ):
        effort = Effort(repeats=1, loads=4, tokens=6, storm_tokens=60)
        checkpoint = ROOT / "samples" / MODEL
        watched: list[dict[str, Any]] = []
        times = Calibration(server.url, server.pid, checkpoint, MODELS, effort, watched).times()
        checks = Validation(server, MODELS, times, settings)
        told = checks.compare(clients, rate=20.0, seconds=2.0, seed=1)
    assert [one["what"] for one in watched] == [
        *("loads", "packing", "decode", "prefill", "overhead"),
        *("unpacked decode", "unpacked prefill", "steps beside packing"),
    ]
    assert all(0 <= one["others"] <= 1 for one in watched)
    assert 0 < times.load < 5
    assert 0 < times.decode[0][1] < 1
    assert 0 < times.unpacked_decode[0][1] < 1
    assert 0 <= times.pack < 5
    assert times.packing_beside_steps >= 1
    assert times.step_beside_packing >= 1
    assert size <= times.model_bytes <= size * 2
    assert told["measured"]["requests"] == told["predicted"]["requests"] > 10
    assert told["measured"]["failed"] == told["predicted"]["failed"] == 0
    assert 0 < told["measured"]["hit_ratio"] <= 1
    assert told["predicted"]["hit_ratio"] == pytest.approx(told["measured"]["hit_ratio"], abs=0.3)
    assert told["errors"].keys() >= {"tokens_per_second", "hit_ratio", "first_ms p50"}
