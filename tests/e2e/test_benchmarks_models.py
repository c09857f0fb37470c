"""The benchmark of many models with real servers, small models and a cache for two of six."""

from __future__ import annotations

import importlib.util
import shutil
import urllib.request
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.common.model import ROOT, Assets
from benchmarks.models import library, measure, plan, serving
from benchmarks.models.library import Library

SAMPLE = "george-washington"
MODELS, CACHE = 6, 2
LOAD = serving.Load(clients=3, seconds=1.5, warm_up=0.5, zipf=1.0)
#: Of several clients that read all models in turn, one comes late now and then, and finds a model
#: there that another one has just asked for.
ALONE = replace(LOAD, clients=1)


@pytest.fixture(scope="module")
def models(sample_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Library:
    """Links to one sample model, on the file system of temporary folders."""
    folder = tmp_path_factory.mktemp("many")
    checkpoint = folder / "checkpoint"
    shutil.copytree(ROOT / "samples" / SAMPLE, checkpoint)
    none = folder / "none"
    assets = Assets(checkpoint, sample_store, ct2=none, onnx=none, gguf=none, model=SAMPLE)
    return library.make(assets, MODELS, [plan.PACKAGE], folder / "many")


@pytest.fixture
def bench(models: Library, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> measure.Bench:
    pytest.importorskip("aiohttp")
    monkeypatch.setattr(serving, "TRIES", 1)  # figures do not matter here
    return measure.Bench(models, threads=1, logs=tmp_path)


def _cells(models: Library, system: plan.System) -> list[plan.Cell]:
    return plan.cells([system], [CACHE], models.sizes, memory=10**12)


def _measured(bench: measure.Bench, cells: list[plan.Cell]) -> dict[str, Any]:
    results = measure.new_results()
    measure.measure_cells(bench, LOAD, cells, 1, results)
    return results


def _check(entry: dict[str, Any]) -> None:
    assert entry["codes"] == {"ok": entry["ok"]}
    assert entry["ok"] == entry["requests"] > 0
    # Every answer has the length that was asked for: 10 to 60 tokens.
    assert 10 <= entry["tokens_per_second"] / entry["requests_per_second"] <= 60
    assert entry["memory"]["rss"] >= entry["memory"]["private"]


def test_a_closed_loop_over_more_models_than_fit(bench: measure.Bench, models: Library) -> None:
    (entry,) = _measured(bench, _cells(models, plan.GPT2SERVE))["cells"]
    _check(entry)
    assert (entry["system"], entry["cache"], entry["round"]) == (plan.GPT2SERVE.name, CACHE, 0)
    assert 0 < entry["hit_ratio"] < 1
    assert entry["load_ms"]["p50"] > 0
    assert MODELS > entry["resident"] > 0


def test_the_cliff_hits_always_while_all_models_fit(bench: measure.Bench) -> None:
    variant = plan.Variant("lru", plan.GPT2SERVE, (0.5, 3.0))
    hits = _hits_at_the_cliff(bench, variant, CACHE)
    for traffic in plan.TRAFFICS:
        assert hits[traffic, 1] == 1.0
        assert hits[traffic, MODELS] < 1
    # What LRU is worst at.
    assert hits[plan.SCAN, MODELS] <= 0.05


def test_pins_give_hits_where_lru_has_none(bench: measure.Bench) -> None:
    # Small models, of which the first is measured as two.
    variant = plan.Variant("pinned", plan.GPT2SERVE, (MODELS / 4,), pinned=0.25)
    hits = _hits_at_the_cliff(bench, variant, cache=4)
    assert hits[plan.SCAN, MODELS] == pytest.approx(1 / MODELS, abs=0.05)


def _hits_at_the_cliff(
    bench: measure.Bench, variant: plan.Variant, cache: int
) -> dict[tuple[str, int], float]:
    """By traffic and number of models."""
    cell = plan.cliff_cell(variant, cache, bench.library.sizes, memory=10**12)
    points = plan.steps(variant, cache, MODELS, variant.ratios)
    results = measure.new_results()
    measure.measure_cliff(bench, ALONE, [(variant, cell, points)], 1, results)
    assert not results["failed"]
    return {(one["traffic"], one["models"]): one["hit_ratio"] for one in results["cliff"]}


def test_requests_and_hits_are_those_that_the_server_counts(
    bench: measure.Bench, models: Library
) -> None:
    load = serving.Load(clients=3, seconds=1.5, warm_up=0, zipf=1.0)
    server, seconds = bench.start(_cells(models, plan.GPT2SERVE)[0])
    with server, serving.new_clients() as clients:
        assert seconds > 0
        assert serving.resident(server.url) == 0
        serving.fill(server.url, models.models)
        before = _wanted(server.url)
        assert sum(before.values()) == MODELS
        entry = load.measure(clients, server, models.models, seed=0)
        after = _wanted(server.url)
    hits, misses = (after[name] - before[name] for name in ("hits", "misses"))
    assert hits + misses == entry["requests"] == entry["ok"]
    assert entry["hit_ratio"] == pytest.approx(hits / (hits + misses), abs=1e-3)


def _wanted(url: str) -> dict[str, int]:
    """Requests whose model was in memory, and whose was not, since the server began."""
    with urllib.request.urlopen(url + "/metrics") as response:
        text = response.read().decode()
    return {
        name: int(float(text.split(f"\ngpt2serve_model_cache_{name}_total ")[1].split()[0]))
        for name in ("hits", "misses")
    }


def test_a_server_that_does_not_start_costs_no_other(bench: measure.Bench, models: Library) -> None:
    (cell,) = _cells(models, plan.GPT2SERVE)
    broken = plan.Cell(cell.system, 1, 1, cache_bytes=0, fits=True)
    results = _measured(bench, [broken, cell])
    assert [entry["cache"] for entry in results["cells"]] == [CACHE]
    assert "model" in results["failed"]["gpt2serve int8, cache for 1"]


@pytest.mark.skipif(
    importlib.util.find_spec("fastapi") is None, reason="needs fastapi: pip install fastapi"
)
def test_the_fastapi_peer_answers_the_same_load(bench: measure.Bench, models: Library) -> None:
    (entry,) = _measured(bench, _cells(models, plan.FASTAPI))["cells"]
    _check(entry)
    assert 0 <= entry["hit_ratio"] <= 1


@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs ray: the bench extra")
def test_the_ray_peer_answers_the_same_load(bench: measure.Bench, models: Library) -> None:
    (entry,) = _measured(bench, _cells(models, plan.RAY_TRANSFORMERS))["cells"]
    _check(entry)
    assert 0 < entry["hit_ratio"] < 1
