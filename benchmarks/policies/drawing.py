"""The plot of the report. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.common import plots
from benchmarks.policies.figures import Selection
from benchmarks.policies.plan import BASE, EQUAL, OPTIMUM

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MODELS = 1_000
_PANELS = ("Zipf 1.0", "drift through the day", "sessions")
_COLOURS = {
    BASE: "#111827",
    "SLRU": "#c2410c",
    "SIEVE": "#1d4ed8",
    "S3-FIFO": "#15803d",
    "W-TinyLFU": "#7e22ce",
    "GDSF": "#0f766e",
    OPTIMUM: "#9ca3af",
}


def misses(found: Selection) -> Figure:
    figure, axes = plots.new(
        f"Misses with {_MODELS:,} models of equal sizes",
        "models that the cache has room for, %",
        "misses per 1,000 requests",
        panels=len(_PANELS),
        log="x",
    )
    for one, trace in zip(axes, _PANELS, strict=True):
        one.set_title(trace, fontsize=10)
        places = [
            place
            for place in found.places
            if (place.trace, place.models, place.sizes) == (trace, _MODELS, EQUAL)
        ]
        for policy, colour in _COLOURS.items():
            entries = [(place.cache, found.at(place, policy)) for place in places]
            known = [(cache, entry) for cache, entry in entries if entry is not None]
            one.plot(
                [100 * cache for cache, _ in known],
                [1000 * entry["misses"] / entry["requests"] for _, entry in known],
                marker="o",
                color=colour,
                linestyle="--" if policy == OPTIMUM else "-",
                label=policy,
            )
        ticks = [100 * place.cache for place in places]
        one.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        one.minorticks_off()
        one.set_ylim(bottom=0)
    axes[0].legend()
    return figure
