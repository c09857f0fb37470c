"""Where the time of a token goes.

1. A decode step of 1, 16 and 64 sequences: in onnxruntime, in sampling, in the rest of Python.
2. The time in onnxruntime by op, from its own profile.
3. HTTP: the engine alone, whole answers, and streams, with 16 clients; what the server's event
   loop and the clients work per token; and the same under other HTTP servers.

With --against an earlier commit is measured in turn with what is here: what a change brought.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from benchmarks.common import cli, model
from benchmarks.profile import report, versions
from benchmarks.profile.measure import CLIENTS, OUTPUTS, Profile

_EXAMPLES = """\
  python -m benchmarks.profile --quick
      the engine's steps and HTTP, three rounds of a second each
  python -m benchmarks.profile
      more rounds, and all HTTP servers; about five minutes on two cores
  python -m benchmarks.profile --against HEAD~1 --skip servers
      before and after the last change
  python -m benchmarks.profile --batches 1 8 --skip http --skip servers
      less of it"""

PARTS = ("steps", "ops", "http", "servers")
ROUNDS, QUICK_ROUNDS = 7, 3


def main(arguments: Sequence[str] | None = None) -> int:
    args = parser().parse_args(arguments)
    results = cli.begin(args, arguments)
    assets = model.prepare(args.cache, [f"package-{args.precision}"])
    measured = [versions.now(assets), *_earlier(args, assets)]
    rounds = args.rounds or (QUICK_ROUNDS if args.quick else ROUNDS)
    results |= {"rounds": rounds, "precision": args.precision, "clients": CLIENTS}
    results |= {"outputs": OUTPUTS, "versions": [version.name for version in measured]}
    with cli.keeping(args, results):
        measure(Profile(args, assets, measured), args, results)
    cli.finish(args, results, report)
    return 0


def _earlier(args: argparse.Namespace, assets: model.Assets) -> list[versions.Version]:
    if args.against is None:
        return []
    version = versions.earlier(args.against, assets, args.cache, args.precision)
    return [] if version is None else [version]


def measure(profile: Profile, args: argparse.Namespace, results: dict[str, Any]) -> None:
    parts = {
        "steps": profile.steps,
        "ops": profile.ops,
        "http": profile.http,
        "servers": profile.other_servers,
    }
    for name, part in parts.items():
        results[name] = []
        if name not in args.skip and not (args.quick and name == "servers"):
            part(results["rounds"], results[name])


def parser() -> argparse.ArgumentParser:
    made = cli.new_parser("profile", __doc__, _EXAMPLES)
    add = made.add_argument
    add("--against", metavar="COMMIT", help="measure the server of this commit, too")
    rounds = f"default: {ROUNDS}, with --quick {QUICK_ROUNDS}"
    add("--rounds", type=cli.positive, metavar="N", help=rounds)
    add("--batches", type=cli.positive, nargs="+", default=[1, 16, 64], metavar="B")
    add("--precision", choices=("int8", "fp32"), default="int8")
    add("--seconds", type=cli.positive, default=3, metavar="S", help="of each HTTP measurement")
    add("--skip", action="append", default=[], choices=PARTS, help="may be repeated")
    return made


if __name__ == "__main__":
    sys.exit(cli.run(main))
