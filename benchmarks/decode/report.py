"""The report of `benchmarks.decode`: tables, plots and findings, all from its raw results."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from benchmarks.common import tables
from benchmarks.common.measuring import disturbance, failures
from benchmarks.common.tables import Measured
from benchmarks.decode import comparisons, drawing, figures
from benchmarks.decode.figures import Values
from benchmarks.peers import CT2_INT8, ENGINE_FP32, ENGINE_INT8, TRANSFORMERS

TITLE = "Decode and prefill"

README_SIZES = (1, 5, 16, 32)
README_SYSTEMS = (ENGINE_INT8, ENGINE_FP32, CT2_INT8, TRANSFORMERS)
README_RATIOS = ((ENGINE_INT8, CT2_INT8), (ENGINE_INT8, TRANSFORMERS))

plots = drawing.plots


def markdown(results: dict[str, Any]) -> str:
    steps = figures.values_of(results, figures.step_ms)
    speeds = figures.values_of(results, figures.decode_speed)
    shortest = min(results["prompts"])
    return tables.paragraphs(
        _what_was_measured(results),
        tables.header_text(results["header"]),
        disturbance(results["measurements"]),
        failures(results["failed"]),
        f"### Decode\n\n![Tokens per second by batch size, prompts of {shortest} tokens]"
        "(benchmarks/decode-speed.svg)",
        comparisons.fastest_table(results, speeds, "tokens per second", shortest),
        _grids(results, speeds, "tokens per second", lambda value: f"{value.median:,.0f}"),
        _grids(results, steps, "ms per step", Measured.text),
        comparisons.ratio_tables(results, steps),
        comparisons.targets_table(results, steps),
        _limits(results, steps),
        _prefill(results),
        _shortened(results),
    )


def readme(results: dict[str, Any]) -> str:
    """The few figures that the README shows."""
    speeds = figures.values_of(results, figures.decode_speed)
    steps = figures.values_of(results, figures.step_ms)
    prompt = min(results["prompts"])
    sizes = [size for size in README_SIZES if size in results["sizes"]]
    rows = [
        [name, *(_median(speeds, name, size, prompt) for size in sizes)]
        for name in README_SYSTEMS
        if name in figures.systems_in(results)
    ]
    for ours, other in README_RATIOS:
        found = [figures.times_as_fast(steps, ours, other, size, prompt) for size in sizes]
        if any(found):
            cells = [f"{one.median:.1f}x" if one else "-" for one in found]
            rows.append([f"**{ours} / {other}**", *cells])
    header = results["header"]
    return tables.paragraphs(
        tables.table(["tokens per second, batch of", *map(str, sizes)], rows),
        f"GPT-2 124M, prompts of {prompt} tokens, different for each text; {header['processor']}, "
        f"{header['threads']} of {header['cores']} cores; commit {header['commit']}, "
        f"`{header['command']}`.",
    )


def _median(values: Values, system: str, batch: int, prompt: int) -> str:
    value = values.get((system, batch, prompt))
    return f"{value.median:,.0f}" if value else "-"


def _what_was_measured(results: Mapping[str, Any]) -> str:
    device = ", ".join(results.get("gpu", [f"{results['header']['threads']} threads"]))
    return f"""\
GPT-2 124M in its real shape with random weights, the same in every system's own format, on
{device}. Each text of a batch continues a prompt of its own; all systems get the same prompts and
make the same number of tokens, which is checked, drawn with top_k 50 at temperature 1. How each
is set up, and where its documentation says so, is written in
[benchmarks/peers](../benchmarks/peers).

A *decode step* gives each text of a batch one token. It is timed while all of them grow together:
from the first token of the text that begins last until the first text ends. *Prefill* is the time
until every text has its first token, all prompts being handed over at once. gpt2serve and
llama.cpp go on with texts whose prompt is read while they read the others, and that is in this
time; gpt2serve also turns texts into tokens in it, while the others get tokens.

Texts get {results["new_tokens"]} new tokens, or as many more as it takes for a batch to grow
together. A cell is measured up to {results["rounds"]} times, as long as all its rounds take no
more than {results["cell_seconds"]:.0f} s. Given are medians, with the least and the greatest."""


def _grids(
    results: Mapping[str, Any], values: Values, quantity: str, text: Callable[[Measured], str]
) -> str:
    """A table for each length of prompts: systems by batch sizes."""
    made = []
    for prompt in results["prompts"]:
        rows = [
            [name, *(_cell(values.get((name, size, prompt)), text) for size in results["sizes"])]
            for name in figures.systems_in(results)
        ]
        head = [f"{quantity}, prompts of {prompt}", *(f"B={size}" for size in results["sizes"])]
        made.append(tables.table(head, rows))
    return tables.paragraphs(*made)


def _cell(value: Measured | None, text: Callable[[Measured], str]) -> str:
    return text(value) if value else "-"


def _limits(results: Mapping[str, Any], steps: Values) -> str:
    """How near our steps come to what memory and arithmetic allow."""
    if "weight_bytes" not in results:
        return ""
    rows = []
    prompt = min(results["prompts"])
    for name in results["weight_bytes"]:
        for size in results["sizes"]:
            step = steps.get((name, size, prompt))
            if step:
                rows.append([name, str(size), *_limit_cells(results, name, size, step)])
    title = (
        f"Measured in this run with {results['header']['threads']} threads: memory is read at "
        f"{results['bandwidth'] / 1e9:.1f} GB/s, and uint8 is multiplied by int8 at "
        f"{results['int8_rate'] / 1e9:,.0f} billion multiply-accumulates a second. A step reads "
        f"all weights once, and needs {results['macs_per_token'] / 1e6:.1f} million "
        "multiply-accumulates for each text, attention not counted."
    )
    head = ["", "batch", "memory allows", "int8 arithmetic allows", "takes", "of the limit"]
    return tables.paragraphs(f"### Limits\n\n{title}", tables.table(head, rows))


def _limit_cells(results: Mapping[str, Any], name: str, size: int, step: Measured) -> list[str]:
    memory = 1000 * results["weight_bytes"][name] / results["bandwidth"]
    arithmetic = 1000 * size * results["macs_per_token"] / results["int8_rate"]
    is_int8 = name == ENGINE_INT8  # the measured rate says nothing about fp32
    limit = max(memory, arithmetic) if is_int8 else memory
    return [
        f"{memory:.2f} ms",
        f"{arithmetic:.2f} ms" if is_int8 else "-",
        f"{step.median:.2f} ms",
        f"{limit / step.median:.0%}",
    ]


def _prefill(results: Mapping[str, Any]) -> str:
    firsts = figures.values_of(results, figures.first_ms)
    speeds = figures.values_of(results, figures.prefill_speed)
    longest = max(results["prompts"])
    return tables.paragraphs(
        "### Prefill\n\n![Prompt tokens per second by batch size](benchmarks/decode-prefill.svg)",
        comparisons.fastest_table(results, speeds, "prompt tokens per second", longest),
        _grids(results, firsts, "ms to the first token", lambda value: value.text(0)),
        _grids(results, speeds, "prompt tokens per second", lambda value: f"{value.median:,.0f}"),
    )


def _shortened(results: Mapping[str, Any]) -> str:
    cells: dict[str, dict[str, None]] = {}
    for entry in results["measurements"]:
        if entry["tokens"] == 1:
            place = f"{entry['batch']} x {entry['prompt']}"
            cells.setdefault(entry["system"], {})[place] = None
    if not cells:
        return ""
    found = "; ".join(f"{name}: {', '.join(places)}" for name, places in cells.items())
    return (
        f"Where a whole generation was expected to take more than {results['most_seconds']:.0f} s "
        f"the texts got one token each, so there is a prefill and no decode step (batch x prompt): "
        f"{found}."
    )
