"""Servers of many models: how each is started, filled and measured."""

from __future__ import annotations

import json
import sys
import time
import urllib.request
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.common.machine import family
from benchmarks.common.measuring import undisturbed
from benchmarks.common.servers import Server, ServerFailed, gpt2serve, metric
from benchmarks.common.worker import Worker
from benchmarks.models import memory
from benchmarks.models.library import Library
from benchmarks.models.plan import CT2, SCAN, ZIPF, System

#: Ray routes by this header; nobody else reads it.
MODEL_HEADER = "serve_multiplexed_model_id"
#: A disturbed measurement is made once more, not twice: there are many.
TRIES = 2
_FILL_TIMEOUT = 120.0


def start(
    system: System,
    library: Library,
    *,
    held: int,
    cache_bytes: int,
    threads: int,
    log: Path,
    pinned: Sequence[str] = (),
) -> Server:
    """The system with a cache for `held` models, which take `cache_bytes`. Raises
    `ServerFailed`."""
    if system.is_ours:
        options = ["--model-cache-bytes", str(cache_bytes)]
        options += [part for model in pinned for part in ("--pin", model)]
        return gpt2serve(library.store, log, precision="int8", threads=threads, options=options)
    command = [sys.executable, "-m", f"benchmarks.models.peers.{system.peer}"]
    command += ["--checkpoints", str(library.checkpoints), "--cache", str(held)]
    command += ["--threads", str(threads), "--port", "{port}"]
    if system.weights == CT2:
        command += ["--ct2", str(library.ct2)]
    return Server(command, ready="/ready", log=log)


def fill(url: str, models: Iterable[str]) -> None:
    """Ask each model for one token, one after the other: the last ones stay in the cache."""
    for model in models:
        body = {"model": model, "prompt": "The", "max_new_tokens": 1, "seed": 0}
        headers = {"content-type": "application/json", MODEL_HEADER: model}
        request = urllib.request.Request(url + "/generate", json.dumps(body).encode(), headers)
        urllib.request.urlopen(request, timeout=_FILL_TIMEOUT).close()


def resident(url: str) -> int:
    """How many models gpt2serve has in memory."""
    return int(metric(url, "models_resident"))


def new_clients() -> Worker:
    """A process for the load. Each server gets a new one: should it end, it costs one system."""
    return Worker("benchmarks.models.clients:Clients", {})


@dataclass(frozen=True)
class Load:
    """A closed loop: `clients` clients, each of which asks again when it has its answer.

    zipf: exponent of popularity. scan: models one after the other instead.
    """

    clients: int
    seconds: float
    warm_up: float
    zipf: float
    scan: bool = False

    def like(self, traffic: str, longer: float = 1.0) -> Load:
        """The same load with one of `plan.TRAFFICS`, and for `longer` times as long."""
        exponent = self.zipf if traffic == ZIPF else 0.0
        seconds = longer * self.seconds
        return replace(self, seconds=seconds, zipf=exponent, scan=traffic == SCAN)

    def measure(
        self, clients: Worker, server: Server, models: Sequence[str], seed: int
    ) -> dict[str, Any]:
        """The figures of one measurement, and the server's memory at its end.

        Raises `ServerFailed` if no request went well. That there was none to count is no failure:
        all clients still waited for what they had asked while the server warmed up.
        """
        run = partial(
            clients.call,
            "run",
            target={
                "server": server.url,
                "stream": False,
                "exact": True,
                "extra_headers": {MODEL_HEADER: "{model}"},
            },
            mix={"models": list(models), "zipf": self.zipf, "seed": seed},
            scan=self.scan,
            clients=self.clients,
            seconds=self.seconds,
            warm_up=self.warm_up,
        )
        figures = undisturbed(run, [clients.pid, server.pid], TRIES)
        if figures["requests"] and not figures["ok"]:
            raise ServerFailed(f"No request went well: {figures['codes']}")
        return figures_of(figures) | {"memory": memory.of_processes(family(server.pid))}


def figures_of(summary: dict[str, Any]) -> dict[str, Any]:
    """What is kept of `benchmarks.load.summary`."""
    names = ("requests", "ok", "codes", "requests_per_second", "tokens_per_second")
    kept = {name: summary[name] for name in names}
    cold = summary["cold"]
    return kept | {
        "end_to_end_ms": summary["end_to_end_ms"],
        "hit_ratio": None if cold is None else round(1 - cold["share"], 4),
        "load_ms": None if cold is None else cold["load_ms"],
        "others": summary["others"],
    }


def timed_start(*args: Any, **options: Any) -> tuple[Server, float]:
    """A server, and the seconds until it was ready."""
    begin = time.perf_counter()
    server = start(*args, **options)
    return server, round(time.perf_counter() - begin, 2)
