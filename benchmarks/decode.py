"""How fast is one token? This engine beside transformers and CTranslate2, and through HTTP.

Every system has a process of its own, which sleeps while another is measured, the same weights
(GPT-2 124M, random), the same prompt of 8 tokens, the same number of new tokens, sampling with
top_k 50, and the same number of threads. In each round every system runs every batch size once,
in turn; ratios are of times from the same round, and what is reported is their median.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import decode_report, machine, model
from benchmarks.decode_report import QUIET
from benchmarks.http_clients import Server
from benchmarks.peers import ENGINE_FP32, ENGINE_INT8, LARGEST_BATCH, SYSTEMS, System
from benchmarks.worker import Worker

DEFAULT_OUTPUT = model.ROOT / "benchmarks" / "results" / "decode.json"
QUICK_ROUNDS, FULL_ROUNDS = 3, 9
NEW_TOKENS = 48
#: Idle worker threads spin for a moment after their last work; nobody is measured meanwhile.
SETTLE_SECONDS = 0.1
#: How often a measurement that other work disturbs is made.
TRIES = 3

HTTP = "http"
HTTP_CLIENTS = 16
HTTP_REQUESTS = 4
#: Texts end at different times, as they do in life: no two clients in step.
HTTP_LENGTHS = (32, 40, 48, 56, 64)

_DEFAULT = "(default: %(default)s)"

_EPILOG = f"""\
systems for --skip: {", ".join(system.name for system in SYSTEMS)}, {HTTP}

examples:
  python -m benchmarks.decode --quick
      {QUICK_ROUNDS} rounds, a few minutes on two cores; `make bench` does this
  python -m benchmarks.decode
      {FULL_ROUNDS} rounds; take this for figures that you publish
  python -m benchmarks.decode --sizes 1 16 --skip http --skip "ctranslate2 fp32"
      less of it

The first run makes the model, which takes about half a minute, and keeps it in
benchmarks/.cache. Stop other work on the machine: it disturbs every figure. PASS and MISS
compare medians with the project's targets; the exit status is 0 in both cases."""


def main(arguments: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(arguments)
    rounds = args.rounds or (QUICK_ROUNDS if args.quick else FULL_ROUNDS)
    systems = installed([system for system in SYSTEMS if system.name not in args.skip])
    with_http = HTTP not in args.skip
    header = machine.describe(args.threads, ["python -m benchmarks.decode", *sys.argv[1:]])
    assets = prepare(args.cache, systems, with_http=with_http)
    results: dict[str, Any] = {"header": header, "rounds": rounds, "new_tokens": args.new_tokens}
    results["http_plan"] = http_plan()
    results["bandwidth"] = machine.read_bandwidth(args.threads)
    say(f"measuring {len(systems)} systems in {rounds} rounds")
    results["steps"] = measure_steps(assets, systems, args, rounds)
    results["http"] = measure_http(assets, args, rounds) if with_http else []
    results["weight_bytes"] = {
        system.name: machine.weight_bytes_per_token(assets.store, system.precision)
        for system in systems
        if system.name in (ENGINE_INT8, ENGINE_FP32)
    }
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(results, indent=1) + "\n")
    print(decode_report.text_of(results))
    say(f"raw results are in {args.output}")
    return 0


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.decode",
        description=__doc__,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--quick", action="store_true", help=f"{QUICK_ROUNDS} rounds instead of {FULL_ROUNDS}")
    add("--rounds", type=_positive, metavar="N", help="any other number of rounds")
    _add_work(parser)
    add(
        "--output",
        type=Path,
        metavar="FILE",
        help="raw results as JSON (default: benchmarks/results/decode.json)",
    )
    add(
        "--cache",
        type=Path,
        metavar="DIR",
        help="where the model is kept (default: benchmarks/.cache)",
    )
    parser.set_defaults(output=DEFAULT_OUTPUT, cache=model.CACHE)
    return parser


def _add_work(parser: argparse.ArgumentParser) -> None:
    names = [*(system.name for system in SYSTEMS), HTTP]
    sizes, length = "batch sizes (default: 1 5 16 32)", f"tokens of each sequence {_DEFAULT}"
    threads, skip = f"threads of each system {_DEFAULT}", "leave this out; may be repeated"
    add = parser.add_argument
    add("--sizes", type=_size, nargs="+", metavar="B", help=sizes)
    add("--new-tokens", type=_positive, metavar="N", help=length)
    add("--threads", type=_positive, metavar="N", help=threads)
    add("--skip", action="append", default=[], choices=names, metavar="NAME", help=skip)
    tries = f"repeat what other work disturbs, up to N runs in all (default: {TRIES})"
    add("--tries", type=_positive, metavar="N", default=TRIES, help=tries)
    parser.set_defaults(sizes=[1, 5, 16, 32], new_tokens=NEW_TOKENS, threads=2)


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number


def _size(text: str) -> int:
    number = _positive(text)
    if number > LARGEST_BATCH:
        raise argparse.ArgumentTypeError(f"must be at most {LARGEST_BATCH}")
    return number


def say(text: str) -> None:
    print(f"==> {text}", file=sys.stderr, flush=True)


def installed(systems: Sequence[System]) -> list[System]:
    """Those that can run here; says how to get the others."""
    for system in systems:
        if not system.is_installed:
            say(f"{system.name} is skipped: {system.package} is missing; {system.install}")
    return [system for system in systems if system.is_installed]


def prepare(cache: Path, systems: Sequence[System], *, with_http: bool) -> model.Assets:
    ours = [s.precision for s in systems if s.package == "gpt2serve"]
    if with_http and "int8" not in ours:
        ours.append("int8")
    converted = [s.precision for s in systems if s.package == "ctranslate2"]
    say("exporting the model")
    return model.prepare(cache, precisions=ours, ct2=converted)


# -- one system after the other -----------------------------------------------------------


@contextlib.contextmanager
def workers(
    assets: model.Assets, systems: Sequence[System], threads: int
) -> Iterator[dict[str, Worker]]:
    with contextlib.ExitStack() as stack:
        yield {
            system.name: stack.enter_context(
                Worker(
                    system.target,
                    {**assets.arguments, "precision": system.precision, "threads": threads},
                )
            )
            for system in systems
        }


def measure_steps(
    assets: model.Assets, systems: Sequence[System], args: argparse.Namespace, rounds: int
) -> list[dict[str, Any]]:
    """One entry for each system, size and round, in the order of measurement."""
    measured = []
    with workers(assets, systems, args.threads) as running:
        for worker in running.values():
            for size in args.sizes:
                worker.call("generate", batch=size, tokens=4)
        for number in range(rounds):
            say(f"round {number + 1} of {rounds}")
            for size in args.sizes:
                for name, worker in running.items():
                    work = partial(generate, worker, size, args.new_tokens)
                    result = undisturbed(work, [worker.pid], args.tries)
                    measured.append({"system": name, "batch": size, "round": number} | result)
                    step = 1000 * result["seconds"] / args.new_tokens
                    say(f"{name}, B={size}: {step:.1f} ms; others took {result['others']:.0%}")
    return measured


def generate(worker: Worker, size: int, tokens: int) -> dict[str, Any]:
    result: dict[str, Any] = worker.call("generate", batch=size, tokens=tokens)
    if result["lengths"] != [tokens] * size:
        raise RuntimeError(f"Asked for {size} texts of {tokens} tokens: {result['lengths']}.")
    return result


def undisturbed(
    work: Callable[[], dict[str, Any]], processes: list[int], tries: int
) -> dict[str, Any]:
    """The result of `work` with the share of the cores that others took meanwhile, as "others".

    If that is more than `QUIET`, it is done again, at most `tries` times, and the least disturbed
    run counts: chosen by what others did, never by how fast it was.
    """
    results: list[dict[str, Any]] = []
    while len(results) < tries and not any(result["others"] <= QUIET for result in results):
        time.sleep(SETTLE_SECONDS)
        watch = machine.OtherWork(processes)
        result = work()
        others = watch.share()
        if math.isnan(others):
            return result | {"others": 0.0}
        results.append(result | {"others": others})
    return min(results, key=lambda result: float(result["others"]))


# -- through HTTP -------------------------------------------------------------------------


def http_plan() -> list[list[int]]:
    """For each client, the lengths of the texts that it asks for, one after the other."""
    return [
        [HTTP_LENGTHS[(client + turn) % len(HTTP_LENGTHS)] for turn in range(HTTP_REQUESTS)]
        for client in range(HTTP_CLIENTS)
    ]


def measure_http(
    assets: model.Assets, args: argparse.Namespace, rounds: int
) -> list[dict[str, Any]]:
    """The engine alone, through HTTP, and through HTTP streamed, each with the same requests."""
    engine = [system for system in SYSTEMS if system.name == ENGINE_INT8]
    measured = []
    with (
        workers(assets, engine, args.threads) as running,
        Server(assets.store, precision="int8", threads=args.threads) as server,
        Worker("benchmarks.http_clients:Clients", {"url": server.url}) as clients,
    ):
        alone = running[ENGINE_INT8]
        processes = [alone.pid, server.pid, clients.pid]
        for number in range(-1, rounds):  # the first is for warming up
            if number >= 0:
                say(f"HTTP round {number + 1} of {rounds}")
            for way in ("engine", "whole", "streamed"):
                work = partial(serve_plan, way, alone, server, clients)
                result = undisturbed(work, processes, args.tries if number >= 0 else 1)
                measured.append({"way": way, "round": number} | result)
    return [entry for entry in measured if entry["round"] >= 0]


def serve_plan(way: str, alone: Worker, server: Server, clients: Worker) -> dict[str, Any]:
    before = server.event_loop_seconds()
    result: dict[str, Any] = (
        alone.call("concurrent", plan=http_plan())
        if way == "engine"
        else clients.call("run", plan=http_plan(), stream=way == "streamed")
    )
    return {"event_loop_seconds": server.event_loop_seconds() - before} | result


if __name__ == "__main__":
    sys.exit(main())
