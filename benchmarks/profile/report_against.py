"""Before and after: what has changed since an earlier commit. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.common.tables import Line, lines_table, paragraphs, ratio, table
from benchmarks.profile.figures import nodes, of, of_batch, of_code
from benchmarks.profile.versions import NOW


def against_text(results: dict[str, Any], commit: str) -> str:
    """What has changed since `commit`."""
    steps, http = results["steps"], results["http"]
    title = (
        f"### Since {commit}\n\nThe server of commit {commit}, with the model as its exporter "
        "writes it, measured in the same run and in turn with what is here."
    )
    return paragraphs(
        title,
        _parts_against(steps, commit),
        _ops_against(results["ops"], commit),
        lines_table([*_steps_faster(steps, commit), *_http_faster(http, commit)]),
    )


def _parts_against(entries: Sequence[dict[str, Any]], commit: str) -> str:
    """Medians of each part, then and now."""
    if not entries:
        return ""
    batches = list(dict.fromkeys(entry["batch"] for entry in entries))
    before, after = of_code(entries, commit), of_code(entries, NOW)
    names = list(dict.fromkeys(name for entry in before + after for name in entry["parts"]))
    rows = [
        [name, *(_change(before, after, batch, _milliseconds(name)) for batch in batches)]
        for name in names
    ]
    whole = [_change(before, after, batch, lambda entry: entry["step_ms"]) for batch in batches]
    head = [f"ms per decode step, {commit} -> now", *(f"B={batch}" for batch in batches)]
    return table(head, [*rows, ["**together**", *whole]])


def _milliseconds(name: str) -> Callable[[dict[str, Any]], float]:
    return lambda entry: float(entry["parts"].get(name, 0.0))


def _change(
    before: Sequence[dict[str, Any]],
    after: Sequence[dict[str, Any]],
    batch: int,
    value: Callable[[dict[str, Any]], float],
) -> str:
    old, new = (of_batch(entries, batch, value).median for entries in (before, after))
    return f"{old:.2f} -> {new:.2f}"


def _ops_against(entries: Sequence[dict[str, Any]], commit: str) -> str:
    """The same for ops; those whose number of nodes has changed."""
    before, after = of_code(entries, commit), of_code(entries, NOW)
    if not before:
        return ""
    names = dict.fromkeys(op for entry in before + after for op in entry["ops"])
    changed = [op for op in names if nodes(before, op) != nodes(after, op)]
    pairs = list(zip(before, after, strict=True))
    rows = [
        [op, f"{nodes(before, op)} -> {nodes(after, op)}"]
        + [f"{_op_ms(old, op):.2f} -> {_op_ms(new, op):.2f}" for old, new in pairs]
        for op in changed
    ]
    batches = (f"B={new['batch']}" for _, new in pairs)
    return table([f"ms by op, {commit} -> now", "nodes", *batches], rows) if rows else ""


def _op_ms(entry: dict[str, Any], op: str) -> float:
    return float(entry["ops"].get(op, [0.0, 0.0])[0])


def _steps_faster(entries: Sequence[dict[str, Any]], commit: str) -> list[Line]:
    lines = []
    for batch in dict.fromkeys(entry["batch"] for entry in entries):
        old, new = (
            of_batch(of_code(entries, code), batch, lambda entry: entry["step_ms"])
            for code in (commit, NOW)
        )
        lines.append(Line(f"a step of {batch}: {commit} / now", ratio(old, new)))
    return lines


def _http_faster(entries: Sequence[dict[str, Any]], commit: str) -> list[Line]:
    lines = []
    for way in dict.fromkeys(entry["way"] for entry in entries):
        old, new = (
            of(of_code(entries, code), "way", way, "tokens_per_second") for code in (commit, NOW)
        )
        lines.append(Line(f"tokens per second, {way}: now / {commit}", ratio(new, old)))
    return lines
