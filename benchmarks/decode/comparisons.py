"""Who is faster, and by how much: tables, and the project's targets. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.common import tables
from benchmarks.common.tables import Bound, Line
from benchmarks.decode import figures
from benchmarks.decode.figures import Values
from benchmarks.peers import (
    CT2_FP32,
    CT2_INT8,
    ENGINE_CUDA,
    ENGINE_FP32,
    ENGINE_INT8,
    LLAMA_CPP,
    OPTIMUM,
    TRANSFORMERS,
    TRANSFORMERS_CUDA,
    VLLM,
)

#: Each of ours, and those that it is compared with.
PAIRS = (
    (ENGINE_INT8, (TRANSFORMERS, OPTIMUM, CT2_INT8, LLAMA_CPP)),
    (ENGINE_FP32, (TRANSFORMERS, OPTIMUM, CT2_FP32)),
    (ENGINE_CUDA, (TRANSFORMERS_CUDA, VLLM)),
)
#: With the shortest prompts: ours, the other, batch sizes, how many times as fast.
TARGETS = (
    (ENGINE_INT8, TRANSFORMERS, (1, 16), 4.5),
    (ENGINE_INT8, CT2_INT8, (1, 5, 16, 32), 1.8),
    (ENGINE_FP32, TRANSFORMERS, (1,), 1.4),
    (ENGINE_FP32, TRANSFORMERS, (16,), 2.0),
)


def fastest_table(results: Mapping[str, Any], speeds: Values, unit: str, prompt: int) -> str:
    """Who is the fastest of ours and of the others at each batch size, and by how much."""
    rows, ahead = [], 0
    for size in results["sizes"]:
        ranking = figures.fastest(speeds, size, prompt)
        ours = [pair for pair in ranking if not _is_peer(pair[0])]
        peers = [pair for pair in ranking if _is_peer(pair[0])]
        if ours and peers:
            (name, best), (peer, most) = ours[0], peers[0]
            first, second = f"{name}, {best:,.0f}", f"{peer}, {most:,.0f}"
            rows.append([str(size), first, second, f"{best / most:.2f}"])
            ahead += best > most
    if not rows:
        return ""
    verdict = f"gpt2serve is ahead of its fastest peer at {ahead} of {len(rows)} batch sizes"
    head = ["batch", f"gpt2serve's best, {unit}", "fastest peer", "ratio"]
    return f"With prompts of {prompt} tokens {verdict}:\n\n{tables.table(head, rows)}"


def _is_peer(system: str) -> bool:
    return not system.startswith("gpt2serve")


def ratio_tables(results: Mapping[str, Any], steps: Values) -> str:
    """How many times as fast a step is, for each pair and prompt length."""
    made = []
    for prompt in results["prompts"]:
        rows = []
        for ours, others in PAIRS:
            for other in others:
                found = [
                    figures.times_as_fast(steps, ours, other, size, prompt)
                    for size in results["sizes"]
                ]
                if any(found):
                    cells = [one.text(2) if one else "-" for one in found]
                    rows.append([f"{ours} / {other}", *cells])
        if rows:
            head = [f"times as fast, prompts of {prompt}"]
            made.append(tables.table([*head, *(f"B={size}" for size in results["sizes"])], rows))
    return tables.paragraphs(*made)


def targets_table(results: Mapping[str, Any], steps: Values) -> str:
    prompt = min(results["prompts"])
    lines = []
    for ours, other, sizes, least in TARGETS:
        for size in sizes:
            measured = figures.times_as_fast(steps, ours, other, size, prompt)
            if measured:
                lines.append(Line(f"{ours} / {other}, B={size}", measured, Bound(least)))
    if not lines:
        return ""
    return f"The project's targets, prompts of {prompt}:\n\n{tables.lines_table(lines)}"
