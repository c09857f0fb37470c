"""Many models behind one server: how many requests a second, how long the slow ones take, and
how much memory that needs; gpt2serve beside Ray Serve's model multiplexing (with transformers and
with CTranslate2) and a plain FastAPI app with a dict of transformers models.

100 models of GPT-2's real size, popular as words are (Zipf), caches for 10, 20 and 50 of them, 8
clients that each ask again when they have their answer. Then the cliff: a small cache, and more
and more models, asked at random (all alike, or some more than others) and one after the other.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.common import cli
from benchmarks.common.measuring import say
from benchmarks.common.model import prepare
from benchmarks.models import library, measure, plan, report
from benchmarks.models.serving import Load
from gpt2serve.sizes import memory_limit

CLIFF = "cliff"
QUICK_RATIOS, QUICK_TRAFFICS = (1.0, 4.0), (plan.ZIPF, plan.SCAN)
ROUNDS, QUICK_ROUNDS = 2, 1
MODELS, QUICK_MODELS = 100, 20
CACHES, QUICK_CACHES = [10, 20, 50], [5]
SECONDS, QUICK_SECONDS = 6.0, 5.0
CLIFF_CACHE, QUICK_CLIFF_CACHE = 8, 4
#: Fewer than there is room for models: one that is in use cannot be evicted, whatever the policy.
CLIFF_CLIENTS, QUICK_CLIFF_CLIENTS = 4, 2
#: The cliff's measurements are shorter than the others by this factor: they are many, of few
#: models.
CLIFF_SHARE = 0.4
WARM_UP_SECONDS, CLIFF_WARM_UP_SECONDS = 2.0, 1.0

_EXAMPLES = f"""\
  python -m benchmarks.models --quick
      {QUICK_MODELS} models, a cache for {QUICK_CACHES[0]}, {QUICK_ROUNDS} round: about 3 minutes
  python -m benchmarks.models
      {ROUNDS} rounds: about 15 minutes on two cores; more --seconds for figures that you publish
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
    with cli.keeping(args, measured):
        measure_all(args, systems, models, measured)
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
    args.cliff_ratios = QUICK_RATIOS if short else plan.RATIOS
    args.cliff_clients = min(args.clients, QUICK_CLIFF_CLIENTS if short else CLIFF_CLIENTS)
    args.cliff_traffics = QUICK_TRAFFICS if short else plan.TRAFFICS
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
    args: argparse.Namespace,
    systems: Sequence[plan.System],
    models: library.Library,
    measured: dict[str, Any],
) -> None:
    """Fills `measured` as it goes."""
    memory = memory_limit()
    cells = plan.cells(systems, args.cache_models, models.sizes, memory)
    cliff = cliff_of(args, systems, models.sizes, memory)
    names = ("models", "clients", "seconds", "zipf", "rounds", "cliff_cache", "cliff_clients")
    measured |= {
        **{name: getattr(args, name) for name in names},
        "sizes": models.sizes,
        "memory_limit": memory,
        "left_out": [_left_out(cell.system.name, cell) for cell in cells if not cell.fits],
        "cliff_left_out": [_left_out(one.name, cell) for one, cell, _ in cliff if not cell.fits],
        **measure.new_results(),
    }
    with tempfile.TemporaryDirectory(prefix="gpt2serve-models-") as logs:
        bench = measure.Bench(models, args.threads, Path(logs))
        load = Load(args.clients, args.seconds, WARM_UP_SECONDS, args.zipf)
        measure.measure_cells(bench, load, cells, args.rounds, measured)
        short = replace(
            load,
            clients=args.cliff_clients,
            seconds=CLIFF_SHARE * args.seconds,
            warm_up=CLIFF_WARM_UP_SECONDS,
        )
        fitting = [one for one in cliff if one[1].fits]
        measure.measure_cliff(bench, short, fitting, args.rounds, measured)


def cliff_of(
    args: argparse.Namespace,
    systems: Sequence[plan.System],
    sizes: Mapping[str, int],
    memory: int,
) -> list[tuple[plan.Variant, plan.Cell, list[plan.Step]]]:
    """Each server at the cliff, its cache, and what it is asked."""
    if CLIFF in args.skip:
        return []
    found = [
        (
            one,
            plan.cliff_cell(one, args.cliff_cache, sizes, memory),
            [
                step
                for step in plan.steps(one, args.cliff_cache, args.models, args.cliff_ratios)
                if step.traffic in args.cliff_traffics
            ],
        )
        for one in plan.VARIANTS
        if one.system in systems
    ]
    return [one for one in found if one[2]]


def _left_out(name: str, cell: plan.Cell) -> dict[str, Any]:
    return {"system": name, "cache": cell.cache, "cache_bytes": cell.cache_bytes}


if __name__ == "__main__":
    sys.exit(cli.run(main))
