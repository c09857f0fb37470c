"""The plots of the report. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from benchmarks.common import plots
from benchmarks.fleet.report_needed import ROUTINGS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_COLOURS = {"hash": "#c2410c", "random": "#475569", "least requests": "#0f766e"}


def replicas(results: dict[str, Any]) -> Figure:
    panels = [("models", "models", results["models"])]
    if results.get("rates"):
        panels.append(("rate", "requests a second", results["rates"]))
    bound = results["assumptions"]["bound"]
    figure, axes = plots.new(
        f"Replicas for a p99 of {bound:g} s to the first token",
        "",
        "replicas",
        panels=len(panels),
        log="x",
    )
    for one, (key, label, entries) in zip(axes, panels, strict=True):
        one.set_xlabel(label)
        for routing, name in ROUTINGS.items():
            chosen = [e for e in entries if e["routing"] == routing and e["replicas"]]
            places = [e[key] for e in chosen]
            needed = [e["replicas"] for e in chosen]
            one.plot(places, needed, marker="o", color=_COLOURS[routing], label=name)
        one.set_ylim(bottom=0)
    axes[0].legend()
    return figure


def loss(results: dict[str, Any]) -> Figure:
    figure, (axes,) = plots.new(
        "One replica is lost at 0", "seconds after the loss", "p99 to the first token, ms"
    )
    for one in results["loss"]:
        shown = [entry for entry in one["windows"] if entry["p99_ms"] is not None]
        axes.plot(
            [entry["from"] for entry in shown],
            [entry["p99_ms"] for entry in shown],
            drawstyle="steps-post",
            color=_COLOURS[one["routing"]],
            label=f"{ROUTINGS[one['routing']]}, {one['replicas']} replicas",
        )
    axes.axvline(0, color="#111827", linewidth=0.8)
    noticed = results["loss"][0]["detection"]
    axes.axvspan(0, noticed, color="#e5e7eb", zorder=0, label="until the router knows")
    bound = 1000 * results["assumptions"]["bound"]
    axes.axhline(bound, color="#9ca3af", linewidth=0.8, linestyle="--")
    axes.set_ylim(bottom=0)
    axes.legend()
    return figure
