"""Real peers on a sample model: they speak the same words, and are measured as the report says."""

from __future__ import annotations

import importlib
import json
import shutil
from dataclasses import replace
from typing import Any

import pytest

from benchmarks.common import model
from benchmarks.common.formats import Formats
from benchmarks.common.model import Assets
from benchmarks.common.worker import Worker
from benchmarks.decode import measure, report
from benchmarks.decode.plan import Cell
from benchmarks.peers import ENGINE_INT8, LLAMA_CPP, SYSTEMS, TRANSFORMERS, System

SAMPLE = model.ROOT / "samples" / "george-washington"
#: These multiply by the weights as they are.
EXACT = [system for system in SYSTEMS if system.precision == "fp32"]
BY_NAME = {system.name: system for system in SYSTEMS}


@pytest.fixture(scope="module")
def assets(tmp_path_factory: pytest.TempPathFactory) -> Assets:
    """The sample without the text that it puts before prompts; the rest is made when asked for."""
    cache = tmp_path_factory.mktemp("cache")
    made = replace(model.assets_in(cache), checkpoint=cache / "checkpoint")
    shutil.copytree(SAMPLE, made.checkpoint)
    config = json.loads((SAMPLE / "config.json").read_text())
    del config["task_specific_params"]
    (made.checkpoint / "config.json").write_text(json.dumps(config))
    return made


class Greedy:
    """In a worker: a peer that draws from the likeliest token alone."""

    def __init__(self, target: str, precision: str) -> None:
        import benchmarks.peers

        benchmarks.peers.TOP_K = 1  # before the peer's module takes it from there
        self._peer = importlib.import_module(target.partition(":")[0]).Peer(precision, threads=1)

    def texts(self, assets: dict[str, str], prompts: list[dict[str, Any]]) -> dict[str, Any]:
        self._peer.load(assets)
        made: dict[str, Any] = self._peer.generate(prompts, 6, seeds=[1, 2, 3])
        return made

    def close(self) -> None:
        self._peer.close()


@pytest.fixture
def reference() -> list[list[int]]:
    """What PyTorch continues the prompts with, token by token and without a KV cache."""
    import torch
    from transformers import GPT2LMHeadModel

    gpt2 = GPT2LMHeadModel.from_pretrained(SAMPLE).eval()
    ids = torch.tensor([prompt["ids"] for prompt in model.prompts(SAMPLE, 3, 8)])
    with torch.inference_mode():
        for _ in range(6):
            logits = gpt2(ids).logits[:, -1]
            logits[:, gpt2.config.eos_token_id] = -torch.inf
            ids = torch.cat([ids, logits.argmax(dim=1, keepdim=True)], dim=1)
    return ids[:, 8:].tolist()


@pytest.mark.parametrize("system", [*EXACT, BY_NAME[LLAMA_CPP]], ids=lambda one: one.name)
def test_every_system_has_the_same_weights(
    assets: Assets, reference: list[list[int]], system: System
) -> None:
    if not system.is_installed:
        pytest.skip(f"{system.package} is not installed: {system.install}")
    if system.format:
        Formats(assets).make(system.format)
    options = {"target": system.target, "precision": system.precision}
    with Worker("tests.e2e.test_benchmarks_decode:Greedy", options) as worker:
        made = worker.call("texts", assets=assets.arguments, prompts=model.prompts(SAMPLE, 3, 8))
    assert made["lengths"] == [6, 6, 6]
    # Rounded weights may choose another word some time, and all that follow are others then.
    compared = 1 if system.name == LLAMA_CPP else 6
    assert [ids[:compared] for ids in made["ids"]] == [ids[:compared] for ids in reference]


def test_a_short_run_with_real_processes(assets: Assets) -> None:
    Formats(assets).make("package-int8")
    systems = [BY_NAME[ENGINE_INT8], BY_NAME[TRANSFORMERS]]
    cells = [Cell(1, 8), Cell(3, 8)]
    made = measure.Measurements()
    with measure.workers(systems, assets, 1, made.failed) as running:
        grid = measure.Grid(running, assets, cells, new_tokens=6, fixed=True, made=made)
        grid.measure(rounds=1, most_seconds=60)
    assert made.failed == {}
    assert [(e["batch"], e["system"]) for e in made.entries] == [
        (batch, name) for batch in (1, 3) for name in (ENGINE_INT8, TRANSFORMERS)
    ]
    for entry in made.entries:
        assert 0 < entry["first_seconds"] < entry["seconds"]
        assert entry["decode_steps"] == 5
        assert entry["decode_seconds"] <= entry["seconds"] - entry["first_seconds"] + 0.001
    header = {"command": "", "commit": "", "date": "", "processor": "", "extensions": []}
    header |= {"cores": 2, "threads": 1, "memory_bytes": 0, "system": "", "load_average": 0}
    text = report.markdown(
        {
            "header": header | {"versions": {}},
            "device": "cpu",
            "sizes": [1, 3],
            "prompts": [8],
            "rounds": 1,
            "new_tokens": 6,
            "cell_seconds": 60.0,
            "most_seconds": 25.0,
            "failed": {},
            "measurements": made.entries,
        }
    )
    assert f"{ENGINE_INT8} / {TRANSFORMERS}" in text
