"""The plot of `benchmarks.coldstart`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from benchmarks.coldstart.figures import COLD, WARM, phases, starts, systems
from benchmarks.coldstart.phases import PHASES
from benchmarks.common import plots as common

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLOURS = {
    "check": "#a16207",
    "session": "#c2410c",
    "warm-up": "#fdba74",
    "model": "#4338ca",
    "context": "#a5b4fc",
    "load": "#1d4ed8",
    "prefill": "#15803d",
    "rest": "#94a3b8",
}


def plots(results: dict[str, Any]) -> dict[str, Figure]:
    caches = [cache for cache in (WARM, COLD) if any_of(results, cache)]
    figure, axes = common.new(
        "To the first token, by phase (medians)", "ms", "", panels=len(caches)
    )
    names = systems(results)
    for cache, one in zip(caches, axes, strict=True):
        one.set_title(f"page cache {cache}", fontsize=10)
        _bars(one, {name: phases(starts(results, name, cache)) for name in names})
    for one in axes[1:]:
        one.set_yticklabels([])
    handles, labels = _legend(axes)
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    return {"phases": figure}


def any_of(results: dict[str, Any], cache: str) -> bool:
    return any(one["cache"] == cache for one in results["starts"])


def _bars(axes: Axes, by_system: dict[str, dict[str, float]]) -> None:
    names = list(by_system)
    left = [0.0] * len(names)
    for phase in PHASES:
        widths = [by_system[name].get(phase, 0.0) for name in names]
        if any(widths):
            axes.barh(names, widths, left=left, label=phase, color=_COLOURS[phase], height=0.6)
        left = [start + width for start, width in zip(left, widths, strict=True)]
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")


def _legend(axes: list[Axes]) -> tuple[list[Any], list[str]]:
    found = {
        label: handle
        for one in axes
        for handle, label in zip(*one.get_legend_handles_labels(), strict=True)
    }
    labels = [phase for phase in PHASES if phase in found]
    return [found[label] for label in labels], labels
