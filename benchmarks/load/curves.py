"""The plot of latency against offered load. Imports matplotlib when it is drawn."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from benchmarks.common import plots
from benchmarks.load.rounds import measured_systems, over_rounds, points
from benchmarks.load.search import MOST_TTFT_MS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_PANELS = {"ttft_ms": "to the first token", "end_to_end_ms": "end to end"}


def latency(results: dict[str, Any]) -> Figure:
    figure, axes = plots.new(
        "Latency against offered load: p50 (line) and p99 (dashed); hollow: not sustained",
        "requests per second offered",
        "milliseconds",
        panels=len(_PANELS),
        log="xy",
    )
    for axis, (key, title) in zip(axes, _PANELS.items(), strict=True):
        axis.set_title(title, fontsize=10)
        _plain_numbers(axis)
        for system in measured_systems(results):
            _curve(axis, points(results["load"], system), key, system, plots.colour(system))
    axes[0].axhline(MOST_TTFT_MS, color="#9ca3af", linewidth=1, linestyle=":")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, fontsize=8)
    return figure


def _plain_numbers(axis: Axes) -> None:
    """1, 2, 5, 10 ... instead of powers of ten, of which a short axis shows one or none."""
    from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

    for each in (axis.xaxis, axis.yaxis):
        each.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        each.set_minor_locator(NullLocator())
        each.set_major_formatter(StrMethodFormatter("{x:g}"))


def _curve(
    axis: Axes, groups: list[list[dict[str, Any]]], key: str, label: str, colour: str
) -> None:
    for rank, style in (("p50", "-"), ("p99", "--")):
        measured = [(group, over_rounds(group, key, rank)) for group in groups]
        known = [(group, figure.median) for group, figure in measured if figure is not None]
        rates = [group[0]["rate"] for group, _ in known]
        values = [value for _, value in known]
        axis.plot(rates, values, style, color=colour, label=label if rank == "p50" else None)
        for (group, value), rate in zip(known, rates, strict=True):
            held = 2 * sum(entry["sustained"] for entry in group) >= len(group)
            fill = colour if held else "white"
            axis.plot(rate, value, "o", color=colour, markerfacecolor=fill)
