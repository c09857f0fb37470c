"""What is said at the end of a run."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence

from gpt2export.exporter import Outcome

#: More rows than this tell nobody anything; there is --report.
MOST_ROWS = 30
WIDTH = 100

_HEADER = ("id", "variant", "size", "time", "perplexity", "status")
_COUNTED = ("exported", "unchanged", "failed")


def render(outcomes: Sequence[Outcome], seconds: float | None = None) -> str:
    """A line per package, if those are few; the sums, if it took `seconds`; all failures."""
    parts = [_rows(outcomes)] if outcomes and len(outcomes) <= MOST_ROWS else []
    if seconds is not None:
        parts.append(totals(outcomes, seconds))
    failed = [outcome for outcome in outcomes if outcome.status == "failed"]
    if failed:
        parts.append("\n".join(reasons(failed)))
    return "\n\n".join(parts)


def totals(outcomes: Sequence[Outcome], seconds: float) -> str:
    counts = [
        f"{sum(outcome.status == status for outcome in outcomes):,} {status}" for status in _COUNTED
    ]
    made = [outcome.size for outcome in outcomes if outcome.status == "exported"]
    said = f"{_packages(len(outcomes))} in {duration(seconds)}: {', '.join(counts)}."
    if not made:
        return said
    rate = 60 * len(made) / max(seconds, 1e-9)
    return f"{said} {_size(sum(made))} written, {amount(rate)} packages a minute."


def reasons(failed: Sequence[Outcome]) -> list[str]:
    """Every failed package with its reason; those that failed for the same one together."""
    groups: dict[str, dict[str, list[Outcome]]] = {}
    for outcome in failed:
        group = groups.setdefault(_kind(outcome), {})
        group.setdefault(outcome.model, []).append(outcome)
    lines: list[str] = []
    for kind, models in sorted(groups.items(), key=lambda item: -len(item[1])):
        if len(models) == 1:
            ((model, packages),) = models.items()
            variants = ", ".join(package.variant for package in packages)
            lines.append(f"{model} ({variants}): {packages[0].message}")
            continue
        lines.append(f"{len(models):,} failed: {kind}")
        text = ", ".join(models)
        lines += textwrap.wrap(
            text, WIDTH, initial_indent="    ", subsequent_indent="    ", break_on_hyphens=False
        )
    return lines


def duration(seconds: float) -> str:
    """'8.4 s', '3 min 5 s', '7 h 12 min'."""
    if seconds < 59.5:
        return f"{seconds:.0f} s" if seconds >= 9.95 else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def amount(number: float) -> str:
    """Two digits or more: '0.83', '8.3', '83', '1,234'."""
    digits = 2 if number < 1 else 1 if number < 10 else 0
    return f"{number:,.{digits}f}"


def _kind(outcome: Outcome) -> str:
    """The reason without what is only of this model: its name, its folder and its numbers."""
    text = outcome.message
    if outcome.checkpoint:
        folder = re.escape(outcome.checkpoint.rstrip("/"))
        text = re.sub(rf"{folder}(?![\w-])", "...", text)
    text = re.sub(rf"/{re.escape(outcome.model)}/", "/.../", text)
    text = re.sub(r"(?<![\w-])\d+(?:\.\d+)?(?:e[+-]?\d+)?(?![\w-])", "#", text)
    first, *rest = text.splitlines() or [""]
    return f"{first} ..." if rest else first


def _packages(count: int) -> str:
    return "1 package" if count == 1 else f"{count:,} packages"


def _rows(outcomes: Sequence[Outcome]) -> str:
    rows = [_HEADER, *(_row(outcome) for outcome in outcomes)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADER))]
    return "\n".join(_line(row, widths) for row in rows)


def _row(outcome: Outcome) -> tuple[str, ...]:
    change = outcome.perplexity_change
    return (
        outcome.model,
        outcome.variant,
        _size(outcome.size) if outcome.size else "-",
        f"{outcome.seconds:.1f} s",
        "-" if change is None else f"{change:+.3%}",
        outcome.status,
    )


def _size(count: int) -> str:
    return f"{count / 1e6:.1f} MB" if count < 1e9 else f"{count / 1e9:.1f} GB"


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    """Numbers to the right, words to the left."""
    cells = [
        cell.rjust(width) if 2 <= column <= 4 else cell.ljust(width)
        for column, (cell, width) in enumerate(zip(row, widths, strict=True))
    ]
    return "  ".join(cells).rstrip()
