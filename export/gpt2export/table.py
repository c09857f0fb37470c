"""The table at the end of a run."""

from __future__ import annotations

from collections.abc import Sequence

from gpt2export.exporter import Outcome

_HEADER = ("id", "variant", "size", "time", "perplexity", "status")


def render(outcomes: Sequence[Outcome]) -> str:
    """One line per package, then the reasons of the failures in full."""
    rows = [_HEADER, *(_row(outcome) for outcome in outcomes)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADER))]
    lines = [_line(row, widths) for row in rows]
    reasons = [
        f"{outcome.model} ({outcome.variant}): {outcome.message}"
        for outcome in outcomes
        if outcome.status == "failed"
    ]
    return "\n".join([*lines, "", *reasons] if reasons else lines)


def _row(outcome: Outcome) -> tuple[str, ...]:
    change = outcome.perplexity_change
    return (
        outcome.model,
        outcome.variant,
        f"{outcome.size / 1e6:.1f} MB" if outcome.size else "-",
        f"{outcome.seconds:.1f} s",
        "-" if change is None else f"{change:+.3%}",
        outcome.status,
    )


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    """Numbers to the right, words to the left."""
    cells = [
        cell.rjust(width) if 2 <= column <= 4 else cell.ljust(width)
        for column, (cell, width) in enumerate(zip(row, widths, strict=True))
    ]
    return "  ".join(cells).rstrip()
