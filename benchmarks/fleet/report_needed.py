"""What the report says of the number of replicas. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from benchmarks.common import tables

Entry = dict[str, Any]

ROUTINGS = {
    "hash": "consistent hash, bounded load",
    "random": "random",
    "least requests": "least requests of two",
}


def assumed(results: dict[str, Any]) -> str:
    given = results["assumptions"]
    return (
        f"Asked: {given['rate']:g} requests a second over all models, popularity by Zipf with "
        f"exponent {given['zipf']:g}, and p99 of the time to the first token at most "
        f"{given['bound']:g} s. A replica is a machine with the times above and "
        f"{given['cache_bytes'] / 2**30:g} GiB of model cache. Assumptions, not measurements: it "
        f"costs {given['price_per_hour']} USD an hour, and reads packages at "
        f"{given['storage_bytes_per_second'] / 1e6:.0f} MB/s before a load takes as long as "
        "above. Caches are full from the beginning, with what a long time of such requests "
        f"leaves in them. Each replica has run for {given['uptime_hours']:g} h: it checks the "
        "hashes of a model that no request has brought there in that time, which is drawn for "
        "each model and replica by the model's popularity. With hashing only a model's home has "
        "had it before."
    )


def cost(entry: Entry, results: dict[str, Any]) -> float | None:
    """USD for a million generated tokens, if the load is always this."""
    if entry["replicas"] is None:
        return None
    hourly = entry["replicas"] * results["assumptions"]["price_per_hour"]
    return float(hourly / (entry["tokens_per_second"] * 3600) * 1e6)


def _row(entry: Entry, results: dict[str, Any]) -> tuple[str, ...]:
    first, dollars = entry["first_ms"], cost(entry, results)
    return (
        _replicas(entry),
        f"{entry['hit_ratio']:.0%}",
        "-" if first["p50"] is None else f"{first['p50']:.0f}",
        "-" if first["p99"] is None else f"{first['p99']:.0f}",
        f"{entry['busy']:.0%}",
        "-" if dollars is None else f"{dollars:.2f}",
    )


def _replicas(entry: Entry) -> str:
    if entry["replicas"] is None:
        return f"not with {entry['replicas_shown']}"
    if len(entry["by_seed"]) == 1:
        return str(entry["replicas"])
    least, *_, most = sorted(entry["by_seed"], key=lambda number: number or math.inf)
    return f"{entry['replicas']} ({least}-{most or 'inf'})"


_FIGURES = ("replicas", "hits", "p50 ms", "p99 ms", "busy", "USD per million tokens")


def needed_table(results: dict[str, Any]) -> str:
    rows = [
        (f"{one['models']:,}", ROUTINGS[one["routing"]], *_row(one, results))
        for one in results["models"]
    ]
    return tables.table(("models", "routing", *_FIGURES), rows)


def findings(results: dict[str, Any]) -> str:
    """Hashing beside each other routing, for as many models as there are rows."""
    told = []
    for routing in ("random", "least requests"):
        ratios = _ratios(results["models"], routing)
        if not ratios:
            continue
        told.append(
            f"Compared with {ROUTINGS[routing]}, consistent hashing needs "
            + ", ".join(
                f"{ratio:.2f}x the replicas for {count:,} models" for count, ratio in ratios
            )
            + "."
        )
    return " ".join(told)


def _ratios(entries: Sequence[Entry], routing: str) -> list[tuple[int, float]]:
    """Replicas with hashing over replicas with `routing`, by models; only where both do."""
    by = {(one["models"], one["routing"]): one["replicas"] for one in entries}
    counts = dict.fromkeys(one["models"] for one in entries)
    pairs = [(count, by.get((count, "hash")), by.get((count, routing))) for count in counts]
    return [(count, ours / other) for count, ours, other in pairs if ours and other]


def sweeps(results: dict[str, Any]) -> list[str]:
    """What changes with rate, cache and balance, if it was asked."""
    parts = []
    for question, column in (("rates", "requests/s"), ("caches", "cache"), ("balances", "balance")):
        entries = results.get(question)
        if not entries:
            continue
        rows = [
            (_varied(question, one), ROUTINGS[one["routing"]], *_row(one, results))
            for one in entries
        ]
        parts.append(f"{_SWEEP_TITLES[question]} {entries[0]['models']:,} models.")
        parts.append(tables.table((column, "routing", *_FIGURES), rows))
    return parts


_SWEEP_TITLES = {
    "rates": "By rate, for",
    "caches": "By the cache of each replica, for",
    "balances": "By Envoy's `hash_balance_factor` (a replica gets no more than that many times "
    "the average of active requests), for",
}


def _varied(question: str, entry: Entry) -> str:
    if question == "rates":
        return f"{entry['rate']:g}"
    if question == "caches":
        return f"{entry['cache_bytes'] / 2**30:g} GiB"
    return "none" if entry["balance"] is None else f"{100 * entry['balance']:.0f}"
