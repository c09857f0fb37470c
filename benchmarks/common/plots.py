"""How all plots look. matplotlib is imported when a plot is made, not before."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: A system has one colour in all plots. The longest name that begins a label counts.
COLOURS = {
    "gpt2serve": "#c2410c",
    "gpt2serve fp32": "#fb923c",
    "transformers": "#1d4ed8",
    "optimum": "#7dd3fc",
    "ctranslate2": "#15803d",
    "ctranslate2 fp32": "#86efac",
    "llama.cpp": "#7e22ce",
    "ray": "#0f766e",
    "fastapi": "#475569",
}
#: Figures are the same bytes for the same results, so that a rebuilt page has no differences.
_STYLE: Any = {
    "svg.hashsalt": "gpt2serve",
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e5e7eb",
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "lines.markersize": 4,
}


def colour(label: str) -> str:
    names = [name for name in COLOURS if label.lower().startswith(name)]
    return COLOURS[max(names, key=len)] if names else "#111827"


def new(
    title: str, xlabel: str, ylabel: str, *, panels: int = 1, log: str = ""
) -> tuple[Figure, list[Axes]]:
    """A figure with `panels` axes side by side. log: the axes that are logarithmic, as "xy"."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(7.2 if panels == 1 else 4.2 * panels, 4), layout="constrained")
        axes = list(figure.subplots(1, panels, squeeze=False)[0])
    figure.suptitle(title, fontsize=11)
    for one in axes:
        one.set_xlabel(xlabel)
        one.set_ylabel(ylabel)
        one.set_xscale("log" if "x" in log else "linear")
        one.set_yscale("log" if "y" in log else "linear")
    return figure, axes


def save(figure: Figure, path: Path) -> None:
    import matplotlib as mpl

    path.parent.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context(_STYLE):
        figure.savefig(path, format="svg", metadata={"Date": None, "Creator": None})
