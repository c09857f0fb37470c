"""Envoy with k8s/envoy/envoy.yaml, as it runs in the cluster, on free ports of this machine."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import yaml

from benchmarks.cluster.programs import need
from benchmarks.common.model import ROOT
from benchmarks.common.servers import free_port, wait_until

CONFIG = ROOT / "k8s" / "envoy" / "envoy.yaml"
#: Envoys of one machine share memory by this number.
_base_ids = itertools.count(os.getpid() % 30000 * 10)


class Router:
    """`ports` are those of `http`, `metrics` and `admin`. `change` is done to the configuration."""

    def __init__(
        self,
        folder: Path,
        *,
        replica_port: int,
        name_server: int,
        change: Callable[[dict[str, Any]], None] = lambda _: None,
    ) -> None:
        self.ports = {name: free_port() for name in ("http", "metrics", "admin")}
        self.url = f"http://127.0.0.1:{self.ports['http']}"
        self.metrics_url = f"http://127.0.0.1:{self.ports['metrics']}"
        config = here(yaml.safe_load(CONFIG.read_text()), self.ports, replica_port, name_server)
        change(config)
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / "envoy.yaml"
        file.write_text(yaml.safe_dump(config))
        self._log = folder / "access.log"
        command = [need("envoy"), "--config-path", str(file), "--concurrency", "1"]
        command += ["--base-id", str(next(_base_ids)), "--log-level", "warning"]
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(command, stdout=log)
        try:
            wait_until(self._ready, 30)
        except BaseException:
            self.close()
            raise

    def _ready(self) -> bool:
        assert self.process.poll() is None, "Envoy has ended"
        try:
            return httpx.get(f"{self.metrics_url}/ready").status_code == 200
        except httpx.TransportError:
            return False

    def client(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=60)

    def requests(self) -> list[dict[str, Any]]:
        """The access log. Envoy writes it when a request has ended, and with some delay."""
        self.admin("/reopen_logs")
        return [json.loads(line) for line in self._log.read_text().splitlines()]

    def replica_of(self, *request_ids: str) -> list[str]:
        """The address of the replica that answered each of the requests."""
        found: dict[str, str] = {}

        def all_there() -> bool:
            found.update({line["request_id"]: line["replica"] for line in self.requests()})
            return found.keys() >= set(request_ids)

        wait_until(all_there, 15)
        return [found[request].partition(":")[0] for request in request_ids]

    def sent_again(self) -> set[str]:
        """Ids of the requests that more than one replica was tried for."""
        return {line["request_id"] for line in self.requests() if line["attempts"] > 1}

    def healthy(self) -> set[str]:
        """Addresses of the replicas that get requests."""
        answer = httpx.get(
            f"http://127.0.0.1:{self.ports['admin']}/clusters",
            params={"format": "json"},
            timeout=30,
        ).json()
        (replicas,) = [one for one in answer["cluster_statuses"] if one["name"] == "replicas"]
        return {
            host["address"]["socket_address"]["address"]
            for host in replicas.get("host_statuses", ())
            if host["health_status"] == {"eds_health_status": "HEALTHY"}
        }

    def admin(self, path: str) -> str:
        return httpx.post(f"http://127.0.0.1:{self.ports['admin']}{path}").text

    def close(self) -> None:
        self.process.kill()
        self.process.wait()


def here(
    config: dict[str, Any], ports: dict[str, int], replica_port: int, name_server: int
) -> dict[str, Any]:
    """The configuration with the ports of this machine and its name server; nothing else."""

    def move(address: dict[str, Any], port: int) -> None:
        address["address"]["socket_address"]["port_value"] = port

    def endpoint(cluster: dict[str, Any]) -> Any:
        (locality,) = cluster["load_assignment"]["endpoints"]
        (one,) = locality["lb_endpoints"]
        return one["endpoint"]

    resources = config["static_resources"]
    clusters = {cluster["name"]: cluster for cluster in resources["clusters"]}
    move(config["admin"], ports["admin"])
    move(endpoint(clusters["admin"]), ports["admin"])
    move(endpoint(clusters["replicas"]), replica_port)
    for listener in resources["listeners"]:
        move(listener, ports[listener["name"]])
        listener["address"]["socket_address"]["address"] = "127.0.0.1"
    server = {"address": "127.0.0.1", "port_value": name_server}
    config["typed_dns_resolver_config"] = {
        "name": "envoy.network.dns_resolver.cares",
        "typed_config": {
            "@type": "type.googleapis.com/"
            "envoy.extensions.network.dns_resolver.cares.v3.CaresDnsResolverConfig",
            "resolvers": [{"socket_address": server}],
            "dns_resolver_options": {"no_default_search_domain": True},
        },
    }
    return config
