"""Does a seed name a text? The same requests alone, together with others, and after a restart.

Seeded requests with prompts of different lengths go to a sample model that was trained, so that
texts end by themselves and at different times. Each system answers them one after another; 32 at a
time; and, after its process was started anew, 32 at a time in another order. What counts is the
share of texts that are the same as alone. gpt2serve is a real server that is asked over HTTP.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.common import cli, servers
from benchmarks.common.measuring import note_failure, say
from benchmarks.common.worker import WorkerFailed
from benchmarks.determinism import report, systems
from benchmarks.determinism.comparing import compare
from benchmarks.determinism.requests import another_order, make
from benchmarks.determinism.running import TOKENS, TOP_K
from benchmarks.peers import (
    CT2_INT8,
    ENGINE_INT8,
    LLAMA_CPP,
    OPTIMUM,
    SYSTEMS,
    TRANSFORMERS,
    System,
    installed,
    versions,
)

BATCH = 32
REQUESTS, QUICK_REQUESTS = 200, 50
QUICK_SYSTEMS = (ENGINE_INT8, TRANSFORMERS, CT2_INT8)

_EXAMPLES = f"""\
  python -m benchmarks.determinism --quick
      {QUICK_REQUESTS} requests to {", ".join(QUICK_SYSTEMS)}; half a minute on two cores
  python -m benchmarks.determinism
      {REQUESTS} requests to all; about four minutes
  python -m benchmarks.determinism --skip "{OPTIMUM}" --skip "{LLAMA_CPP}"
      less of it

systems for --skip: {", ".join(system.name for system in SYSTEMS)}"""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = cli.new_parser("determinism", __doc__, _EXAMPLES)
    parser.add_argument(
        "--skip",
        action="append",
        default=[],
        metavar="SYSTEM",
        choices=[system.name for system in SYSTEMS],
        help="leave this system out; may be repeated",
    )
    args = parser.parse_args(arguments)
    chosen = installed(select(skip=args.skip, quick=args.quick))
    measured = cli.begin(args, arguments)
    measured["header"]["versions"] |= versions(chosen)
    with cli.keeping(args, measured):
        run(args.cache / "determinism", chosen, args.threads, measured, quick=args.quick)
    cli.finish(args, measured, report)
    return 1 if measured["failed"] else 0


def select(*, skip: Sequence[str], quick: bool) -> list[System]:
    return [
        system
        for system in SYSTEMS
        if system.name not in skip and (system.name in QUICK_SYSTEMS or not quick)
    ]


def run(
    folder: Path, chosen: Sequence[System], threads: int, measured: dict[str, Any], *, quick: bool
) -> None:
    """Fill `measured`; the model in its formats and the servers' logs are kept in `folder`."""
    requests = make(QUICK_REQUESTS if quick else REQUESTS)
    order = another_order(len(requests))
    assets = systems.prepare(folder, chosen)
    asked = {"requests": len(requests), "batch": BATCH, "tokens": TOKENS, "top_k": TOP_K}
    measured |= {**asked, "failed": {}, "systems": []}
    for system in chosen:
        say(f"{system.name}: {len(requests)} requests alone, {BATCH} at a time, after a restart")
        try:
            start = systems.starter(system, assets, threads, requests)
            measured["systems"].append({"system": system.name, **compare(start, BATCH, order)})
        except (WorkerFailed, servers.ServerFailed, OSError) as error:
            note_failure(measured["failed"], system.name, error)


if __name__ == "__main__":
    sys.exit(cli.run(main))
