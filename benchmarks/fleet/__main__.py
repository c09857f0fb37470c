"""How many replicas does a fleet need, for how many models, at what price?

First a real server is measured: how long its steps and its loads take. Then real open-loop
traffic over 40 models with a cache for 10 shows how well a simulation with those times predicts
throughput, hits and latencies. Then the simulation answers for fleets that no machine at hand
has room for: up to 1,000,000 models on as many replicas as it takes, behind Envoy's consistent
hashing with bounded load or other routings.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.common import cli, copies, measuring, model
from benchmarks.common.servers import gpt2serve
from benchmarks.common.worker import Worker
from benchmarks.fleet import calibrate, report, validate
from benchmarks.fleet.answers import Answers, Effort, Wishes
from benchmarks.fleet.questions import LossPlan
from benchmarks.fleet.replica import Settings
from benchmarks.fleet.times import ServerTimes
from gpt2serve.errors import SettingsError
from gpt2serve.package import package_path, read_manifest
from gpt2serve.sizes import parse_size

_EXAMPLES = """\
  python -m benchmarks.fleet --quick
  python -m benchmarks.fleet --rate 200 --bound 0.5 --cache-bytes 8GiB --price-per-hour 0.17
      another fleet: 200 requests a second, first token within half a second for 99 in 100
  python -m benchmarks.fleet --times benchmarks/results/fleet.json
      no server is measured, the times are those of a former result, or of another machine

About 6 minutes, with --quick one."""

#: The real server: that many models, and a cache for so many of them.
MODELS, PLACES = 40, 10


@dataclass(frozen=True)
class Plan:
    """shares, seconds: of real traffic, see `validate.rates`."""

    effort: calibrate.Effort
    shares: tuple[float, ...]
    seconds: float
    simulations: Effort
    models: tuple[int, ...]
    sweeps: bool
    loss: LossPlan


FULL = Plan(
    effort=calibrate.FULL,
    shares=(0.3, 0.7, 1.0, 1.3),
    seconds=30.0,
    simulations=Effort(requests=5_000, seeds=3),
    models=(1_000, 10_000, 100_000, 1_000_000),
    sweeps=True,
    loss=LossPlan(),
)
QUICK = Plan(
    effort=calibrate.QUICK,
    shares=(0.3, 1.0),
    seconds=8.0,
    simulations=Effort(requests=2_500, seeds=2),
    models=(1_000, 1_000_000),
    sweeps=False,
    loss=LossPlan(models=1_000, before=30.0, after=60.0, runs=2),
)


def main(arguments: Sequence[str] | None = None) -> int:
    args = parser().parse_args(arguments)
    plan = QUICK if args.quick else FULL
    results = cli.begin(args, arguments)
    wishes = Wishes(args.rate, args.bound, args.cache_bytes, args.zipf, args.uptime)
    results["assumptions"] = vars(wishes) | {
        "price_per_hour": args.price_per_hour,
        "storage_bytes_per_second": args.storage * 1e6,
    }
    with cli.keeping(args, results):
        if args.times is None:
            times = measure(args, plan, results)
        else:
            times = args.times
            results["times"] = times.as_json()
        loss = replace(plan.loss, detection=args.detection, connect=args.connect_timeout)
        fleet = times.in_a_fleet(args.storage * 1e6)
        answer(fleet, wishes, replace(plan, loss=loss), results)
    cli.finish(args, results, report)
    return 0


def parser() -> argparse.ArgumentParser:
    made = cli.new_parser("fleet", __doc__, _EXAMPLES)
    add = made.add_argument
    add("--rate", type=float, default=50.0, metavar="R", help="requests a second %(default)s")
    bound = "p99 of the time to the first token, in seconds (default: %(default)s)"
    add("--bound", type=float, default=1.0, metavar="S", help=bound)
    cache = "model cache of a replica (default: 2GiB, what a server with 4 GiB takes)"
    add("--cache-bytes", type=_size, default="2GiB", metavar="SIZE", help=cache)
    storage = "MB a second at which a replica reads packages (default: %(default)s, assumed)"
    add("--storage", type=float, default=1000.0, metavar="MB", help=storage)
    price = "USD for an hour of a replica (default: %(default)s, assumed for 2 vCPU and 4 GiB)"
    add("--price-per-hour", type=float, default=0.085, metavar="USD", help=price)
    zipf = "exponent of the models' popularity (default: %(default)s)"
    add("--zipf", type=float, default=1.0, metavar="S", help=zipf)
    uptime = "how long each replica has run (default: %(default)s): it checks the hashes of models "
    uptime += "that it had not until then"
    add("--uptime", type=float, default=24.0, metavar="HOURS", help=uptime)
    detection = "how long a replica is gone until the router knows (default: %(default)s, Envoy "
    detection += "with three health checks, one every 2 s)"
    add("--detection", type=float, default=6.0, metavar="S", help=detection)
    connect = "after which the router tries another replica (default: %(default)s)"
    add("--connect-timeout", type=float, default=1.0, metavar="S", help=connect)
    times = "measure no server: times from a result of this benchmark, or from JSON with the same "
    times += 'fields as its "times"'
    add("--times", type=_times, metavar="FILE", help=times)
    return made


def _times(path: str) -> ServerTimes:
    try:
        return ServerTimes.from_file(Path(path))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _size(text: str) -> int:
    try:
        return parse_size(text)
    except SettingsError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def measure(args: argparse.Namespace, plan: Plan, results: dict[str, Any]) -> ServerTimes:
    """The times of a real server, and the simulation beside it; both go into `results`."""
    assets = model.prepare(args.cache, ["package-int8"])
    folder: Path = args.cache / "fleet"
    made = copies.many(assets, MODELS, ["package-int8"], folder)
    models = [one.model for one in made]
    package = package_path(made[0].store, models[0], "cpu", "int8")
    # Half a place more than wanted: a size that is measured varies a little.
    cache_bytes = round((PLACES + 0.5) * read_manifest(package).bytes_needed)
    options = ["--model-cache-bytes", str(cache_bytes)]
    log = folder / "server.log"
    results |= {"places": {"models": MODELS, "cache": PLACES}, "calibration": []}
    with (
        gpt2serve(
            made[0].store, log, precision="int8", threads=args.threads, options=options
        ) as server,
        Worker("benchmarks.load.worker:Clients", {}) as clients,
    ):
        calibration = calibrate.Calibration(
            server.url, server.pid, assets.checkpoint, models, plan.effort, results["calibration"]
        )
        times = calibration.times()
        results |= {"times": times.as_json(), "validation": []}
        checks = validate.Validation(server, models, times, Settings(cache_bytes=cache_bytes))
        rates = zip(plan.shares, validate.rates(times, plan.shares), strict=True)
        for seed, (share, rate) in enumerate(rates):
            told = checks.compare(clients, rate, plan.seconds, seed, plan.effort.tries)
            results["validation"].append({"share": share} | told)
    return times


def answer(times: ServerTimes, wishes: Wishes, plan: Plan, results: dict[str, Any]) -> None:
    """What the simulation says, and what it took, into `results`."""
    processes = len(os.sched_getaffinity(0))
    started = time.perf_counter()
    answers = Answers(times, wishes, plan.simulations, processes)
    measuring.say(f"simulating fleets in {processes} processes")
    answers.all(results, plan.models, plan.loss, sweeps=plan.sweeps)
    seconds = time.perf_counter() - started
    results["simulation"] = {"seconds": round(seconds, 1), "processes": processes}


if __name__ == "__main__":
    sys.exit(cli.run(main))
