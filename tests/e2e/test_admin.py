"""Models steered over HTTP: a real server process, real models."""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.e2e.server_support import (
    KEY,
    LONG,
    MODEL,
    SHORT,
    STREAM,
    Operator,
    Server,
    events,
    eventually,
)

OTHER, THIRD = "thomas-jefferson", "ronald-reagan"


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    file = tmp_path / "key"
    file.write_text(KEY + "\n")
    return file


@pytest.fixture
def server(serve: Callable[..., Server], key_file: Path) -> Server:
    return serve("--admin-key-file", str(key_file), "--model-metrics", "2")


@pytest.fixture
def operator(server: Server) -> Iterator[Operator]:
    with Operator(server) as operator:
        yield operator


def test_load_use_unload(server: Server, operator: Operator) -> None:
    """One model's life, as the operator and everybody else see it."""
    assert set(operator.states().values()) == {"cold"}
    *entries, done = operator.progress("load", MODEL)
    assert done == "[DONE]"
    assert entries[-1]["state"] == "resident"
    assert {entry["state"] for entry in entries} <= {"cold", "loading", "resident"}
    assert entries[-1]["bytes"] > 0
    assert operator.states() == {MODEL: "resident", OTHER: "cold", THIRD: "cold"}

    before = time.time()
    answer = operator.generate(MODEL)
    info = operator.client.get(f"/models/{MODEL}/info").json()
    entry = operator.entry(MODEL)
    assert answer["model_version"] == info["version"] == entry["version"]
    assert before - 1 < entry["last_used"] < time.time() + 1
    assert answer["timing"]["load_ms"] < 1  # it was there
    assert (entry["leases"], entry["old_versions"], entry["pinned"]) == (0, 0, False)

    assert operator.done("unload", MODEL)["state"] == "cold"
    assert operator.states()[MODEL] == "cold"
    assert operator.done("unload", MODEL)["state"] == "cold"  # again is no error
    assert operator.generate(MODEL)["model_version"] == info["version"]

    metrics = operator.metrics()
    assert metrics[f"model_cache_hits_total{{model={MODEL}}}"] == 1
    assert metrics[f"model_cache_misses_total{{model={MODEL}}}"] == 1
    assert metrics[f"model_loads_total{{model={MODEL},outcome=ok}}"] == 2
    assert metrics[f"model_evictions_total{{model={MODEL},reason=unload}}"] == 1
    assert metrics[f"requests_total{{code=ok,model={MODEL}}}"] == 2
    assert metrics[f"generation_tokens_total{{model={MODEL}}}"] == 6
    assert metrics["models_resident{}"] == 1
    assert metrics["model_cache_used_bytes{}"] > 0
    assert metrics["model_leases{}"] == 0
    assert metrics["model_load_phase_seconds_count{phase=map}"] == 2
    load = "code=ok,route=/admin/models/{id}/load,status=200"
    assert metrics[f"http_requests_total{{{load}}}"] == 1

    status, log = server.stop()
    assert status == 0
    told = [(line["action"], line["model"]) for line in log if line["event"] == "admin"]
    assert told == [("load", MODEL), ("info", MODEL), ("unload", MODEL), ("unload", MODEL)]
    versions = [line["model_version"] for line in log if line["event"] == "generate"]
    assert versions == [info["version"]] * 2
    assert KEY not in json.dumps(log)


def test_unload_waits_for_a_running_stream(server: Server, operator: Operator) -> None:
    answers: list[httpx.Response] = []
    with (
        server.client() as client,
        client.stream("POST", "/generate", json=LONG | {"stream": True}) as answer,
    ):
        received = events(answer.iter_lines())
        next(received)
        unloading = threading.Thread(target=lambda: answers.append(operator.do("unload", MODEL)))
        unloading.start()
        with Operator(server) as other:
            eventually(lambda: other.entry(MODEL)["leases"] == 1)
        *_, last, done = received
        assert done == "[DONE]"
        assert (
            last["usage"]["completion_tokens"]
            == LONG["num_return_sequences"] * LONG["max_new_tokens"]
        )
        assert last["model_version"]
    unloading.join(30)
    (done_unload,) = answers
    assert (done_unload.status_code, done_unload.json()["state"]) == (200, "cold")
    assert operator.states()[MODEL] == "cold"


def test_a_client_that_leaves_does_not_stop_the_load(server: Server, operator: Operator) -> None:
    with (
        server.client() as client,
        client.stream(
            "POST",
            f"/admin/models/{MODEL}/load",
            headers=STREAM | {"Authorization": f"Bearer {KEY}"},
        ) as answer,
    ):
        assert answer.status_code == 200
    begun = operator.do("load", OTHER, params={"wait": "false"})
    assert begun.status_code == 202
    assert begun.json()["state"] in ("cold", "loading", "resident")
    eventually(lambda: operator.states() == {MODEL: "resident", OTHER: "resident", THIRD: "cold"})


def test_pinned_models_stay(serve: Callable[..., Server]) -> None:
    """What is not used goes soon, but for what is pinned."""
    server = serve("--admin-key", KEY, "--model-ttl", "0.5")
    with Operator(server) as operator:
        assert operator.done("pin", MODEL)["pinned"] is True
        operator.generate(OTHER)
        eventually(lambda: operator.states()[OTHER] == "cold")
        assert operator.states() == {MODEL: "resident", OTHER: "cold", THIRD: "cold"}
        models = operator.client.get("/models").json()["models"]
        assert [model["id"] for model in models if model["pinned"]] == [MODEL]
        assert operator.done("unpin", MODEL)["pinned"] is False
        eventually(lambda: operator.states()[MODEL] == "cold")
        metrics = operator.metrics()
        assert metrics["model_evictions_total{reason=ttl}"] == 2
        assert metrics["models_resident{}"] == 0
        assert operator.done("pin", MODEL)["state"] == "resident"
        assert operator.done("unload", MODEL)["pinned"] is False  # it would come back otherwise


def test_who_has_no_key_learns_nothing(server: Server, operator: Operator) -> None:
    with server.client() as client:
        wrong = [
            client.post(f"/admin/models/{model}/load", headers={"Authorization": f"Bearer {key}"})
            for model in (MODEL, "nobody")
            for key in ("short", "wrong-horse-battery")
        ]
    assert {answer.status_code for answer in wrong} == {401}
    assert len({answer.text for answer in wrong}) == 1
    assert operator.states()[MODEL] == "cold"
    assert operator.do("load", "nobody").json()["code"] == "model_not_found"
    server.process.send_signal(signal.SIGTERM)
    output, _ = server.process.communicate(timeout=20)
    assert "horse" not in output


def test_without_a_key_there_is_nothing(serve: Callable[..., Server]) -> None:
    with Operator(serve()) as operator:
        for action in ("load", "unload", "pin", "unpin"):
            assert operator.do(action, MODEL).json()["code"] == "not_found"


def test_labels_are_few_whatever_is_asked_for(server: Server, operator: Operator) -> None:
    for model in (MODEL, OTHER, THIRD):
        operator.generate(model)
    for n in range(200):
        answer = operator.client.post("/generate", json=SHORT | {"model": f"nobody-{n}"})
        assert answer.status_code == 404
    text = operator.client.get("/metrics").text
    labels = {
        sample.labels["model"]
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if "model" in sample.labels
    }
    assert labels == {MODEL, OTHER, "other"}
    assert "nobody" not in text
