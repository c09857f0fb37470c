"""The figures of one deployment as a text. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.common import tables
from benchmarks.load.summary import fell_behind
from benchmarks.load.traffic import Mix

#: Rows of the table of latencies, by their keys in a summary.
_LATENCIES = {
    "ttft_ms": "time to first token",
    "per_token_ms": "time per output token",
    "gap_ms": "between two tokens",
    "end_to_end_ms": "end to end",
}
_PERCENTILES = ("p50", "p90", "p99", "max")


def plan(url: str, load: Mapping[str, float], seconds: float, mix: Mix, *, stream: bool) -> str:
    """What is about to happen."""
    models = f"{len(mix.models)} models, Zipf {mix.zipf:g}" if len(mix.models) > 1 else "one model"
    way = "streamed" if stream else "whole"
    return f"POST {url}, {way} answers, {models}, {loop(load)}, {seconds:g} s"


def loop(load: Mapping[str, float]) -> str:
    if "rate" in load:
        return f"open loop of {load['rate']:g} requests a second (Poisson)"
    if "burst" in load:
        return f"bursts of {load['burst']:g} requests every {load['every']:g} s"
    return f"closed loop of {load['clients']:g} clients"


def report(results: Mapping[str, Any]) -> str:
    """results: as `deployment` makes them."""
    figures = results["figures"]
    seconds = figures["seconds"]
    stopped = f", interrupted after {seconds:.0f} s" if results["interrupted"] else ""
    return tables.paragraphs(
        f"{results['url']}: {loop(results['load'])}{stopped}",
        latency_table(figures),
        "\n".join(
            [
                _amounts(figures),
                _errors(figures, results["details"]),
                _cold(figures["cold"]),
                *_lag(figures, results["load"]),
            ]
        ),
    )


def latency_table(figures: Mapping[str, Any]) -> str:
    rows = [
        [name, *(f"{figures[key][rank]:.1f}" for rank in _PERCENTILES)]
        for key, name in _LATENCIES.items()
        if figures[key] is not None
    ]
    return tables.table(["milliseconds", *_PERCENTILES], rows) if rows else "No request went well."


def _amounts(figures: Mapping[str, Any]) -> str:
    tokens = ""
    if figures["output_tokens"] is not None:
        prompt = figures["prompt_tokens"]
        told = f"{prompt:.1f} tokens" if prompt is not None else "an untold number of tokens"
        tokens = f"; on average {told} in, {figures['output_tokens']:.1f} out"
    return (
        f"rates:       {figures['requests_per_second']:.2f} requests/s, "
        f"{figures['tokens_per_second']:.1f} tokens/s\n"
        f"requests:    {figures['requests']} ({figures['offered_per_second']:.2f}/s)"
        f", {figures['ok']} went well{tokens}"
    )


def _errors(figures: Mapping[str, Any], details: Mapping[str, str]) -> str:
    codes = {code: count for code, count in figures["codes"].items() if code != "ok"}
    if not codes:
        return "errors:      none"
    share = sum(codes.values()) / figures["requests"]
    lines = [f"errors:      {share:.1%} of the requests"]
    for code, count in codes.items():
        said = details.get(code, "").replace("\n", " ")
        lines.append(f"             {count} x {code}" + (f": {said}" if said else ""))
    return "\n".join(lines)


def _cold(cold: Mapping[str, Any] | None) -> str:
    if cold is None:
        return "cold starts: not told by this server"
    text = f"cold starts: {cold['share']:.1%} of the requests waited for their model to be loaded"
    if cold["load_ms"] is not None:
        text += f", p50 {cold['load_ms']['p50']:.0f} ms, p99 {cold['load_ms']['p99']:.0f} ms"
    return text


def _lag(figures: Mapping[str, Any], load: Mapping[str, float]) -> list[str]:
    """Whether the client kept up; in a closed loop it cannot fall behind."""
    if "clients" in load or figures["lag_ms"] is None:
        return []
    line = f"client:      99 % of the requests were sent within {figures['lag_ms']['p99']:.1f} ms"
    if fell_behind(figures):
        line += (
            "\nWARNING: the client fell behind, and the latencies have its delay in them. Run it "
            "on another machine, or several with a lower --rate."
        )
    return [line]
