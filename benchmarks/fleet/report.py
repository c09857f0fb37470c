"""The report of `benchmarks.fleet`, made from its raw results. Pure."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, Any

from benchmarks.common import measuring, tables
from benchmarks.fleet import report_needed, report_plots, report_server
from benchmarks.fleet.report_needed import ROUTINGS, Entry

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TITLE = "Scale by simulation"


def markdown(results: dict[str, Any]) -> str:
    return tables.paragraphs(
        _what(results),
        tables.header_text(results["header"]),
        measuring.disturbance([*results.get("calibration", []), *results.get("validation", [])]),
        "### What the simulation knows of the server",
        report_server.times_table(results),
        *_validation(results),
        "### Replicas needed",
        report_needed.assumed(results),
        report_needed.needed_table(results),
        report_needed.findings(results),
        "![Replicas needed by models and by rate](benchmarks/fleet-replicas.svg)",
        *report_needed.sweeps(results),
        "### A replica is lost",
        _loss(results),
        "![p99 around the loss of a replica](benchmarks/fleet-loss.svg)",
        _effort(results),
    )


def _validation(results: dict[str, Any]) -> list[str]:
    if "validation" not in results:
        return []
    return ["### Prediction beside measurement", report_server.validation(results)]


def _what(results: dict[str, Any]) -> str:
    return f"{_SIMULATED} {_measured(results)}\n\n{_MISSING}"


_SIMULATED = (
    "A discrete-event simulation of replicas behind a router. Which models are in memory is "
    "decided by the server's own `ModelCache`, whose turn it is by its `Turns`, which step follows "
    "by the scheduler's rules (held against the real one by a property test), where a request goes "
    "as Envoy does it. A cold model is loaded, computes unpacked, and is packed by the server's "
    "rules; "
    "only the time that work takes is put in from outside."
)
_MISSING = (
    "Not in the simulation: the network, KV cache as a limit, prompts longer than a chunk, and "
    "the spread of step times."
)


def _measured(results: dict[str, Any]) -> str:
    if "validation" not in results:
        return (
            "Here it was given with `--times`, not measured in this run, and nothing was held "
            "against a real server."
        )
    places = results["places"]
    return (
        f"It was measured in this run, on a real server with {places['models']} models of 124M "
        f"parameters (int8) and a cache for {places['cache']}.\n\n"
        "Nothing is fitted. The same server then got open-loop traffic with Poisson arrivals, "
        "lengths like tweets and Zipf popularity, the simulation got the very same requests, and "
        "both results stand side by side with the errors, whatever they are. Answers for fleets "
        "are worth as much as these errors say."
    )


_SIDES = ("before", "unnoticed", "after")


def _loss(results: dict[str, Any]) -> str:
    entries = results["loss"]
    rows = [
        (
            ROUTINGS[one["routing"]],
            str(one["replicas"]),
            _change(one, "hit_ratio", lambda value: f"{value:.1%}"),
            _change(one, "p50_ms", lambda value: f"{value:.0f}"),
            _change(one, "p99_ms", lambda value: f"{value:.0f}"),
            " -> ".join(_spread(one["p99_by_run"][side]) for side in _SIDES),
            f"{one['lost'] / one['runs']:.1f}",
            f"{one['again'] / one['runs']:.1f}",
            str(sum(one[side]["failed"] for side in _SIDES[1:])),
        )
        for one in entries
    ]
    header = (
        *("routing", "replicas", "hits", "p50 ms", "p99 ms", "p99 of single runs"),
        *("broken", "sent again", "refused"),
    )
    first = entries[0]
    return tables.paragraphs(
        f"{first['models']:,} models, {first['rate']:g} requests a second, as many replicas as "
        "are just enough, of which one is gone at once, says nothing, and is not replaced. The "
        f"router goes on sending requests there for {first['detection']:g} s, which is an "
        "assumption (by default three of Envoy's health checks, one every 2 s). Each of them goes "
        f"to another replica when it has waited {first['connect']:g} s for a connection, as with "
        "Envoy's `retry_on: connect-failure` and `previous_hosts`. When the router knows, answers "
        "that had begun are broken, and requests without an answer so far go to another replica "
        "(`retry_on: reset`). Without these retries all that were sent again fail as well.",
        f"The half minute before -> the {first['detection']:g} s until the router knows -> the "
        f"minute after that; time to the first token; {first['runs']} runs with different "
        "requests put together, without the broken ones. Broken and sent again: for each loss.",
        tables.table(header, rows),
        *(_moved(one) for one in entries if one["moved"]),
    )


def _change(entry: Entry, name: str, text: Any) -> str:
    values = [entry[side][name] for side in _SIDES]
    return " -> ".join("-" if value is None else text(value) for value in values)


def _spread(values: list[float | None]) -> str:
    """Least to most; some may be infinite, and are None."""
    finite = sorted(value for value in values if value is not None)
    if not finite:
        return "-"
    return f"{finite[0]:.0f}-" + (f"{finite[-1]:.0f}" if len(finite) == len(values) else "inf")


def _moved(entry: Entry) -> str:
    moved = entry["moved"]
    return (
        f"With consistent hashing {moved['least']:.1%} to {moved['most']:.1%} of the models get "
        f"another home, by which replica is lost (the share of one in {entry['replicas']} is "
        f"{1 / entry['replicas']:.1%}); no other model moves."
    )


def _effort(results: dict[str, Any]) -> str:
    entries = [
        one for name in ("models", "rates", "caches", "balances") for one in results.get(name, [])
    ]
    simulation = results["simulation"]
    events = sum(one["all_events"] for one in entries)
    requests = statistics.median(one["requests"] for one in entries)
    seeds = max(len(one["by_seed"]) for one in entries)
    return (
        f"Each fleet was simulated with about {requests:,.0f} requests that count, after a tenth "
        f"that does not. Replicas by models were searched with {seeds} seeds, each with other "
        "requests: the figures are those of the seed in the middle, of two the higher, and in "
        "brackets is what all need. Sweeps have one seed: as much may be chance in them. "
        f"{sum(one['tried'] for one in entries)} simulations with {events / 1e6:.1f} million "
        f"events, and the loss of a replica, took {simulation['seconds']:.0f} s on "
        f"{simulation['processes']} cores."
    )


def plots(results: dict[str, Any]) -> dict[str, Figure]:
    return {"replicas": report_plots.replicas(results), "loss": report_plots.loss(results)}
