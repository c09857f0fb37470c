"""Replicas, a name server and a router: the cluster's parts, each real, on one machine.

Replicas listen on 127.0.1.1, 127.0.1.2, ..., all on the same port, as pods do.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Self

import httpx

from benchmarks.cluster.name_server import NameServer
from benchmarks.cluster.router import Router
from benchmarks.common.servers import EVERYWHERE, free_port, metric, wait_until

SERVICE = "gpt2serve-replicas"
#: Longer than the router needs to notice: its health checks come each second, and wait for an
#: engine that may be busy.
DRAIN_DELAY = 5


class Replica:
    """`gpt2serve` on one address; its log is a file, which never is full."""

    def __init__(self, store: Path, log: Path, address: str, port: int, *options: str) -> None:
        self.url = f"http://{address}:{port}"
        command = [sys.executable, "-m", "gpt2serve.cli", "--store", str(store)]
        command += ["--host", address, "--port", str(port), "--threads", "1"]
        command += ["--kv-cache-bytes", "256MiB", "--drain-delay", str(DRAIN_DELAY), *options]
        with log.open("wb") as out:
            self.process = subprocess.Popen(command, stdout=out, stderr=out)

    def ready(self) -> bool:
        assert self.process.poll() is None, "the replica has ended"
        try:
            return httpx.get(f"{self.url}/readyz").status_code == 200
        except httpx.TransportError:
            return False

    def metric(self, name: str) -> float:
        return metric(self.url, name)

    def end(self, number: signal.Signals) -> int:
        """Its exit status."""
        self.process.send_signal(number)
        return self.process.wait(timeout=90)


class Fleet:
    def __init__(
        self,
        store: Path,
        folder: Path,
        count: int,
        *options: str,
        change: Callable[[dict[str, Any]], None] = lambda _: None,
    ) -> None:
        self._store = store
        self._folder = folder
        self._options = options
        self.port = free_port(EVERYWHERE)
        folder.mkdir(parents=True, exist_ok=True)
        self.replicas: dict[str, Replica] = {}
        self.names = NameServer(SERVICE)
        self.router: Router
        try:
            self.start(count)
            self.router = Router(
                folder / "router",
                replica_port=self.port,
                name_server=self.names.port,
                change=change,
            )
            self.settled()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self, count: int) -> list[str]:
        """Start so many more replicas, side by side, and let them be found when all are ready."""
        started: list[str] = []
        used = [int(address.rpartition(".")[2]) for address in self.replicas]
        first = max(used, default=0) + 1
        for number in range(first, first + count):
            started.append(address := f"127.0.1.{number}")
            self.replicas[address] = self._replica(address)
        wait_until(lambda: all(self.replicas[address].ready() for address in started), 60)
        self.publish()
        return started

    def _replica(self, address: str) -> Replica:
        log = self._folder / f"replica-{address}.log"
        return Replica(self._store, log, address, self.port, *self._options)

    def publish(self, addresses: Iterable[str] | None = None) -> None:
        """Let the name server tell of these replicas; of all, if none are named."""
        self.names.say(self.replicas if addresses is None else addresses)

    def settled(self, addresses: Iterable[str] | None = None) -> None:
        """Wait until the router sends requests to just these replicas."""
        wanted = set(self.replicas if addresses is None else addresses)
        wait_until(lambda: self.router.healthy() == wanted, 30)

    def kill(self, address: str) -> float:
        """kill -9; when it was dead. The name server goes on to tell of it."""
        self.replicas.pop(address).end(signal.SIGKILL)
        return time.monotonic()

    def leave(self, address: str) -> int:
        """As Kubernetes does: no longer told of, SIGTERM. Its exit status, when it has ended."""
        replica = self.replicas.pop(address)
        self.publish()
        return replica.end(signal.SIGTERM)

    def restart(self, address: str) -> int:
        """SIGTERM, and another process at its place. The name server tells of it all the time."""
        status = self.replicas[address].end(signal.SIGTERM)
        self.replicas[address] = self._replica(address)
        wait_until(self.replicas[address].ready, 60)
        return status

    def hits_and_misses(self) -> tuple[float, float]:
        """Of all replicas' model caches together."""
        hits, misses = (
            sum(replica.metric(f"model_cache_{what}_total") for replica in self.replicas.values())
            for what in ("hits", "misses")
        )
        return hits, misses

    def close(self) -> None:
        if hasattr(self, "router"):
            self.router.close()
        for replica in self.replicas.values():
            replica.end(signal.SIGKILL)
        self.names.close()
