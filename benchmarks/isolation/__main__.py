"""Does one user's work slow another's?

Some clients stream from a hot model without pause. What they see between two tokens is measured
while nothing else happens, and in turn while others ask for models that must be loaded first,
send prompts that fill the context, or leave in the middle of their answers. Afterwards the engine
must be empty again.
"""

from __future__ import annotations

import argparse
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import Any

from benchmarks.common import cli, copies, model
from benchmarks.common.measuring import say, undisturbed
from benchmarks.common.prompts import prompts
from benchmarks.common.servers import Server, gpt2serve
from benchmarks.common.worker import Worker
from benchmarks.isolation import metrics, report
from benchmarks.isolation.plan import SITUATIONS, Plan
from gpt2serve.package import package_path, read_manifest

_EXAMPLES = """\
  python -m benchmarks.isolation --quick
  python -m benchmarks.isolation --streams 16

About 4 minutes, with --quick less than one."""

#: The hot model and its neighbour stay; that many others fit.
PLACES = 4
_PROMPT_TOKENS, _LONG_PROMPT_TOKENS = 8, 1000
_EMPTY_PATIENCE = 10.0


def main(arguments: Sequence[str] | None = None) -> int:
    args = parser().parse_args(arguments)
    plan = (
        Plan(rounds=2, seconds=2.5, tokens=60, streams=args.streams, tries=1)
        if args.quick
        else Plan(rounds=5, seconds=6.0, tokens=150, streams=args.streams, tries=2)
    )
    results = cli.begin(args, arguments)
    results |= {"plan": asdict(plan), "measured": []}
    with cli.keeping(args, results):
        measure(args, plan, results["measured"])
    cli.finish(args, results, report)
    return 0


def parser() -> argparse.ArgumentParser:
    made = cli.new_parser("isolation", __doc__, _EXAMPLES)
    text = "clients that stream from the hot model (default: %(default)s)"
    made.add_argument("--streams", type=cli.positive, metavar="N", default=4, help=text)
    return made


def measure(args: argparse.Namespace, plan: Plan, measured: list[dict[str, Any]]) -> None:
    """One entry for each situation and round, put into `measured` as soon as it is there."""
    assets = model.prepare(args.cache, ["package-int8"])
    folder = args.cache / "isolation"
    made = copies.many(assets, 2 + plan.cold_models, ["package-int8"], folder)
    hot, neighbour, *cold = (one.model for one in made)
    package = package_path(made[0].store, hot, "cpu", "int8")
    cache_bytes = round((2 + PLACES + 0.5) * read_manifest(package).bytes_needed)
    options = ["--pin", hot, "--pin", neighbour, "--model-cache-bytes", str(cache_bytes)]
    asked = {
        "hot": hot,
        "neighbour": neighbour,
        "cold": cold,
        "prompts": _texts(assets, 16, _PROMPT_TOKENS),
        "long_prompts": _texts(assets, 4, _LONG_PROMPT_TOKENS),
    }
    with (
        gpt2serve(
            made[0].store,
            folder / "server.log",
            precision="int8",
            threads=args.threads,
            options=options,
        ) as server,
        Worker("benchmarks.isolation.clients:Clients", {"url": server.url} | asked) as clients,
    ):
        rounds(server, clients, plan, measured)


def _texts(assets: model.Assets, count: int, tokens: int) -> list[str]:
    return [prompt["text"] for prompt in prompts(assets.checkpoint, count, tokens)]


def rounds(server: Server, clients: Worker, plan: Plan, measured: list[dict[str, Any]]) -> None:
    list(one_round(server, clients, replace(plan, seconds=1.0, tries=1)))  # for warming up
    for number in range(plan.rounds):
        say(f"round {number + 1} of {plan.rounds}")
        for entry in one_round(server, clients, plan):
            measured.append({"round": number} | entry)  # noqa: PERF401 (kept if the next fails)


def one_round(server: Server, clients: Worker, plan: Plan) -> Iterator[dict[str, Any]]:
    """Every situation once."""
    for situation in SITUATIONS:
        work = partial(one, server.url, clients, situation, plan)
        told = undisturbed(work, [server.pid, clients.pid], plan.tries)
        if "gap_ms" in told:
            say(
                f"{situation}: {told['gap_ms']['p50']:.1f} ms a token, p99 "
                f"{told['gap_ms']['p99']:.1f}, {told['failed']} failed; "
                f"others took {told['others']:.0%}"
            )
        yield {"situation": situation} | told


def one(url: str, clients: Worker, situation: str, plan: Plan) -> dict[str, Any]:
    """One situation, and what it left behind."""
    before = metrics_of(url)
    told = clients.call("run", situation=situation, plan=asdict(plan))
    empty = seconds_until_empty(url)
    ends = metrics.ends_between(before, metrics_of(url))
    return {**told, "empty_seconds": empty, "ends": ends}


def seconds_until_empty(url: str) -> float | None:
    """How long until no request runs or waits; None if that does not come."""
    started = time.perf_counter()
    while (waited := time.perf_counter() - started) < _EMPTY_PATIENCE:
        if not metrics.under_way(metrics_of(url)):
            return round(waited, 3)
        time.sleep(0.02)
    return None


def metrics_of(url: str) -> str:
    with urllib.request.urlopen(url + "/metrics", timeout=_EMPTY_PATIENCE) as response:
        text: str = response.read().decode()
    return text


if __name__ == "__main__":
    sys.exit(cli.run(main))
