"""Is another eviction policy than LRU worth having? Caches simulated over drawn traces.

LRU as the server has it, segmented LRU, SIEVE, S3-FIFO, W-TinyLFU, GDSF and Belady's optimum, which
knows what will come; requests that are independent, come in sessions, drift through the day, and
crawlers that ask for every model once. Models count in bytes, and one that is in use cannot be
evicted. No model is run: what a miss costs is taken from the results of `coldstart` and `fleet`.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from benchmarks.common import cli
from benchmarks.common.measuring import say
from benchmarks.policies import costs, plan, report, running
from benchmarks.policies.costs import Costs

_EXAMPLES = """\
  python -m benchmarks.policies --quick
      1,000 models, a cache for a tenth of them: ten seconds
  python -m benchmarks.policies
      up to 10,000 models, caches for 1 to 20 % of them: about 7 minutes, on one core
  python -m benchmarks.policies --miss-ms 250 --rate 1
      a server that reads its models from a slow disk"""


def main(arguments: Sequence[str] | None = None) -> int:
    args = parser().parse_args(arguments)
    paid = with_options(costs.measured(), args)
    results = cli.begin(args, arguments)
    results |= {
        "rate": args.rate,
        "seed": args.seed,
        "costs": paid.as_json(),
        "early": {"miss_ms": args.early_ms, "core_ms": args.early_ms + args.early_core_ms},
        "cells": [],
    }
    with cli.keeping(args, results):
        simulate_all(args, paid, results)
    cli.finish(args, results, report)
    return 0


def parser() -> argparse.ArgumentParser:
    made = cli.plain_parser("policies", __doc__, _EXAMPLES)
    add = made.add_argument
    rate = "requests a second (default: %(default)s, what two cores answer with ease)"
    add("--rate", type=float, default=3.0, metavar="R", help=rate)
    add("--seed", type=int, default=0, metavar="N", help="of the traces (default: %(default)s)")
    miss = "by which the first token is later if the model is not in memory (default: as measured)"
    add("--miss-ms", type=float, metavar="MS", help=miss)
    early = "the same of a load that answers before it is done, beside the first, in the report "
    early += "only (default: %(default)s, assumed)"
    add("--early-ms", type=float, default=30.0, metavar="MS", help=early)
    rest = "what that load takes of a core after its first token (default: %(default)s, assumed)"
    add("--early-core-ms", type=float, default=70.0, metavar="MS", help=rest)
    return made


def with_options(paid: Costs, args: argparse.Namespace) -> Costs:
    if args.miss_ms is None:
        return paid
    return replace(paid, miss_ms=args.miss_ms, core_ms=args.miss_ms)


def simulate_all(args: argparse.Namespace, paid: Costs, results: dict[str, Any]) -> None:
    """Fills `results` as it goes."""
    cells = plan.cells(plan.QUICK if args.quick else plan.FULL)
    for fleet, group in itertools.groupby(cells, key=lambda cell: (cell.fleet, cell.kind)):
        say(f"{fleet[0].models:,} models of {fleet[0].sizes} sizes: {fleet[1].name}")
        for cell in group:
            results["cells"] += running.run(cell, args.rate, paid, args.seed)


if __name__ == "__main__":
    sys.exit(cli.run(main))
