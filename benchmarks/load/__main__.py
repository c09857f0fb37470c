"""Load test of a deployment, or of this server beside others.

With --url it drives that server, with requests of many models (Zipf), at random times (open loop),
by clients that wait (closed loop) or in bursts, and reports time to first token, time per token,
end to end (p50, p90, p99, max), rates, errors by code and the share of cold starts. In open loops
and bursts a latency counts from the moment when the request was due, so neither a slow server nor
a slow client can hide. Ctrl-C ends it and reports what was done until then.

Without --url it starts servers on this machine, one model of GPT-2's size on each, and measures
latency against offered load up to what each sustains: about 9 minutes; with --quick one minute,
gpt2serve in int8 and FastAPI around transformers only.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from benchmarks.common import cli
from benchmarks.common.measuring import say
from benchmarks.load import comparison, deployment, options, report, systems


def main(arguments: Sequence[str] | None = None) -> int:
    parser = options.parser(__doc__)
    parser.add_argument(
        "--skip",
        action="append",
        default=[],
        choices=[system.name for system in systems.SYSTEMS[1:]],
        help="leave this server out of the comparison; may be given more than once",
    )
    args = parser.parse_args(arguments)
    return deployment.run(args, arguments) if args.url else _compare(args, arguments)


def _compare(args: argparse.Namespace, arguments: Sequence[str] | None) -> int:
    results = cli.begin(args, arguments)
    plan = comparison.QUICK if args.quick else comparison.Plan()
    chosen = _installed(args)
    try:
        with cli.keeping(args, results):
            comparison.run(results, chosen, plan, threads=args.threads, cache=args.cache)
    except KeyboardInterrupt:
        return 130
    cli.finish(args, results, report)
    return 1 if results["failed"] else 0


def _installed(args: argparse.Namespace) -> list[systems.System]:
    chosen = []
    for system in systems.QUICK if args.quick else systems.SYSTEMS:
        if system.missing:
            say(f"without {system.name}: {', '.join(system.missing)}; {system.install}")
        elif system.name not in args.skip:
            chosen.append(system)
    return chosen


if __name__ == "__main__":
    sys.exit(main())
