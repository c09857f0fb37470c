"""Where requests go: to the replica that has their model. Real Envoy, real servers."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from benchmarks.cluster.fleet import Fleet
from benchmarks.cluster.router import CONFIG
from tests.cluster.conftest import MODELS
from tests.cluster.programs import ROOT, program
from tests.e2e.server_support import events, eventually

pytestmark = pytest.mark.cluster

ONE_TOKEN = {"prompt": "We", "max_new_tokens": 1}
MANY = [f"somebody{number % 7}/nothing-{number}" for number in range(400)]


@pytest.fixture(scope="module")
def fleet(many_models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """Three replicas that nobody kills."""
    program("envoy")
    with Fleet(many_models, tmp_path_factory.mktemp("fleet"), 3) as fleet:
        yield fleet


def placed(fleet: Fleet, models: list[str]) -> dict[str, str]:
    """The replica of each model. Models that no store has are placed as well."""

    def ask(model: str) -> str:
        request = f"placed-{model.replace('/', '.')}-{time.monotonic_ns()}"
        answer = client.get(f"/models/{model}/info", headers={"X-Request-Id": request})
        assert answer.status_code in (200, 404)
        return request

    with fleet.router.client() as client:
        # One after the other: beside each other they would spill.
        requests = [ask(model) for model in models]
    return dict(zip(models, fleet.router.replica_of(*requests), strict=True))


def test_the_configuration_is_valid_as_it_is() -> None:
    done = subprocess.run(
        [program("envoy"), "--mode", "validate", "--config-path", str(CONFIG)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "eprecated" not in done.stderr


def test_a_model_has_one_replica_however_it_is_named(fleet: Fleet) -> None:
    ways: dict[str, list[str]] = {}
    with fleet.router.client() as client:

        def send(way: str, model: str, path: str, body: dict[str, Any], **headers: str) -> None:
            request = f"{way}-{model.replace('/', '.')}"
            headers["X-Request-Id"] = request
            answer = client.post(path, json=body, headers=headers)
            assert answer.status_code == 200, answer.text
            assert answer.headers["X-Request-Id"] == request
            ways.setdefault(model, []).append(request)

        for model in MODELS:
            inputs = {"inputs": "We", "parameters": {"max_new_tokens": 1}}
            named = {"model": model, **ONE_TOKEN}
            send("path", model, f"/models/{model}", inputs)
            send("route", model, f"/models/{model}/generate", inputs)
            send("query", model, f"/models/{model}/generate?a=b/c", inputs)
            send("escaped", model, f"/models/{model.replace('/', '%2F')}", inputs)
            send("body", model, "/generate", named)
            send("openai", model, "/v1/completions", {"model": model, "prompt": "We"})
            send("header", model, "/generate", named, **{"X-Gateway-Model-Name": model})
    replicas = {model: set(fleet.router.replica_of(*requests)) for model, requests in ways.items()}
    assert {model: len(found) for model, found in replicas.items()} == dict.fromkeys(MODELS, 1)
    assert set().union(*replicas.values()) == set(fleet.replicas)


def test_the_path_comes_before_the_header_and_that_before_the_body(fleet: Fleet) -> None:
    home = placed(fleet, list(MODELS))
    first, second, third = (
        next(model for model in MODELS if home[model] == replica) for replica in fleet.replicas
    )
    with fleet.router.client() as client:
        header = {"X-Gateway-Model-Name": second}
        path = client.post(
            f"/models/{first}", json={"inputs": "We"}, headers=header | {"X-Request-Id": "by-path"}
        )
        body = client.post(
            "/generate",
            json={"model": third, **ONE_TOKEN},
            headers=header | {"X-Request-Id": "by-header"},
        )
    assert (path.status_code, body.status_code) == (200, 200)
    # The header only says where: what is served is what the body asks for.
    assert body.json()["model"] == third
    assert fleet.router.replica_of("by-path", "by-header") == [home[first], home[second]]


@pytest.mark.parametrize("type_", ["application/json", "text/plain", None])
def test_a_body_is_read_whatever_it_is_called(fleet: Fleet, type_: str | None) -> None:
    home = placed(fleet, list(MODELS))
    headers = {} if type_ is None else {"Content-Type": type_}
    requests = {model: f"type-{type_}-{model.replace('/', '.')}" for model in MODELS[:12]}
    with fleet.router.client() as client:
        for model, request in requests.items():
            answer = client.post(
                "/generate",
                content=json.dumps({"model": model, **ONE_TOKEN}),
                headers=headers | {"X-Request-Id": request},
            )
            assert answer.status_code == 200, answer.text
    found = fleet.router.replica_of(*requests.values())
    assert dict(zip(requests, found, strict=True)) == {model: home[model] for model in requests}


def test_what_names_no_model_goes_anywhere(fleet: Fleet) -> None:
    bodies = [b"", b"[1", b"7", b"{}", b'{"model": 7}', b'{"model": {"a": 1}}', b"\xff"]
    with fleet.router.client() as client:
        for body in bodies:
            answer = client.post("/generate", content=body)
            assert answer.status_code in (400, 422), answer.text
            assert answer.headers["content-type"] == "application/problem+json"
        requests = [f"list-{number}" for number in range(40)]
        for request in requests:
            answer = client.get("/v1/models", headers={"X-Request-Id": request})
            assert answer.status_code == 200
        assert client.get("/").status_code == 200
    assert set(fleet.router.replica_of(*requests)) == set(fleet.replicas)


def test_what_is_of_one_replica_is_not_for_clients(fleet: Fleet) -> None:
    with fleet.router.client() as client:
        for path in (
            "/metrics",
            "/admin",
            f"/admin/models/{MODELS[0]}/info",
            "//admin/models/a/info",
        ):
            answer = client.get(fleet.router.url + path)
            assert answer.status_code == 404, path
            assert answer.json()["code"] == "not_found"
        escaped = client.post(f"/models/..%2Fadmin/models/{MODELS[0]}/load")
        assert escaped.status_code == 404


def test_envoys_own_pages_stay_inside(fleet: Fleet) -> None:
    metrics = fleet.router.metrics_url
    assert "envoy_cluster_membership_healthy" in httpx.get(f"{metrics}/stats/prometheus").text
    assert httpx.get(f"{metrics}/ready").status_code == 200
    for path in ("/", "/config_dump", "/clusters", "/stats", "/stats/prometheus/../../config_dump"):
        assert httpx.get(f"{metrics}{path}").status_code == 404, path
    for path in ("/stats/prometheus", "/ready", "/quitquitquit", "/healthcheck/fail"):
        assert httpx.post(f"{metrics}{path}").status_code == 404, path
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"http://127.0.1.1:{fleet.router.ports['admin']}/")


def test_a_body_that_is_too_large_ends_at_the_router(fleet: Fleet) -> None:
    body = {"model": MODELS[0], "prompt": "a" * (1024 * 1024)}
    with fleet.router.client() as client:
        answer = client.post("/generate", json=body)
        assert answer.status_code == 413
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.json()["code"] == "body_too_large"
        # The largest that the server takes gets through to it.
        fits = {"model": MODELS[0], "prompt": ""}
        fits["prompt"] = "a" * (1024 * 1024 - len(json.dumps(fits)))
        assert client.post("/generate", content=json.dumps(fits)).status_code == 422


def test_clients_cannot_change_how_the_router_works(fleet: Fleet) -> None:
    """Envoy heeds such headers from those that it takes for its own."""
    headers = {"X-Envoy-Upstream-Rq-Timeout-Ms": "1", "X-Envoy-Retry-On": "5xx"}
    body = {"model": MODELS[0], "prompt": "We", "max_new_tokens": 100, "min_new_tokens": 100}
    with fleet.router.client() as client:
        answer = client.post("/generate", json=body, headers=headers)
        assert answer.status_code == 200
        assert not [name for name in answer.headers if name.startswith("x-envoy")]


def test_a_stream_arrives_as_it_is_made(fleet: Fleet) -> None:
    body = {"model": MODELS[0], "prompt": "We", "stream": True, "num_return_sequences": 16}
    body |= {"max_new_tokens": 200, "min_new_tokens": 200}
    with fleet.router.client() as client, client.stream("POST", "/generate", json=body) as answer:
        received = events(answer.iter_lines())
        begin = time.monotonic()
        next(received)
        first = time.monotonic()
        assert list(received)[-1] == "[DONE]"
        end = time.monotonic()
    # Of 200 steps one was made when the first token came.
    assert end - first > 10 * (first - begin) or end - first > 0.3


def test_a_client_that_leaves_the_router_ends_its_request(fleet: Fleet) -> None:
    body = {"model": MODELS[0], "prompt": "We", "stream": True, "num_return_sequences": 32}
    body |= {"max_new_tokens": 240, "min_new_tokens": 240}
    with fleet.router.client() as client, client.stream("POST", "/generate", json=body) as answer:
        next(events(answer.iter_lines()))
    eventually(
        lambda: all(replica.metric("requests_running") == 0 for replica in fleet.replicas.values())
    )
    codes = [httpx.get(f"{replica.url}/metrics").text for replica in fleet.replicas.values()]
    assert any('code="client_disconnected"' in text for text in codes)


def test_a_hot_model_spills_to_another_replica(fleet: Fleet) -> None:
    model = MODELS[0]
    home = placed(fleet, [model])[model]
    # Long enough that all of them run at the same time.
    body = {"model": model, "prompt": "We", "max_new_tokens": 240, "min_new_tokens": 240}
    body |= {"num_return_sequences": 8, "do_sample": True}

    def send(number: int) -> str:
        request = f"hot-{number}"
        with fleet.router.client() as client:
            # What comes within the same millisecond is not spread: Envoy counts a request when it
            # has a connection.
            time.sleep(number * 0.03)
            answer = client.post("/generate", json=body, headers={"X-Request-Id": request})
        assert answer.status_code == 200, answer.text
        return request

    with ThreadPoolExecutor(24) as pool:
        requests = list(pool.map(send, range(24)))
    found = Counter(fleet.router.replica_of(*requests))
    print(found)
    # A third of what runs, and half of that again, is 12 of 24; some may end early.
    assert 8 <= found[home] <= 16, found
    assert len(found) >= 2, found
    # Alone it stays at home.
    assert set(placed(fleet, [model] * 5).values()) == {home}


def test_without_replicas_there_is_an_answer(many_models: Path, tmp_path: Path) -> None:
    with Fleet(many_models, tmp_path, 1) as fleet:
        (address,) = fleet.replicas
        fleet.kill(address)
        fleet.settled([])
        with fleet.router.client() as client:
            answer = client.post("/generate", json={"model": MODELS[0], **ONE_TOKEN})
        assert answer.status_code == 503
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.headers["retry-after"] == "1"
        assert answer.json()["code"] == "replica_unavailable"


#: Of `MANY`. A hash table has no more than a million places, so a model in a thousand may move
#: without need.
FEW = 3


def test_scaling_moves_the_share_that_it_must(many_models: Path, tmp_path: Path) -> None:
    with Fleet(many_models, tmp_path, 2) as fleet:
        two = placed(fleet, MANY)
        new = fleet.start(2)
        fleet.settled()
        four = placed(fleet, MANY)
        moved = differences(two, four)
        print(
            f"2 to 4 replicas: {len(moved)} of {len(MANY)} models moved: {Counter(four.values())}"
        )
        # The new ones have half of all, and nothing moves between those that were there.
        assert 0.35 < len(moved) / len(MANY) < 0.65
        assert len([model for model in moved if four[model] not in new]) <= FEW
        # One is lost: its own models move, to all that are left, and no others.
        fleet.kill(new[0])
        fleet.settled()
        three = placed(fleet, MANY)
        lost = {model for model in MANY if four[model] == new[0]}
        assert lost <= differences(four, three)
        assert len(differences(four, three) - lost) <= FEW
        assert {three[model] for model in lost} == set(fleet.replicas)
        # And back.
        assert fleet.leave(new[1]) == 0
        fleet.settled()
        assert len(differences(two, placed(fleet, MANY))) <= FEW


def differences(before: dict[str, str], after: dict[str, str]) -> set[str]:
    return {model for model in before if after[model] != before[model]}


def test_replicas_keep_more_of_their_models_than_by_chance(
    many_models: Path, tmp_path: Path
) -> None:
    def ratio(name: str, change: Any) -> float:
        """Hits of all replicas together; each has room for less than half of the models."""
        options = ("--model-cache-bytes", "130MiB")
        with Fleet(many_models, tmp_path / name, 3, *options, change=change) as fleet:
            with fleet.router.client() as client:
                for number in range(5 * len(MODELS)):
                    model = MODELS[number * 37 % len(MODELS)]
                    answer = client.post("/generate", json={"model": model, **ONE_TOKEN})
                    assert answer.status_code == 200, answer.text
            hits, misses = fleet.hits_and_misses()
            assert hits + misses == 5 * len(MODELS)
            return hits / (hits + misses)

    def at_random(config: dict[str, Any]) -> None:
        (replicas,) = (c for c in config["static_resources"]["clusters"] if c["name"] == "replicas")
        (policy,) = replicas["load_balancing_policy"]["policies"]
        policy["typed_extension_config"] = {
            "name": "envoy.load_balancing_policies.random",
            "typed_config": {
                "@type": "type.googleapis.com/"
                "envoy.extensions.load_balancing_policies.random.v3.Random"
            },
        }

    by_model, by_chance = ratio("hash", lambda _: None), ratio("random", at_random)
    print(f"hits of all replicas: {by_model:.2f} by model, {by_chance:.2f} at random")
    # Only the first request for a model has to load it.
    assert by_model >= 0.75
    assert by_model > by_chance + 0.3


def test_a_router_that_leaves_lets_its_streams_end(many_models: Path, tmp_path: Path) -> None:
    body = {"model": MODELS[0], "prompt": "We", "stream": True, "num_return_sequences": 32}
    body |= {"max_new_tokens": 240, "min_new_tokens": 240}
    with Fleet(many_models, tmp_path, 1) as fleet, fleet.router.client() as client:
        assert client.get("/healthz").headers.get("connection") is None
        with client.stream("POST", "/generate", json=body) as answer:
            received = events(answer.iter_lines())
            next(received)
            drain = subprocess.Popen(
                ["bash", str(ROOT / "k8s" / "envoy" / "drain.sh"), "60"],
                env=os.environ
                | {"ADMIN_PORT": str(fleet.router.ports["admin"]), "SETTLE_SECONDS": "1"},
            )
            ready = f"{fleet.router.metrics_url}/ready"
            eventually(lambda: httpx.get(ready).status_code == 503)
            # Who has not heard yet is served, and sent elsewhere for the next request.
            late = httpx.get(f"{fleet.router.url}/healthz")
            assert late.status_code == 200
            assert late.headers["connection"] == "close"
            assert drain.poll() is None, "it waits for the stream"
            assert list(received)[-1] == "[DONE]"
        assert drain.wait(timeout=10) == 0
