"""The parts of the profile: each returns one entry for a system, a way and a round."""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.common import model, servers
from benchmarks.common.measuring import say, undisturbed
from benchmarks.common.worker import Worker
from benchmarks.profile.server import SERVERS
from benchmarks.profile.versions import Version

#: About a second of decoding on two cores.
TOKENS = {1: 192, 16: 96, 64: 32}
_OTHER_TOKENS = 64
CLIENTS = 16
#: Median, sigma, least and most tokens of a text: they end at different times, as in life.
OUTPUTS = [48, 0.25, 32, 64]
#: The main thread of the others runs the event loop; granian's has a thread of its own for it.
_NO_EVENT_LOOP_IN_MAIN = "granian"

Entries = list[dict[str, Any]]


class Profile:
    """What is measured with: the code, the model, and what the command line says."""

    def __init__(
        self, args: argparse.Namespace, assets: model.Assets, versions: Sequence[Version]
    ) -> None:
        self._args = args
        self._model = assets.model
        self._prompt = str(model.prompts(assets.checkpoint, 1, 8)[0]["text"])
        self._versions = versions
        self._logs = Path(args.cache) / "logs"

    def _engine(self, version: Version, *, by_op: bool = False) -> Worker:
        return Worker(
            "benchmarks.profile.engine:Engine",
            {
                "store": str(version.store),
                "model": self._model,
                "precision": self._args.precision,
                "threads": self._args.threads,
                "by_op": by_op,
            },
            environment=version.environment,
        )

    def _text(self, batch: int) -> dict[str, Any]:
        tokens = TOKENS.get(batch, _OTHER_TOKENS)
        return {"prompt": self._prompt, "batch": batch, "tokens": tokens}

    # -- the engine -----------------------------------------------------------------------

    def steps(self, rounds: int, entries: Entries) -> None:
        """A decode step by part, for each version, batch size and round."""
        with contextlib.ExitStack() as stack:
            engines = [(one, stack.enter_context(self._engine(one))) for one in self._versions]
            for number in range(-1, rounds):  # the first is for warming up
                for batch in self._args.batches:
                    for version, worker in engines:
                        call = partial(worker.call, "decode", **self._text(batch))
                        result = undisturbed(call, [worker.pid])
                        say(f"{version.name}, a step of {batch}: {result['step_ms']:.2f} ms")
                        entry = {"code": version.name, "batch": batch, "round": number, **result}
                        entries += [entry] if number >= 0 else []

    def ops(self, rounds: int, entries: Entries) -> None:
        """The time in onnxruntime by op. A profile is read once, so each has its own process."""
        del rounds
        for version in self._versions:
            for batch in self._args.batches:
                with self._engine(version, by_op=True) as worker:
                    say(f"{version.name}, ops of a step of {batch}")
                    result = worker.call("ops", **self._text(batch))
                    entries.append({"code": version.name, "batch": batch, **result})

    # -- HTTP -----------------------------------------------------------------------------

    def http(self, rounds: int, entries: Entries) -> None:
        """The engine alone, whole answers, and streams, in turn."""
        with contextlib.ExitStack() as stack:
            clients = stack.enter_context(Worker("benchmarks.load.worker:Clients", {}))
            running, pids = [], [clients.pid]
            for one in self._versions:
                worker = stack.enter_context(self._engine(one))
                server = stack.enter_context(self._server(one))
                running.append((one, worker, server))
                pids += [worker.pid, server.pid]
            for number in range(-1, rounds):
                for version, worker, server in running:
                    for way in ("engine", "whole", "streamed"):
                        if way == "engine":
                            work = partial(self._in_process, worker, number)
                        else:
                            stream = way == "streamed"
                            work = partial(self._through, server, clients, number, stream=stream)
                        result = undisturbed(work, pids)
                        say(f"{version.name}, {way}: {result['tokens_per_second']:.0f} tokens/s")
                        entry = {"code": version.name, "way": way, "round": number, **result}
                        entries += [entry] if number >= 0 else []

    def other_servers(self, rounds: int, entries: Entries) -> None:
        """Streams under each HTTP server that is installed, in turn."""
        with contextlib.ExitStack() as stack:
            clients = stack.enter_context(Worker("benchmarks.load.worker:Clients", {}))
            running = {name: stack.enter_context(server) for name, server in self._other_servers()}
            pids = [clients.pid, *(server.pid for server in running.values())]
            for number in range(-1, rounds):
                for name, server in running.items():
                    work = partial(self._through, server, clients, number, stream=True)
                    result = undisturbed(work, pids)
                    if name == _NO_EVENT_LOOP_IN_MAIN:
                        result["event_loop_us"] = None
                    say(f"{name}: {result['tokens_per_second']:.0f} tokens/s")
                    entries += [{"server": name, "round": number, **result}] if number >= 0 else []

    def _server(self, version: Version) -> servers.Server:
        return servers.gpt2serve(
            version.store,
            self._logs / f"profile-{version.name}.log",
            precision=self._args.precision,
            threads=self._args.threads,
            options=["--preload", self._model],
            environment=version.environment,
        )

    def _other_servers(self) -> Iterator[tuple[str, servers.Server]]:
        environment = {
            "GPT2SERVE_STORE": str(self._versions[0].store),
            "GPT2SERVE_PRELOAD": self._model,
            "GPT2SERVE_PRECISION": self._args.precision,
            "GPT2SERVE_THREADS": str(self._args.threads),
        }
        for name in SERVERS:
            package = {"uvicorn-h11": "h11"}.get(name, name.rpartition("-")[2])
            if importlib.util.find_spec(package) is None:
                say(f"{name} is skipped: pip install {package}")
                continue
            command = [sys.executable, "-m", "benchmarks.profile.server", name, "--port", "{port}"]
            log = self._logs / f"profile-{name}.log"
            yield name, servers.Server(command, ready="/readyz", log=log, environment=environment)

    def _mix(self, number: int) -> dict[str, Any]:
        return {"models": [self._model], "outputs": OUTPUTS, "seed": number + 1}

    def _in_process(self, worker: Worker, number: int) -> dict[str, Any]:
        result: dict[str, Any] = worker.call(
            "closed_loop", mix=self._mix(number), clients=CLIENTS, seconds=self._args.seconds
        )
        return result

    def _through(
        self, server: servers.Server, clients: Worker, number: int, *, stream: bool
    ) -> dict[str, Any]:
        before = server.main_thread_seconds()
        figures = clients.call(
            "run",
            target={"server": server.url, "stream": stream, "exact": True},
            mix=self._mix(number),
            load={"clients": CLIENTS},
            seconds=self._args.seconds,
        )
        if figures["ok"] != figures["requests"]:
            raise RuntimeError(f"Requests failed: {figures['codes']}")
        tokens = figures["ok"] * figures["output_tokens"]
        return {
            "tokens_per_second": figures["tokens_per_second"],
            "event_loop_us": 1e6 * (server.main_thread_seconds() - before) / tokens,
            "clients_us": 1e6 * figures["cpu_seconds"] / tokens,
        }
