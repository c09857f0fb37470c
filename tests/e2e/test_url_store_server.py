"""A server whose models come from a real S3 server."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import s3_server
from tests.e2e.server_support import KEY, LONG, MODEL, SHORT, Operator, Server, events, eventually
from tests.engine_driver import copy_model
from tests.s3_server import Proxy, publish, unpublish

OTHER, THIRD = "thomas-jefferson", "ronald-reagan"
BUCKET = "secret-bucket"


class World:
    """The bucket, the way to it, and who may look behind the server."""

    def __init__(self, proxy: Proxy, bucket: Any, samples: Path, folder: Path) -> None:
        self.proxy = proxy
        self._bucket = bucket
        self._samples = samples
        self._folder = folder

    def publish(self, model: str, weights_of: str | None = None) -> None:
        """The sample `model`, or another one under its name."""
        made = copy_model(self._samples, weights_of or model, self._folder, model)
        publish(self._bucket, self._folder, made / "cpu-int8")
        shutil.rmtree(made)

    def delete(self, model: str) -> None:
        unpublish(self._bucket, model)


@pytest.fixture
def world(
    s3_port: int, sample_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[World]:
    proxy = Proxy(s3_port)
    proxy.start()
    for name, value in s3_server.environment(proxy.port).items():
        monkeypatch.setenv(name, value)
    made = World(proxy, s3_server.client(s3_port, BUCKET), sample_store, tmp_path)
    for model in (MODEL, OTHER, THIRD):
        made.publish(model)
    yield made
    proxy.close()


@pytest.fixture
def server(world: World, serve: Callable[..., Server], tmp_path: Path) -> Server:
    options = ("--disk-cache", str(tmp_path / "cache"), "--store-refresh", "0.2")
    return serve(*options, "--admin-key", KEY, store=f"s3://{BUCKET}")


@pytest.fixture
def operator(server: Server) -> Iterator[Operator]:
    with Operator(server) as operator:
        yield operator


def test_progress_of_a_fetch(world: World, operator: Operator) -> None:
    half = 1_000_000  # what has come is told in pieces, so twice as much is let through
    world.proxy.fail(f"{MODEL}/cpu-int8/model.onnx.data", "stall", after=2 * half)
    told: list[Any] = []
    watching = threading.Thread(target=operator.progress, args=("load", MODEL, told))
    watching.start()
    with Operator(operator.server) as other:
        eventually(lambda: other.entry(MODEL).get("fetched_bytes", 0) >= half)
        (listed,) = [m for m in other.client.get("/models").json()["models"] if m["id"] == MODEL]
        assert listed["state"] == "fetching"
        assert half <= listed["fetched_bytes"] < listed["fetch_total_bytes"]
        assert other.metrics()["models_fetching{}"] == 1
        assert other.generate(OTHER)["model"] == OTHER  # one slow fetch holds up nobody else
        eventually(lambda: any(entry.get("fetched_bytes", 0) >= half for entry in list(told)))
        world.proxy.release()
    watching.join(30)
    *entries, done = told
    assert done == "[DONE]"
    assert entries[-1]["state"] == "resident"
    assert "fetched_bytes" not in entries[-1]
    amounts = [entry["fetched_bytes"] for entry in entries if entry["state"] == "fetching"]
    assert amounts == sorted(amounts)
    assert amounts[-1] >= half

    metrics = operator.metrics()
    assert metrics["model_fetches_total{outcome=ok}"] == 2
    assert metrics["model_load_phase_seconds_count{phase=fetch}"] == 2
    assert metrics["fetched_bytes_total{}"] > 2 * half
    assert metrics["disk_cache_used_bytes{}"] > 2 * half
    assert metrics["models_fetching{}"] == 0


def test_store_that_is_gone(world: World, server: Server, operator: Operator) -> None:
    for model in (MODEL, OTHER):
        operator.generate(model)
    assert operator.done("unload", OTHER)["state"] == "cold"
    world.proxy.stop()
    assert operator.generate(MODEL)["model"] == MODEL  # in memory
    assert operator.generate(OTHER)["model"] == OTHER  # on the disk
    answers = [
        operator.client.post("/generate", json=SHORT | {"model": THIRD}),
        operator.client.post("/generate", json=SHORT | {"model": THIRD, "stream": True}),
        operator.do("load", THIRD),
        operator.client.get(f"/models/{THIRD}/info"),
    ]
    for answer in answers:
        assert (answer.status_code, answer.json()["code"]) == (503, "store_unavailable")
        assert int(answer.headers["retry-after"]) >= 1
    assert operator.client.get("/readyz").status_code == 200
    told = "".join(answer.text for answer in answers) + operator.client.get("/models").text
    for secret in (BUCKET, s3_server.KEY, s3_server.SECRET, str(world.proxy.port)):
        assert secret not in told
    world.proxy.start()
    eventually(lambda: operator.do("load", THIRD).status_code == 200, 30)
    status, log = server.stop()
    assert status == 0
    assert s3_server.SECRET not in json.dumps(log)
    assert [line["error"] for line in log if line.get("code") == "store_unavailable"]


def test_answers_tell_of_a_new_version(world: World, server: Server, operator: Operator) -> None:
    old = operator.generate(MODEL)["model_version"]
    with (
        server.client() as client,
        client.stream("POST", "/generate", json=LONG | {"stream": True}) as answer,
    ):
        received = events(answer.iter_lines())
        next(received)
        world.publish(MODEL, weights_of=OTHER)
        eventually(lambda: operator.generate(MODEL)["model_version"] != old, 30)
        *_, last, _ = received
    assert last["model_version"] == old
    new = operator.generate(MODEL)["model_version"]
    assert new == operator.generate(OTHER)["model_version"]
    eventually(lambda: operator.entry(MODEL)["old_versions"] == 0)
    assert operator.entry(MODEL)["version"] == new
    assert operator.metrics()["model_evictions_total{reason=replaced}"] == 1
    world.delete(MODEL)
    body = SHORT | {"model": MODEL}
    eventually(lambda: operator.client.post("/generate", json=body).status_code == 404, 30)
    eventually(lambda: operator.metrics().get("model_evictions_total{reason=deleted}") == 1)
