"""The plots of the section on many models."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from benchmarks.common import plots
from benchmarks.models import selection
from benchmarks.models.plan import SAME_BYTES
from benchmarks.models.selection import Selection

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_STYLES = {"ray ctranslate2": "--", "gpt2serve int8, ": "--"}


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
    """Requests a second, and the share of hits beside."""
    chosen = Selection(results["cliff"], "ratio")
    title = f"A cache for {results['cliff_cache']} models"
    figure, (left, right) = plots.new(title, "models asked / cache", "", panels=2)
    _lines(left, chosen, selection.requests)
    _lines(right, chosen, selection.hits)
    best = [min(1.0, 1 / place) for place in chosen.places]
    right.plot(chosen.places, best, ":", color="#6b7280", label="at best")
    left.set_ylabel("requests/s")
    right.set_ylabel("requests whose model was loaded")
    left.legend(fontsize=8)
    right.legend(fontsize=8)
    return figure


def _lines(axes: Axes, chosen: Selection, figure: selection.Figure) -> None:
    for system in chosen.systems:
        places, values = chosen.line(system, figure)
        style = next((style for name, style in _STYLES.items() if system.startswith(name)), "-")
        mark = "*" if system == SAME_BYTES.name else "o"
        axes.plot(places, values, style, marker=mark, color=plots.colour(system), label=system)
    axes.set_ylim(bottom=0)
