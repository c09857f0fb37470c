"""The simulation beside the real server: the same requests, the same cache at the beginning."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.common.measuring import say, undisturbed
from benchmarks.common.servers import Server
from benchmarks.common.worker import Worker
from benchmarks.fleet.calibrate import Probe
from benchmarks.fleet.figures import Requests, figures, relative_errors
from benchmarks.fleet.questions import seconds_alone
from benchmarks.fleet.replica import Settings
from benchmarks.fleet.routing import Uniform
from benchmarks.fleet.simulation import Fleet
from benchmarks.fleet.times import ServerTimes
from benchmarks.fleet.trace import recorded
from gpt2serve.engine.worker import STEPS_WORTH_PACKING

ZIPF = 1.0


class Validation:
    """Drives a server with open-loop traffic and predicts what comes of it."""

    def __init__(
        self,
        server: Server,
        models: Sequence[str],
        times: ServerTimes,
        settings: Settings,
    ) -> None:
        self._server, self._models = server, list(models)
        self._times, self._settings = times, settings
        self._ranks = {model: rank for rank, model in enumerate(models)}
        places = settings.cache_bytes // times.model_bytes
        #: Asked for one after the other before the traffic, and packed then: more than fit,
        #: popular ones last.
        self._prime = list(range(min(len(self._models), places + 2)))[::-1]

    def compare(
        self, clients: Worker, rate: float, seconds: float, seed: int, tries: int = 1
    ) -> dict[str, Any]:
        """One rate: measured, predicted, and the relative errors."""
        say(f"traffic: {rate:.2f} requests a second for {seconds:.0f} s")
        probe = Probe(self._server.url)

        def drive() -> dict[str, Any]:
            for rank in self._prime:
                probe.generate(self._models[rank], "the", STEPS_WORTH_PACKING)
            return dict(clients.call("run", **self._measurement(rate, seconds, seed)))

        told = undisturbed(drive, [self._server.pid, clients.pid], tries)
        outcomes = told["outcomes"]
        measured = figures(measured_requests(outcomes))
        predicted = figures(self._simulate(outcomes))
        return {
            "rate": round(rate, 3),
            "seconds": seconds,
            "others": told["others"],
            "lag_ms": told["lag_ms"],
            "codes": told["codes"],
            "measured": measured,
            "predicted": predicted,
            "errors": relative_errors(predicted, measured),
        }

    def _measurement(self, rate: float, seconds: float, seed: int) -> dict[str, Any]:
        return {
            "target": {"server": self._server.url, "stream": True, "exact": True},
            "mix": {"models": self._models, "zipf": ZIPF, "seed": seed},
            "load": {"rate": rate},
            "seconds": seconds,
            "outcomes": True,
        }

    def _simulate(self, outcomes: list[dict[str, Any]]) -> Requests:
        """The very requests of the measurement, on one replica."""
        rows = [
            (one["due"], self._ranks[one["ask"]["model"]], one["prompt_tokens"], one["tokens"])
            for one in outcomes
            if one["code"] == "ok"
        ]
        fleet = Fleet(1, Uniform(0), self._times, self._settings, recorded(rows))
        fleet.warm([self._prime], None)
        return fleet.run().requests


def measured_requests(outcomes: list[dict[str, Any]]) -> Requests:
    """From the outcomes of `benchmarks.load`; what failed never ended."""
    rows = sorted(outcomes, key=lambda one: float(one["due"]))
    good = np.array([one["code"] == "ok" for one in rows])
    due = np.array([one["due"] for one in rows])
    first = np.array([np.inf if one["first"] is None else one["first"] for one in rows])
    ended = np.array([one["ended"] for one in rows])
    return Requests(
        due=due,
        first=np.where(good, first - due, np.inf),
        total=np.where(good, ended - due, np.inf),
        tokens=np.array([one["tokens"] for one in rows], dtype=np.int64),
        hits=np.array([one["load_ms"] == 0 for one in rows]),
    )


def rates(times: ServerTimes, shares: Sequence[float]) -> list[float]:
    """Requests a second: `shares` of what one request after the other would allow."""
    return [share / seconds_alone(times) for share in shares]
