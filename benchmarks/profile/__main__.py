"""Where the time of a token goes.

1. A decode step of 1, 16 and 64 sequences: in onnxruntime, in sampling, in the rest of Python.
2. The time in onnxruntime by op, from its own profile.
3. HTTP: the engine alone, whole answers, and streams, with 16 clients; what the server's event
   loop and the clients work per token; and the same under other HTTP servers.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.common import cli, model, servers
from benchmarks.common.measuring import say, undisturbed
from benchmarks.common.worker import Worker
from benchmarks.profile import report
from benchmarks.profile.server import SERVERS

_EXAMPLES = """\
  python -m benchmarks.profile --quick
      the engine's steps and HTTP, three rounds of a second each
  python -m benchmarks.profile
      more rounds, and all HTTP servers; about five minutes on two cores
  python -m benchmarks.profile --batches 1 8 --skip http --skip servers
      less of it"""

PARTS = ("steps", "ops", "http", "servers")
#: About a second of decoding on two cores.
TOKENS = {1: 192, 16: 96, 64: 32}
CLIENTS = 16
#: Median, sigma, least and most tokens of a text: they end at different times, as in life.
OUTPUTS = [48, 0.25, 32, 64]


def main(arguments: Sequence[str] | None = None) -> int:
    args = parser().parse_args(arguments)
    results = cli.begin(args, arguments)
    assets = model.prepare(args.cache, [f"package-{args.precision}"])
    results |= {"rounds": args.rounds or (3 if args.quick else 7), "precision": args.precision}
    results |= {"clients": CLIENTS, "outputs": OUTPUTS}
    measure = {"steps": steps, "ops": ops, "http": http, "servers": other_servers}
    for part in PARTS:
        wanted = part not in args.skip and not (args.quick and part == "servers")
        results[part] = measure[part](assets, args, results["rounds"]) if wanted else []
    cli.finish(args, results, report)
    return 0


def parser() -> argparse.ArgumentParser:
    made = cli.new_parser("profile", __doc__, _EXAMPLES)
    add = made.add_argument
    add("--rounds", type=cli.positive, metavar="N", help="default: 7, with --quick 3")
    add("--batches", type=cli.positive, nargs="+", default=[1, 16, 64], metavar="B")
    add("--precision", choices=("int8", "fp32"), default="int8")
    add("--seconds", type=cli.positive, default=3, metavar="S", help="of each HTTP measurement")
    add("--skip", action="append", default=[], choices=PARTS, help="may be repeated")
    return made


def prompt_of(assets: model.Assets) -> str:
    return str(model.prompts(assets.checkpoint, 1, 8)[0]["text"])


def engine(assets: model.Assets, args: argparse.Namespace, *, by_op: bool = False) -> Worker:
    arguments = {"store": str(assets.store), "model": assets.model, "precision": args.precision}
    return Worker(
        "benchmarks.profile.engine:Engine",
        {**arguments, "threads": args.threads, "by_op": by_op},
    )


def steps(assets: model.Assets, args: argparse.Namespace, rounds: int) -> list[dict[str, Any]]:
    """A decode step by part, for each batch size and round."""
    measured = []
    with engine(assets, args) as worker:
        for number in range(-1, rounds):  # the first is for warming up
            for batch in args.batches:
                tokens = TOKENS.get(batch, 64)
                call = partial(
                    worker.call, "decode", prompt=prompt_of(assets), batch=batch, tokens=tokens
                )
                result = undisturbed(call, [worker.pid])
                say(f"a step of {batch}: {result['step_ms']:.2f} ms")
                measured.append({"batch": batch, "round": number, **result})
    return [entry for entry in measured if entry["round"] >= 0]


def ops(assets: model.Assets, args: argparse.Namespace, rounds: int) -> list[dict[str, Any]]:
    """The time in onnxruntime by op. A profile can be read once, so each has its own process."""
    del rounds
    measured = []
    for batch in args.batches:
        with engine(assets, args, by_op=True) as worker:
            say(f"ops of a step of {batch}")
            result = worker.call(
                "ops", prompt=prompt_of(assets), batch=batch, tokens=TOKENS.get(batch, 64)
            )
            measured.append({"batch": batch, **result})
    return measured


# -- HTTP ---------------------------------------------------------------------------------


def http(assets: model.Assets, args: argparse.Namespace, rounds: int) -> list[dict[str, Any]]:
    """The engine alone, whole answers, and streams, in turn."""
    log = args.cache / "logs" / "profile-gpt2serve.log"
    options = ["--preload", assets.model]
    measured = []
    with (
        engine(assets, args) as alone,
        servers.gpt2serve(
            assets.store, log, precision=args.precision, threads=args.threads, options=options
        ) as server,
        Worker("benchmarks.load.worker:Clients", {}) as clients,
    ):
        pids = [alone.pid, server.pid, clients.pid]
        for number in range(-1, rounds):
            for way in ("engine", "whole", "streamed"):
                if way == "engine":
                    work = partial(in_process, alone, assets, args, number)
                else:
                    work = partial(
                        through_http,
                        server,
                        clients,
                        assets,
                        args,
                        number,
                        stream=way == "streamed",
                    )
                result = undisturbed(work, pids)
                say(f"{way}: {result['tokens_per_second']:.0f} tokens/s")
                measured.append({"way": way, "round": number, **result})
    return [entry for entry in measured if entry["round"] >= 0]


def mix(assets: model.Assets, number: int) -> dict[str, Any]:
    return {"models": [assets.model], "outputs": OUTPUTS, "seed": number + 1}


def in_process(
    alone: Worker, assets: model.Assets, args: argparse.Namespace, number: int
) -> dict[str, Any]:
    result: dict[str, Any] = alone.call(
        "closed_loop", mix=mix(assets, number), clients=CLIENTS, seconds=args.seconds
    )
    return result


def through_http(
    server: servers.Server,
    clients: Worker,
    assets: model.Assets,
    args: argparse.Namespace,
    number: int,
    *,
    stream: bool,
) -> dict[str, Any]:
    before = server.main_thread_seconds()
    figures = clients.call(
        "run",
        target={"server": server.url, "stream": stream, "exact": True},
        mix=mix(assets, number),
        load={"clients": CLIENTS},
        seconds=args.seconds,
    )
    if figures["ok"] != figures["requests"]:
        raise RuntimeError(f"Requests failed: {figures['codes']}")
    tokens = figures["ok"] * figures["output_tokens"]
    return {
        "tokens_per_second": figures["tokens_per_second"],
        "event_loop_us": 1e6 * (server.main_thread_seconds() - before) / tokens,
        "clients_us": 1e6 * figures["cpu_seconds"] / tokens,
    }


def other_servers(
    assets: model.Assets, args: argparse.Namespace, rounds: int
) -> list[dict[str, Any]]:
    """Streams under each HTTP server that is installed, in turn."""
    measured = []
    with (
        all_servers(assets, args) as running,
        Worker("benchmarks.load.worker:Clients", {}) as clients,
    ):
        pids = [clients.pid, *(server.pid for server in running.values())]
        for number in range(-1, rounds):
            for name, server in running.items():
                work = partial(through_http, server, clients, assets, args, number, stream=True)
                result = undisturbed(work, pids)
                say(f"{name}: {result['tokens_per_second']:.0f} tokens/s")
                measured.append({"server": name, "round": number, **result})
    return [entry for entry in measured if entry["round"] >= 0]


@contextlib.contextmanager
def all_servers(
    assets: model.Assets, args: argparse.Namespace
) -> Iterator[dict[str, servers.Server]]:
    environment = {
        "GPT2SERVE_STORE": str(assets.store),
        "GPT2SERVE_PRELOAD": assets.model,
        "GPT2SERVE_PRECISION": args.precision,
        "GPT2SERVE_THREADS": str(args.threads),
    }
    with contextlib.ExitStack() as stack:
        running = {}
        for name in SERVERS:
            package = {"uvicorn-h11": "h11"}.get(name, name.rpartition("-")[2])
            if importlib.util.find_spec(package) is None:
                say(f"{name} is skipped: pip install {package}")
                continue
            command = [sys.executable, "-m", "benchmarks.profile.server", name, "--port", "{port}"]
            log = Path(args.cache) / "logs" / f"profile-{name}.log"
            running[name] = stack.enter_context(
                servers.Server(command, ready="/readyz", log=log, environment=environment)
            )
        yield running


if __name__ == "__main__":
    sys.exit(main())
