"""The report of `benchmarks.decode`: targets, and tables made from its raw results."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks import report
from benchmarks.model import PROMPT_TOKENS
from benchmarks.peers import CT2_FP32, CT2_INT8, ENGINE_FP32, ENGINE_INT8, TRANSFORMERS
from benchmarks.report import Bound, Line, Measured, Target

#: How many times as fast this engine is meant to be.
TARGETS: tuple[Target, ...] = (
    (ENGINE_INT8, TRANSFORMERS, 1, 4.5),
    (ENGINE_INT8, TRANSFORMERS, 16, 4.5),
    (ENGINE_INT8, CT2_INT8, None, 1.8),
    (ENGINE_FP32, TRANSFORMERS, 1, 1.4),
    (ENGINE_FP32, TRANSFORMERS, 16, 2.0),
)
PAIRS = (
    (ENGINE_INT8, TRANSFORMERS),
    (ENGINE_INT8, CT2_INT8),
    (ENGINE_FP32, TRANSFORMERS),
    (ENGINE_FP32, CT2_FP32),
)
MOST_OUTSIDE = Bound(0.10, at_least=False)
LEAST_THROUGH_HTTP = Bound(0.85)
#: A measurement during which other work took more of the cores than this is disturbed.
QUIET = 0.05


def text_of(results: dict[str, Any]) -> str:
    """The whole report, from the raw results."""
    new_tokens = results["new_tokens"]
    steps = steps_of(results["steps"], new_tokens)
    systems = list(dict.fromkeys(name for name, _ in steps))
    sizes = list(dict.fromkeys(size for _, size in steps))
    lines = report.ratio_lines(steps, sizes, PAIRS, TARGETS)
    lines += outside_lines(results["steps"])
    lines += http_lines(results["http"])
    parts = [
        report.header_text(results["header"]),
        _what_a_step_is(new_tokens, results["rounds"]),
        _disturbance([*results["steps"], *results["http"]]),
        report.steps_table(steps, systems, sizes),
        report.speed_table(steps, systems, sizes),
        report.lines_table(lines),
        *bandwidth_text(results, steps),
        *http_text(results["http"], results["http_plan"]),
    ]
    return "\n\n".join(parts) + "\n"


def _what_a_step_is(new_tokens: int, rounds: int) -> str:
    return (
        f"A step is the wall time of a whole generation, the prefill of {PROMPT_TOKENS} tokens "
        f"included,\ndivided by its {new_tokens} new tokens; top_k 50; median (least-most) of "
        f"{rounds} rounds."
    )


def _disturbance(entries: Sequence[dict[str, Any]]) -> str:
    others = [entry["others"] for entry in entries]
    disturbed = sum(share > QUIET for share in others)
    return (
        f"Other work took more than {QUIET:.0%} of the cores in {disturbed} of {len(others)} "
        f"measurements, {max(others):.0%} at most."
        + (" Do not trust these figures: run again on a quiet machine." if disturbed else "")
    )


def steps_of(entries: Sequence[dict[str, Any]], new_tokens: int) -> dict[tuple[str, int], Measured]:
    """Milliseconds per step by system and batch size."""
    grouped: dict[tuple[str, int], list[float]] = {}
    for entry in entries:
        step = 1000 * entry["seconds"] / new_tokens
        grouped.setdefault((entry["system"], entry["batch"]), []).append(step)
    return {key: Measured(tuple(values)) for key, values in grouped.items()}


def outside_lines(entries: Sequence[dict[str, Any]]) -> list[Line]:
    """What a decode step spends outside of onnxruntime."""
    grouped: dict[tuple[str, int], list[float]] = {}
    for entry in entries:
        if entry.get("outside") is not None:
            grouped.setdefault((entry["system"], entry["batch"]), []).append(entry["outside"])
    return [
        Line(
            f"{name}, sampling and bookkeeping, B={size}",
            Measured(tuple(values)),
            MOST_OUTSIDE if name == ENGINE_INT8 else None,
            percent=True,
        )
        for (name, size), values in sorted(
            grouped.items(), key=lambda item: item[0][0] != ENGINE_INT8
        )
    ]


def http_speeds(entries: Sequence[dict[str, Any]], way: str) -> Measured:
    """Tokens per second."""
    return Measured(tuple(e["tokens"] / e["seconds"] for e in entries if e["way"] == way))


def http_lines(entries: Sequence[dict[str, Any]]) -> list[Line]:
    """Tokens per second through HTTP as a share of the engine's own."""
    if not entries:
        return []
    alone = http_speeds(entries, "engine")
    return [
        Line(
            f"HTTP {way} / engine",
            report.ratio(http_speeds(entries, way), alone),
            LEAST_THROUGH_HTTP,
            percent=True,
        )
        for way in ("whole", "streamed")
    ]


def bandwidth_text(results: dict[str, Any], steps: report.Times) -> list[str]:
    """What reading the weights once per step allows, and how near batch 1 comes."""
    bandwidth = results["bandwidth"]
    threads = results["header"]["threads"]
    rows = []
    for name, size in results["weight_bytes"].items():
        if (name, 1) in steps:
            limit = 1000 * size / bandwidth
            step = steps[name, 1].median
            rows.append(
                (
                    name,
                    f"{size / 1e6:.1f} MB",
                    f"{limit:.2f} ms",
                    f"{step:.2f} ms",
                    f"{limit / step:.0%}",
                )
            )
    if not rows:
        return []
    title = f"Memory: {bandwidth / 1e9:.1f} GB/s read by {threads} threads, measured in this run."
    header = ("batch 1", "weights read", "allows", "takes", "of what memory allows")
    return [title + "\n\n" + report.render(header, rows)]


def http_text(entries: Sequence[dict[str, Any]], plan: list[list[int]]) -> list[str]:
    """Tokens per second, and what the server's event loop and the clients work per token."""
    if not entries:
        return []
    rows = []
    for way in ("engine", "whole", "streamed"):
        chosen = [entry for entry in entries if entry["way"] == way]
        costs = ["-", "-"]
        if way != "engine":
            costs = [
                f"{_microseconds(chosen, key):.0f} us"
                for key in ("event_loop_seconds", "cpu_seconds")
            ]
        rows.append((way, http_speeds(entries, way).text(0), *costs))
    lengths = [length for client in plan for length in client]
    title = (
        f"{len(plan)} clients, {len(plan[0])} requests each, texts of {min(lengths)} to "
        f"{max(lengths)} tokens; clients and server share the cores."
    )
    header = ("int8", "tokens per second", "event loop per token", "clients per token")
    return [title + "\n\n" + report.render(header, rows)]


def _microseconds(entries: Sequence[dict[str, Any]], key: str) -> float:
    """Microseconds of processor time per token."""
    return 1e6 * Measured(tuple(entry[key] / entry["tokens"] for entry in entries)).median
