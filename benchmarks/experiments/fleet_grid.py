"""Replicas by models and by rate, for docs/scaling.md.

    python -m benchmarks.experiments.fleet_grid --times benchmarks/results/fleet.json

The simulation of `benchmarks.fleet`, asked for a grid. That benchmark gives each fleet the same
number of requests, which are seconds of a fast one; here each is simulated for at least
`--seconds`, so that queues that grow are seen to grow. The same arguments print the same table.
"""

from __future__ import annotations

import argparse
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from benchmarks.fleet.answers import processes
from benchmarks.fleet.questions import Case, replicas_needed
from benchmarks.fleet.times import ServerTimes
from gpt2serve.sizes import parse_size

#: So many requests at least, for a p99.
REQUESTS = 5_000
COLUMNS = (
    *("models", "requests/s", "routing", "replicas", "requests/s each"),
    *("hits", "p50 ms", "p99 ms", "busy"),
)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--times", type=Path, required=True, help="a result of benchmarks.fleet")
    parser.add_argument("--models", type=int, nargs="+", default=[1_000, 10_000, 100_000, 10**6])
    parser.add_argument("--rates", type=float, nargs="+", default=[10.0, 50.0, 200.0])
    parser.add_argument("--routings", nargs="+", default=["hash", "least requests", "random"])
    parser.add_argument("--cache-bytes", type=parse_size, default="2GiB")
    parser.add_argument("--zipf", type=float, default=1.0)
    parser.add_argument("--bound", type=float, default=1.0, help="p99 of the first token, seconds")
    parser.add_argument("--storage", type=float, default=1000.0, help="MB/s, assumed")
    parser.add_argument("--seconds", type=float, default=120.0, help="simulated, at least")
    parser.add_argument("--processes", type=int, default=1)
    args = parser.parse_args()
    times = ServerTimes.from_file(args.times).in_a_fleet(args.storage * 1e6)
    cases = [
        Case(
            models,
            rate,
            routing,
            args.cache_bytes,
            args.zipf,
            requests=max(REQUESTS, round(args.seconds * rate)),
        )
        for models in args.models
        for rate in args.rates
        for routing in args.routings
    ]
    print(f"| {' | '.join(COLUMNS)} |")
    print("|---" * len(COLUMNS) + "|")
    with processes(args.processes) as pool:
        for case, answer in [
            (case, pool.submit(replicas_needed, case, times, args.bound)) for case in cases
        ]:
            print(line(case, answer), flush=True)


def line(case: Case, answer: Future[dict[str, Any]]) -> str:
    told = answer.result()
    replicas = told["replicas"]
    cells = [
        f"{case.models:,}",
        f"{case.rate:g}",
        case.routing,
        "none" if replicas is None else f"{replicas}",
        "-" if replicas is None else f"{case.rate / replicas:.1f}",
        f"{told['hit_ratio']:.0%}",
        f"{told['first_ms']['p50']:.0f}",
        f"{told['first_ms']['p99']:.0f}",
        f"{told['busy']:.0%}",
    ]
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
