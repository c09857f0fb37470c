"""The plots of `benchmarks.decode`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from benchmarks.common import plots as style
from benchmarks.decode import figures
from benchmarks.decode.figures import Values
from benchmarks.peers import ENGINE_FP32, ENGINE_INT8

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MARKERS = "osD^vPX"
_LIMIT = "#6b7280"


def plots(results: Mapping[str, Any]) -> dict[str, Figure]:
    """ "speed": decoding, with the limits. "prefill": reading prompts."""
    return {"speed": _speed(results), "prefill": _prefill(results)}


def _speed(results: Mapping[str, Any]) -> Figure:
    prompt = min(results["prompts"])
    figure, (axes,) = style.new(
        f"Decoding, prompts of {prompt} tokens", "batch size", "tokens per second", log="xy"
    )
    _curves(axes, results, figures.values_of(results, figures.decode_speed), prompt)
    _limits(axes, results)
    figure.legend(loc="outside right upper", fontsize=8)
    return figure


def _prefill(results: Mapping[str, Any]) -> Figure:
    lengths = [n for n in results["prompts"] if n > min(results["prompts"])] or results["prompts"]
    figure, panels = style.new(
        "Prefill", "batch size", "prompt tokens per second", panels=len(lengths), log="xy"
    )
    values = figures.values_of(results, figures.prefill_speed)
    for axes, prompt in zip(panels, lengths, strict=True):
        axes.set_title(f"prompts of {prompt} tokens", fontsize=10)
        _curves(axes, results, values, prompt)
        _prefill_limit(axes, results, prompt)
    low = min(axes.get_ylim()[0] for axes in panels)
    high = max(axes.get_ylim()[1] for axes in panels)
    for axes in panels:
        axes.set_ylim(low, high)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", fontsize=8)
    return figure


def _curves(axes: Axes, results: Mapping[str, Any], values: Values, prompt: int) -> None:
    for number, name in enumerate(figures.systems_in(results)):
        sizes = [size for size in results["sizes"] if (name, size, prompt) in values]
        medians = [values[name, size, prompt].median for size in sizes]
        marker = _MARKERS[number % len(_MARKERS)]
        axes.plot(sizes, medians, marker=marker, color=style.colour(name), label=name)
    axes.set_xticks(results["sizes"], [str(size) for size in results["sizes"]])
    axes.yaxis.set_major_formatter("{x:,.0f}")
    axes.minorticks_off()


def _prefill_limit(axes: Axes, results: Mapping[str, Any], prompt: int) -> None:
    """What int8 arithmetic allows. The LM head is computed for the last token of a prompt only."""
    if "head_macs" in results:
        macs = results["macs_per_token"] - results["head_macs"] * (1 - 1 / prompt)
        allowed = [results["int8_rate"] / macs] * len(results["sizes"])
        label = "limit of int8 arithmetic"
        axes.plot(results["sizes"], allowed, "-.", color=_LIMIT, linewidth=1.2, label=label)


def _limits(axes: Axes, results: Mapping[str, Any]) -> None:
    """What reading the weights once a step allows, and what int8 arithmetic allows."""
    sizes = results["sizes"]
    for name, dashes in ((ENGINE_INT8, "--"), (ENGINE_FP32, ":")):
        weight_bytes = results.get("weight_bytes", {}).get(name)
        if weight_bytes:
            allowed = [size * results["bandwidth"] / weight_bytes for size in sizes]
            label = f"limit of memory, {name.split()[-1]}"
            axes.plot(sizes, allowed, dashes, color=_LIMIT, linewidth=1.2, label=label)
    if "macs_per_token" in results:
        rate = results["int8_rate"] / results["macs_per_token"]
        label = "limit of int8 arithmetic"
        axes.plot(sizes, [rate] * len(sizes), "-.", color=_LIMIT, linewidth=1.2, label=label)
