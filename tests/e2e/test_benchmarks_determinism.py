"""The determinism benchmark with few requests: real servers, real transformers, real restarts."""

from __future__ import annotations

import json
import re
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from benchmarks.common import results
from benchmarks.determinism import __main__ as program
from benchmarks.determinism import report, systems
from benchmarks.determinism.requests import make
from benchmarks.determinism.running import Gpt2Serve
from benchmarks.peers import CT2_INT8, ENGINE_INT8, TRANSFORMERS

REQUESTS, BATCH = 8, 4
HEADER = {
    **dict.fromkeys(("command", "commit", "date", "processor", "system"), ""),
    **dict.fromkeys(("cores", "threads", "memory_bytes", "load_average"), 1),
    "extensions": [],
    "versions": {},
}
#: Steps of at most one text, and all steps.
_STEPS = re.compile(
    r'^gpt2serve_batch_size_(?:bucket\{kind="decode",le="1\.0"\}|count\{kind="decode"\}) (\S+)$',
    re.MULTILINE,
)


@dataclass(frozen=True)
class Run:
    """What a run left. metrics: of the server, at each of its ends."""

    results: dict[str, Any]
    report: str
    log: str
    metrics: list[str]

    @property
    def entry(self) -> dict[str, Any]:
        (entry,) = self.results["systems"]
        return entry


@pytest.fixture(scope="module", autouse=True)
def few() -> Iterator[None]:
    """Fewer requests than `--quick` has."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(program, "QUICK_REQUESTS", REQUESTS)
        patch.setattr(program, "BATCH", BATCH)
        yield


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("run")
    metrics: list[str] = []
    printed: list[str] = []
    leave = Gpt2Serve.__exit__

    def scrape_and_leave(system: Gpt2Serve, *error: object) -> None:
        with urllib.request.urlopen(f"{system._server.url}/metrics", timeout=30) as answer:
            metrics.append(answer.read().decode())
        leave(system, *error)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(program, "QUICK_SYSTEMS", (ENGINE_INT8,))
        patch.setattr(Gpt2Serve, "__exit__", scrape_and_leave)
        patch.setattr("builtins.print", lambda text, **_: printed.append(text))
        output = ["--output", str(folder / "results.json")]
        assert program.main(["--quick", "--cache", str(folder), *output]) == 0
    log = (folder / "determinism" / "int8.log").read_text()
    made = results.load(folder / "results.json")
    return Run(made, "\n".join(printed), log, metrics)


def test_a_seed_names_a_text_of_gpt2serve(run: Run) -> None:
    entry = run.entry
    everything = {"identical": REQUESTS, "of": REQUESTS}
    assert entry["together"] == everything
    assert entry["restarted"] == everything
    assert entry["greedy"] == everything
    assert entry["again"] == {"identical": REQUESTS // 4, "of": REQUESTS // 4}
    # Texts that are all the same would be identical whatever became of the seeds.
    assert entry["different_texts"] == REQUESTS


def test_texts_of_gpt2serve_were_really_made_together(run: Run) -> None:
    # It was started twice, and asked for a batch each time.
    assert len(run.metrics) == 2
    for page in run.metrics:
        of_one_row, all_steps = map(float, _STEPS.findall(page))
        assert of_one_row < all_steps


def test_a_seed_names_a_text_of_transformers_only_alone(tmp_path: Path) -> None:
    """The benchmark is able to find texts that differ."""
    (system,) = program.select(skip=[ENGINE_INT8, CT2_INT8], quick=True)
    assert system.name == TRANSFORMERS
    # One thread: two of PyTorch's wait for each other, for long where the machine is busy.
    made: dict[str, Any] = {}
    program.run(tmp_path, [system], 1, made, quick=True)
    (entry,) = made["systems"]
    assert entry["again"] == {"identical": REQUESTS // 4, "of": REQUESTS // 4}
    assert entry["different_texts"] == REQUESTS
    for column in ("together", "restarted"):
        assert entry[column]["of"] == REQUESTS
        assert entry[column]["identical"] < REQUESTS / 2
    assert "draw from one generator" in report.markdown({**made, "header": HEADER})


def test_peers_get_the_prompts_that_gpt2serve_reads(run: Run) -> None:
    """By their lengths; gpt2serve puts the model's prefix before each prompt."""
    requests = make(REQUESTS)
    given = sorted({len(ids) for ids in systems.token_ids(systems.SAMPLE, requests)})
    lines = [json.loads(line) for line in run.log.splitlines()]
    read = {line["prompt_tokens"] for line in lines if line["event"] == "generate"}
    assert sorted(read) == given


def test_the_report_says_so(run: Run) -> None:
    assert (run.results["requests"], run.results["batch"]) == (REQUESTS, BATCH)
    lines = run.report.splitlines()
    (line,) = [line for line in lines if line.startswith(f"| {ENGINE_INT8} ")]
    assert line.split().count("100%") == 4
    assert line.rstrip(" |").endswith("PASS")
    assert f"- {ENGINE_INT8}: every text was the same in all passes." in lines
