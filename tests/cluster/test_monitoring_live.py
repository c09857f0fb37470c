"""Dashboard and rules against a real Prometheus, which scraped three replicas and a router at work.

The replicas take their models from a bucket, with little room in memory and on the disk, so that
models are fetched, loaded and evicted all the time. Some requests fail, in each of the ways that a
query asks for.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self

import httpx
import msgspec
import pytest

from benchmarks.cluster.fleet import Fleet
from gpt2serve.api.key_file import digest_of
from gpt2serve.package import MANIFEST_FILE, encode_manifest, file_entry, read_manifest
from tests import s3_server
from tests.cluster.monitoring import (
    alerts,
    dashboard,
    groups,
    metric_names,
    monitors,
    queries,
    rules,
    selectors,
)
from tests.cluster.programs import program
from tests.cluster.prometheus import Prometheus
from tests.conftest import SAMPLES
from tests.e2e.server_support import eventually
from tests.engine_driver import copy_model

pytestmark = pytest.mark.cluster

MODELS = [f"m{number}" for number in range(8)]
#: Packages without what they should hold; the first fails while it is fetched, the other later.
CORRUPT, BROKEN = "corrupt", "org/broken"
KEY = "gpt2serve_" + "k" * 40
ANSWER = {"prompt": "We", "max_new_tokens": 8, "min_new_tokens": 8}

#: Metrics that neither the dashboard nor a rule asks for, and why they are there.
UNUSED = {
    # Comes with the others of the process.
    "process_virtual_memory_bytes",
}


class Traffic:
    """Requests of all kinds, all the time, by a few clients side by side."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._end = threading.Event()
        self._pool = ThreadPoolExecutor(9)

    def __enter__(self) -> Self:
        self._clients = [self._pool.submit(self._ask, number) for number in range(8)]
        self._clients.append(self._pool.submit(self._flood))
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._pool.shutdown()
        for client in self._clients:
            client.result()

    def _client(self) -> httpx.Client:
        return httpx.Client(
            base_url=self._url, timeout=60, headers={"Authorization": f"Bearer {KEY}"}
        )

    def _ask(self, number: int) -> None:
        model = MODELS[number]
        with self._client() as client:
            while not self._end.is_set():
                client.post("/generate", json=ANSWER | {"model": model})
                client.post("/v1/completions", json={"model": model, "prompt": "We"})
                client.post(f"/models/{model}/generate", json={"inputs": "We"})
                client.post("/generate", json=ANSWER | {"model": model, "stream": True})
                for other in (CORRUPT, BROKEN, "no-such-model"):
                    client.post("/generate", json=ANSWER | {"model": other})
                self._end.wait(0.2)

    def _flood(self) -> None:
        """More than a queue holds, now and then."""
        with self._client() as client, ThreadPoolExecutor(16) as many:
            body = ANSWER | {"model": MODELS[0], "max_new_tokens": 200, "min_new_tokens": 200}
            while not self._end.is_set():
                list(many.map(lambda _: client.post("/generate", json=body), range(16)))
                self._end.wait(1)


class Watched:
    """A fleet, and the Prometheus that watches it."""

    def __init__(self, fleet: Fleet, prometheus: Prometheus) -> None:
        self.fleet = fleet
        self.prometheus = prometheus


@pytest.fixture(scope="module")
def watched(
    sample_store: Path, s3_port: int, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Watched]:
    program("prometheus")
    program("envoy")
    folder = tmp_path_factory.mktemp("watched")
    (folder / "fleet").mkdir()
    size = fill(s3_port, sample_store, folder / "store")
    keys = folder / "keys"
    keys.write_text(f"sha256:{digest_of(KEY).hex()}  somebody\n")
    options = ["--disk-cache", str(folder / "cache"), "--disk-cache-bytes", str(8 * size)]
    options += ["--model-cache-bytes", str(2 * size), "--max-queue", "12"]
    options += ["--model-metrics", "2", "--api-key-file", str(keys)]
    with pytest.MonkeyPatch.context() as patch:
        for name, value in s3_server.environment(s3_port).items():
            patch.setenv(name, value)
        fleet = Fleet("s3://monitored", folder / "fleet", 3, *options)
    with (
        fleet,
        Traffic(fleet.router.url),
        Prometheus(folder / "prometheus", groups(), scrapes(fleet, folder)) as prometheus,
    ):
        yield Watched(fleet, prometheus)


def fill(port: int, sample_store: Path, folder: Path) -> int:
    """Models in a bucket; the bytes of the largest, in memory or on the disk."""
    bucket = s3_server.client(port, "monitored")
    sizes = []
    for number, model in enumerate([*MODELS, CORRUPT, BROKEN]):
        package = copy_model(sample_store, SAMPLES[number % 3], folder, model) / "cpu-int8"
        shutil.rmtree(package.parent / "cpu-fp32")
        manifest = read_manifest(package)
        sizes.append(sum(entry.bytes for entry in manifest.files.values()))
        sizes.append(manifest.bytes_needed)
        if model in (CORRUPT, BROKEN):
            (package / "model.onnx").write_bytes(b"rubbish")
        if model == BROKEN:  # rubbish, but what the manifest says
            files = manifest.files | {"model.onnx": file_entry(package / "model.onnx")}
            manifest = msgspec.structs.replace(manifest, files=files)
            (package / MANIFEST_FILE).write_bytes(encode_manifest(manifest))
        s3_server.publish(bucket, folder, package)
    return max(sizes)


def scrapes(fleet: Fleet, folder: Path) -> list[dict[str, Any]]:
    """The ServiceMonitors as Prometheus' own configuration, with what Kubernetes would tell of
    each target: replicas are behind two Services, of which one is to be scraped."""
    replicas = [(f"replica-{n}", url.removeprefix("http://")) for n, url in enumerate(urls(fleet))]
    router = [("router-0", fleet.router.metrics_url.removeprefix("http://"))]
    behind = {
        "gpt2serve": {"gpt2serve": replicas, "gpt2serve-replicas": replicas},
        "gpt2serve-router": {"gpt2serve-router": router},
    }
    configs = []
    for monitor in monitors():
        name = monitor["metadata"]["name"]
        (endpoint,) = monitor["spec"]["endpoints"]
        targets = folder / f"{name}.json"
        targets.write_text(
            json.dumps(
                [
                    {
                        "targets": [address],
                        "labels": {
                            "namespace": "gpt2serve",
                            "pod": pod,
                            "__meta_kubernetes_service_name": service,
                            "__meta_kubernetes_pod_name": pod,
                        },
                    }
                    for service, pods in behind[name].items()
                    for pod, address in pods
                ]
            )
        )
        configs.append(
            {
                "job_name": f"serviceMonitor/{name}",
                "metrics_path": endpoint["path"],
                "file_sd_configs": [{"files": [str(targets)]}],
                "relabel_configs": [_relabeling(one) for one in endpoint["relabelings"]],
            }
        )
    return configs


def urls(fleet: Fleet) -> list[str]:
    return [replica.url for replica in fleet.replicas.values()]


def _relabeling(one: dict[str, Any]) -> dict[str, Any]:
    """The operator's names are those of Prometheus, in another case."""
    return {re.sub("[A-Z]", lambda m: f"_{m[0].lower()}", key): value for key, value in one.items()}


def filled_in(query: str, namespace: str = ".*", instance: str = ".*") -> str:
    """As Grafana fills in its variables."""
    query = query.replace("$__rate_interval", "30s")
    return query.replace("$namespace", namespace).replace("$instance", instance)


def without_data(prometheus: Prometheus, asked: dict[str, str], seconds: float = 120) -> set[str]:
    """Names of the queries that give nothing, in so long. Fails if one is no query."""
    left = dict(asked)
    deadline = time.monotonic() + seconds
    while left and time.monotonic() < deadline:
        left = {name: query for name, query in left.items() if not prometheus.has_data(query)}
        time.sleep(0.5)
    return set(left)


def test_each_target_is_scraped_once(watched: Watched) -> None:
    def found() -> set[tuple[str, str, float]]:
        return {(m["job"], m["instance"], value) for m, value in watched.prometheus.query("up")}

    wanted = {("gpt2serve", f"replica-{number}", 1.0) for number in range(3)}
    wanted.add(("gpt2serve-router", "router-0", 1.0))
    eventually(lambda: found() == wanted, 60)
    assert len(watched.prometheus.query("up")) == 4


def test_every_panel_shows_something(watched: Watched) -> None:
    asked = {f"{title}: {query}": filled_in(query) for title, query in queries()}
    assert len(asked) > 80
    assert without_data(watched.prometheus, asked) == set()
    # As Grafana writes several values.
    some = {
        f"{title}: {query}": filled_in(query, "gpt2serve", "(replica-0|replica-1|replica-2)")
        for title, query in queries()
    }
    assert without_data(watched.prometheus, some) == set()


def test_choosing_a_replica_leaves_the_others_out(watched: Watched) -> None:
    prometheus = watched.prometheus
    for title, query in queries():
        if "instance" not in query or "envoy" in query:
            continue
        chosen = prometheus.query(filled_in(query, "gpt2serve", "replica-1"))
        assert {m.get("instance", "replica-1") for m, _ in chosen} <= {"replica-1"}, title
        assert prometheus.query(filled_in(query, "elsewhere", ".*")) == [], title


def test_the_variables_have_values(watched: Watched) -> None:
    for variable in dashboard()["templating"]["list"]:
        if variable["type"] != "query":
            continue
        match = re.fullmatch(r"label_values\((.*), (\w+)\)", variable["query"]["query"])
        assert match is not None
        found = watched.prometheus.api(
            f"label/{match[2]}/values", **{"match[]": filled_in(match[1])}
        )
        assert (
            found
            == {
                "namespace": ["gpt2serve"],
                "instance": ["replica-0", "replica-1", "replica-2"],
            }[variable["name"]]
        )


def test_every_rule_has_what_it_asks_for(watched: Watched) -> None:
    recorded = {rule["record"]: rule["record"] for rule in rules() if "record" in rule}
    assert without_data(watched.prometheus, recorded) == set()
    asked = {selector: selector for alert in alerts() for selector in selectors(alert["expr"])}
    assert without_data(watched.prometheus, asked) == set()


def test_prometheus_evaluates_all_rules(watched: Watched) -> None:
    def states() -> set[tuple[str, str]]:
        found = watched.prometheus.api("rules")["groups"]
        assert sum(len(group["rules"]) for group in found) == len(rules())
        return {
            (rule["health"], rule.get("lastError", ""))
            for group in found
            for rule in group["rules"]
        }

    eventually(lambda: states() == {("ok", "")}, 60)


def test_every_metric_is_used(watched: Watched) -> None:
    names = watched.prometheus.api("label/__name__/values")
    shown = {name for name in names if name.startswith(("gpt2serve_", "process_"))}
    used = {name for _, query in queries() for name in metric_names(query)}
    used |= {name for rule in rules() for name in metric_names(rule["expr"])}
    family = re.compile(r"_(bucket|sum|count)$")
    assert {family.sub("", name) for name in shown - used} - {
        family.sub("", name) for name in used
    } == UNUSED
    assert used - set(names) - {"ALERTS"} == set()


def test_the_checks_notice_what_is_wrong(watched: Watched) -> None:
    wrong = {
        "name": "sum (rate(gpt2serve_http_request_total[30s]))",
        "label": 'gpt2serve_model_evictions_total{reason="space"}',
        "nothing but NaN": "gpt2serve_ready / 0 - gpt2serve_ready / 0",
    }
    assert without_data(watched.prometheus, wrong, seconds=0.5) == set(wrong)
    with pytest.raises(AssertionError, match="parse error"):
        watched.prometheus.has_data("sum (rate(gpt2serve_ready[30s])")
    with pytest.raises(AssertionError, match="range vector"):
        watched.prometheus.has_data("sum by (instance) (rate(gpt2serve_ready))")


def test_prometheus_likes_the_metrics(watched: Watched) -> None:
    for url in urls(watched.fleet):
        text = httpx.get(f"{url}/metrics").text
        assert lint(text) == ""
        assert "gpt2serve_ready" in lint(text.replace("gauge", "counter"))


def lint(metrics: str) -> str:
    command = [program("promtool"), "check", "metrics"]
    done = subprocess.run(command, input=metrics, capture_output=True, text=True, check=False)
    assert (done.returncode == 0) == (not done.stderr)
    return done.stderr


def test_what_a_scrape_costs(watched: Watched) -> None:
    for what in ("samples_scraped", "duration_seconds", "body_size_bytes"):
        for labels, value in watched.prometheus.query(f"scrape_{what}"):
            print(f"{labels['instance']}: {what} {value:g}")
    for labels, value in watched.prometheus.query('scrape_samples_scraped{job="gpt2serve"}'):
        assert value < 600, labels
    # Beside the engine's thread, and whatever that does.
    took = [
        seconds
        for _, seconds in watched.prometheus.query(
            'quantile_over_time(0.5, scrape_duration_seconds{job="gpt2serve"}[1m])'
        )
    ]
    assert max(took) < 1


def test_a_replica_that_is_killed_is_noticed(watched: Watched) -> None:
    """The last of these tests: the fleet is not whole any more."""
    prometheus, fleet = watched.prometheus, watched.fleet
    victim = list(fleet.replicas)[1]
    fleet.kill(victim)

    def pending() -> set[tuple[str, str]]:
        return {
            (alert["labels"]["alertname"], alert["labels"].get("instance", ""))
            for alert in prometheus.api("alerts")["alerts"]
        }

    eventually(lambda: ("Gpt2serveReplicaDown", "replica-1") in pending(), 60)
    others = {("Gpt2serveReplicaDown", name) for name in ("replica-0", "replica-2")}
    assert pending().isdisjoint(others)


def test_alerts_say_what_they_mean(tmp_path: Path) -> None:
    """Each annotation, filled in by Prometheus for an alert that fires."""
    series = 'label_replace(label_replace(vector(0.25), "namespace", "gpt2serve", "", ""), '
    series += '"instance", "replica-1", "", "")'
    firing = [alert | {"expr": series, "for": "0s"} for alert in alerts()]
    with Prometheus(tmp_path, [{"name": "all", "rules": firing}]) as prometheus:
        eventually(lambda: len(prometheus.api("alerts")["alerts"]) == len(firing), 30)
        for alert in prometheus.api("alerts")["alerts"]:
            for text in alert["annotations"].values():
                assert not re.search(r"<error|<no value>|\{\{|  ", text), text
                assert text == text.strip()
                assert text.endswith(".") or text.startswith("docs/")
