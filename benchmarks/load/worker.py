"""Load from a process of its own, so that making it disturbs nothing else in the caller's.

As the benchmarks use it:

    with Worker("benchmarks.load.worker:Clients", {}) as clients:
        figures = clients.call(
            "run",
            target={"server": url, "api": "generate"},
            mix={"models": ["me/my-model"], "zipf": 1.0, "seed": 0},
            load={"rate": 20.0},
            seconds=10,
        )
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import time
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from benchmarks.common.machine import process_seconds
from benchmarks.load import client
from benchmarks.load.apis import APIS, Api
from benchmarks.load.live import shown as live_line
from benchmarks.load.outcome import Outcome, Progress
from benchmarks.load.summary import summary, wrong_lengths
from benchmarks.load.traffic import Lengths, Mix, Traffic, burst_times, poisson_times

TIMEOUT_SECONDS = 120.0


class Clients:
    """For `common.worker.Worker`: arguments and results are JSON."""

    def run(self, **measurement: Any) -> dict[str, Any]:
        """One measurement; see `measure` for the arguments, `summary` for the result."""
        return self.run_together({"only": measurement})["only"]

    def run_together(self, measurements: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        """Several at the same time, each under a name.

        "cpu_seconds" and "wall_seconds" are those of all together, with warm-up and grace.
        """
        cpu, wall = process_seconds(os.getpid()), time.perf_counter()
        figures = asyncio.run(_together(measurements))
        used = {
            "cpu_seconds": round(process_seconds(os.getpid()) - cpu, 2),
            "wall_seconds": round(time.perf_counter() - wall, 2),
        }
        return {name: entry | used for name, entry in figures.items()}


async def _together(measurements: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    running = [measure(**arguments) for arguments in measurements.values()]
    return dict(zip(measurements, await asyncio.gather(*running), strict=True))


async def measure(
    *,
    target: Mapping[str, Any],
    mix: Mapping[str, Any],
    load: Mapping[str, float],
    seconds: float,
    warm_up: float = 0.0,
    grace: float = math.inf,
    timeout: float = TIMEOUT_SECONDS,
    outcomes: bool = False,
    live: bool = False,
) -> dict[str, Any]:
    """Drive a server and sum up.

    target: {"server": address, "api": "generate" or "completions", "stream", "exact",
    "extra_headers"}, see `apis`. mix: the fields of `traffic.Mix`; lengths as lists
    [median, sigma, low, high]. load: {"rate": R}, {"clients": N}, or {"burst": size, "every": S}.
    warm_up: seconds of the same load before those that count. grace: seconds after those that
    count when what is still under way is cut off. outcomes: also return each outcome, as a dict.
    live: show on stderr how far it is.

    The result is that of `summary`, and "wrong_lengths": [asked, got] of each text, also of the
    warm-up, that went well but has not as many tokens as were asked for.
    """
    length = warm_up + seconds
    progress = Progress()
    async with live_line(progress) if live else contextlib.nullcontext():
        results = await drive(
            make_api(target),
            Traffic(make_mix(mix)),
            load,
            length,
            timeout=timeout,
            end=length + grace,
            progress=progress,
        )
    results = [outcome.later_by(warm_up) for outcome in results]
    figures = summary(results, seconds) | {"wrong_lengths": wrong_lengths(results)}
    return figures | ({"outcomes": [asdict(one) for one in results]} if outcomes else {})


async def drive(
    api: Api,
    traffic: Traffic,
    load: Mapping[str, float],
    seconds: float,
    *,
    timeout: float,
    end: float = math.inf,
    progress: Progress | None = None,
) -> list[Outcome]:
    """The loop that `load` names, see `measure`."""
    if "clients" in load:
        return await client.closed_loop(
            api,
            traffic.endless(),
            clients=int(load["clients"]),
            seconds=seconds,
            timeout=timeout,
            end=end,
            progress=progress,
        )
    if "burst" in load:
        times = burst_times(int(load["burst"]), load["every"], seconds)
    else:
        times = poisson_times(load["rate"], seconds, traffic.rng)
    asks = traffic.at(times)
    return await client.open_loop(api, asks, timeout=timeout, end=end, progress=progress)


def make_api(target: Mapping[str, Any]) -> Api:
    options = dict(target)
    return APIS[options.pop("api", "generate")](**options)


def make_mix(mix: Mapping[str, Any]) -> Mix:
    options = dict(mix)
    for name in ("prompts", "outputs"):
        if name in options:
            options[name] = Lengths(*options[name])
    return Mix(**(options | {"models": tuple(options["models"])}))
