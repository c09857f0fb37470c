"""The plots of the section on many models."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from benchmarks.common import plots
from benchmarks.models import cliff as cliffs
from benchmarks.models import selection
from benchmarks.models.plan import PINNED, SAME_BYTES, TRAFFICS
from benchmarks.models.selection import Selection

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_STYLES = {"ray ctranslate2": "--", PINNED.name: "--"}
_MARKS = {SAME_BYTES.name: "*", PINNED.name: "s"}


def throughput(results: dict[str, Any]) -> Figure:
    """Requests a second, and p99 beside."""
    chosen = Selection(results["cells"], "cache")
    title = f"{results['models']} models, {results['clients']} clients"
    figure, (left, right) = plots.new(title, "models that fit into the cache", "", panels=2)
    _lines(left, chosen, selection.requests)
    _lines(right, chosen, selection.p99)
    left.set_ylabel("requests/s")
    right.set_ylabel("p99, ms")
    left.legend(fontsize=8)
    return figure


def cliff(results: dict[str, Any]) -> Figure:
    """Requests a second."""
    title = f"Requests a second, with a cache for {results['cliff_cache']} models"
    figure, panels = _cliff_panels(results, title, selection.requests)
    _finish(panels, "requests/s")
    return figure


def hits(results: dict[str, Any]) -> Figure:
    """The share of requests whose model was in memory, and the best that is possible."""
    title = f"Hits, with a cache for {results['cliff_cache']} models"
    figure, panels = _cliff_panels(results, title, selection.hits)
    for axes, traffic in zip(panels, TRAFFICS, strict=True):
        places = cliffs.of(results, traffic).places
        best = [cliffs.at_best(results, traffic, place) for place in places]
        axes.plot(places, best, ":", color="#6b7280", label="at best")
    _finish(panels, "requests that did not wait for a load")
    return figure


def _cliff_panels(
    results: dict[str, Any], title: str, figure: selection.Figure
) -> tuple[Figure, list[Axes]]:
    """A panel for each traffic and a line for each system: nine lines in one would be a tangle."""
    drawn, panels = plots.new(title, "models asked / cache", "", panels=len(TRAFFICS))
    for axes, traffic in zip(panels, TRAFFICS, strict=True):
        _lines(axes, cliffs.of(results, traffic), figure)
        axes.set_title(cliffs.describe(traffic, results["zipf"]), fontsize=10)
    return drawn, panels


def _finish(panels: list[Axes], ylabel: str) -> None:
    """The same scale everywhere, and one legend."""
    top = max(axes.get_ylim()[1] for axes in panels)
    for axes in panels:
        axes.set_ylim(0, top)
    panels[0].set_ylabel(ylabel)
    panels[-1].legend(fontsize=8)


def _lines(axes: Axes, chosen: Selection, figure: selection.Figure) -> None:
    for system in chosen.systems:
        places, values = chosen.line(system, figure)
        style = next((style for name, style in _STYLES.items() if system.startswith(name)), "-")
        mark = _MARKS.get(system, "o")
        axes.plot(places, values, style, marker=mark, color=plots.colour(system), label=system)
    axes.set_ylim(bottom=0)
