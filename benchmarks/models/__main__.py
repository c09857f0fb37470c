"""Many models behind one server: how many requests a second, how long the slow ones take, and
how much memory that needs; gpt2serve beside Ray Serve's model multiplexing (with transformers and
with CTranslate2) and a plain FastAPI app with a dict of transformers models.

100 models of GPT-2's real size, popular as words are (Zipf), caches for 10, 20 and 50 of them, 8
clients that each ask again when they have their answer. Then the cliff: a small cache, and more
and more models that are all asked alike.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.common import cli
from benchmarks.common.measuring import say
from benchmarks.common.model import prepare
from benchmarks.common.worker import Worker
from benchmarks.models import library, measure, plan, report
from benchmarks.models.serving import Load
from gpt2serve.settings import memory_limit

CLIFF = "cliff"
ROUNDS, QUICK_ROUNDS = 2, 1
MODELS, QUICK_MODELS = 100, 20
CACHES, QUICK_CACHES = [10, 20, 50], [5]
SECONDS, QUICK_SECONDS = 10.0, 6.0
CLIFF_CACHE, QUICK_CLIFF_CACHE = 8, 4
#: The cliff's measurements are shorter than the others by this factor: all of its models are
#: asked alike, so that a few seconds show what many would.
CLIFF_SHARE = 0.4
WARM_UP_SECONDS = 2.0

_EXAMPLES = f"""\
  python -m benchmarks.models --quick
      {QUICK_MODELS} models, a cache for {QUICK_CACHES[0]}, {QUICK_ROUNDS} round: about 2 minutes
  python -m benchmarks.models
      {ROUNDS} rounds: about 14 minutes on two cores; take this for figures that you publish
  python -m benchmarks.models --systems "{plan.GPT2SERVE.name}" --cache-models 10 30 --skip {CLIFF}
  python -m benchmarks.models --skip "{plan.RAY_CT2.name}" --zipf 0.7 --clients 32"""


def main(arguments: Sequence[str] | None = None) -> int:
    args = with_defaults(build_parser().parse_args(arguments))
    measured = cli.begin(args, arguments)
    systems = installed(args)
    formats = sorted({system.weights for system in systems})
    say("preparing the models")
    assets = prepare(args.cache, [name for name in formats if name != plan.CHECKPOINT])
    models = library.make(assets, args.models, formats, args.cache / "many")
    measured |= measure_all(args, systems, models)
    cli.finish(args, measured, report)
    return 0


def build_parser() -> argparse.ArgumentParser:
    parser = cli.new_parser("models", __doc__, _EXAMPLES)
    names = [system.name for system in plan.SYSTEMS]
    add = parser.add_argument
    add("--systems", nargs="+", choices=names, metavar="NAME", help=f"only these of: {names}")
    skip = f"leave a system or the {CLIFF} out; may be repeated"
    add("--skip", action="append", default=[], choices=[*names, CLIFF], metavar="NAME", help=skip)
    add("--models", type=cli.positive, metavar="N", help=f"models (default: {MODELS})")
    caches = f"sizes of the cache, in models (default: {CACHES})"
    add("--cache-models", type=cli.positive, nargs="+", metavar="N", help=caches)
    add("--clients", type=cli.positive, metavar="N", default=8, help="default: %(default)s")
    add("--seconds", type=float, metavar="S", help=f"of a measurement (default: {SECONDS:.0f})")
    add("--rounds", type=cli.positive, metavar="N", help=f"default: {ROUNDS}")
    zipf = "exponent of popularity: 0 is all alike (default: %(default)s)"
    add("--zipf", type=float, metavar="S", default=1.0, help=zipf)
    return parser


def with_defaults(args: argparse.Namespace) -> argparse.Namespace:
    """What was not given depends on --quick."""
    short = args.quick
    args.models = args.models or (QUICK_MODELS if short else MODELS)
    args.cache_models = args.cache_models or (QUICK_CACHES if short else CACHES)
    args.seconds = args.seconds or (QUICK_SECONDS if short else SECONDS)
    args.rounds = args.rounds or (QUICK_ROUNDS if short else ROUNDS)
    args.cliff_cache = QUICK_CLIFF_CACHE if short else CLIFF_CACHE
    return args


def installed(args: argparse.Namespace) -> list[plan.System]:
    """Those that were asked for and can run; says how to get the others."""
    wanted = [
        system
        for system in plan.SYSTEMS
        if system.name in (args.systems or [system.name]) and system.name not in args.skip
    ]
    for system in wanted:
        if system.missing:
            say(f"{system.name} is skipped: no {', '.join(system.missing)}; {system.install}")
    return [system for system in wanted if not system.missing]


def measure_all(
    args: argparse.Namespace, systems: Sequence[plan.System], models: library.Library
) -> dict[str, Any]:
    memory = memory_limit()
    todo = plan.cells(systems, args.cache_models, models.sizes, memory)
    names = ("models", "clients", "seconds", "zipf", "rounds", "cliff_cache")
    facts = {name: getattr(args, name) for name in names}
    with (
        tempfile.TemporaryDirectory(prefix="gpt2serve-models-") as logs,
        Worker("benchmarks.load.worker:Clients", {}) as clients,
    ):
        bench = measure.Bench(models, clients, args.threads, Path(logs))
        load = Load(args.clients, args.seconds, WARM_UP_SECONDS, args.zipf)
        return {
            **facts,
            "sizes": models.sizes,
            "memory_limit": memory,
            "left_out": [_left_out(cell) for cell in todo if not cell.fits],
            "cells": measure.measure_cells(bench, load, todo, args.rounds),
            "cliff": measure_cliff(args, systems, bench),
        }


def _left_out(cell: plan.Cell) -> dict[str, Any]:
    return {"system": cell.system.name, "cache": cell.cache, "cache_bytes": cell.cache_bytes}


def measure_cliff(
    args: argparse.Namespace, systems: Sequence[plan.System], bench: measure.Bench
) -> list[dict[str, Any]]:
    variants = [one for one in plan.VARIANTS if one.system in systems]
    steps = plan.steps(variants, args.cliff_cache, args.models)
    if CLIFF in args.skip or not steps:
        return []
    say("the cliff")
    load = Load(args.clients, CLIFF_SHARE * args.seconds, WARM_UP_SECONDS / 2, zipf=0.0)
    return measure.measure_cliff(bench, load, variants, steps, args.rounds)


if __name__ == "__main__":
    sys.exit(main())
