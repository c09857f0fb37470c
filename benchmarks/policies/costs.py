"""What a miss costs, from the results of other benchmarks. Pure but for reading them."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.coldstart.figures import WARM, starts
from benchmarks.coldstart.names import HTTP
from benchmarks.common import results
from benchmarks.fleet.times import Curve, ServerTimes

#: The sources. Without them there are no costs, and no simulation.
COLDSTART, FLEET = "coldstart", "fleet"


@dataclass(frozen=True)
class Costs:
    """Of a server with models of 124M parameters in int8.

    miss_ms: by which the first token is later if the model is not in memory but its files are in
    the page cache. core_ms: of a core, that its load takes. hot_ms: to the first token if the
    model is there. token_ms: each token after that. model_bytes: as the cache counts it.
    """

    miss_ms: float
    core_ms: float
    hot_ms: float
    token_ms: float
    model_bytes: int

    def load_seconds(self, size: int) -> float:
        """A model that is larger takes longer in proportion."""
        return self.miss_ms / 1000 * size / self.model_bytes

    def answer_seconds(self, tokens: int) -> float:
        return (self.hot_ms + (tokens - 1) * self.token_ms) / 1000

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def measured() -> Costs:
    """Raises OSError or LookupError where the results are missing or of another form."""
    coldstart = results.load(results.path_of(COLDSTART, quick=False))
    return from_results(coldstart, results.load(results.path_of(FLEET, quick=False)))


def from_results(coldstart: Mapping[str, Any], fleet: Mapping[str, Any]) -> Costs:
    """What makes the first token late takes a core, and packing, which does not, another one."""
    times = ServerTimes.from_json(fleet["times"])
    hot = 1000 * (times.overhead + Curve(times.prefill).at(coldstart["prompt_tokens"]))
    cold = statistics.median(one["first_ms"] for one in starts(dict(coldstart), HTTP, WARM))
    return Costs(
        miss_ms=round(cold - hot, 1),
        core_ms=round(cold - hot + 1000 * times.pack, 1),
        hot_ms=round(hot, 1),
        token_ms=round(1000 * Curve(times.decode).at(1), 2),
        model_bytes=times.model_bytes,
    )
