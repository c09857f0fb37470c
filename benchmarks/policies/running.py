"""Simulates the cells of a plan, and takes their figures. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from benchmarks.policies import plan
from benchmarks.policies.cache import PolicyCache
from benchmarks.policies.costs import Costs
from benchmarks.policies.plan import Cell
from benchmarks.policies.simulation import Met, Outcome, simulate
from benchmarks.policies.traces import Trace


def run(cell: Cell, rate: float, costs: Costs, seed: int) -> Iterator[dict[str, Any]]:
    """An entry of the results for each policy."""
    trace = plan.trace(cell, rate, costs, seed)
    budget = plan.budget(cell, costs, seed)
    for name in cell.policies:
        cache = PolicyCache(budget, plan.POLICIES[name](budget, trace))
        outcome = simulate(cache, trace, costs.load_seconds)
        yield {
            "trace": cell.kind.name,
            "models": cell.fleet.models,
            "sizes": cell.fleet.sizes,
            "cache": cell.share,
            "policy": name,
        } | figures(trace, outcome)


def figures(trace: Trace, outcome: Outcome) -> dict[str, Any]:
    """Of the requests after the warm-up. Waits count also those that were short of room."""
    counted = slice(round(plan.WARM_UP * len(trace.models)), None)
    met, waits = outcome.met[counted], 1000 * outcome.waits[counted]
    sizes = trace.sizes[trace.models[counted]]
    missed = met == Met.MISS
    return {
        "requests": len(met),
        "hits": int((met == Met.HIT).sum()),
        "joined": int((met == Met.JOINED).sum()),
        "misses": int(missed.sum()),
        "bytes_asked": int(sizes.sum()),
        "bytes_loaded": int(sizes[missed].sum()),
        "wait_ms": round(float(waits.mean()), 2),
        "wait_p99_ms": round(float(np.percentile(waits, 99)), 1),
    }
