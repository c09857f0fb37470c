"""From raw measurements to ratios, targets and Markdown. Pure: no clock, no processes."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Measured:
    """One quantity, once per round."""

    values: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def low(self) -> float:
        return min(self.values)

    @property
    def high(self) -> float:
        return max(self.values)

    def scaled(self, factor: float) -> Measured:
        return Measured(tuple(value * factor for value in self.values))

    def text(self, digits: int = 1) -> str:
        return f"{self.median:.{digits}f} ({self.low:.{digits}f}-{self.high:.{digits}f})"


def ratio(numerator: Measured, denominator: Measured) -> Measured:
    """Quotients of the same round: what slowed the machine then slowed both."""
    pairs = zip(numerator.values, denominator.values, strict=True)
    return Measured(tuple(top / bottom for top, bottom in pairs))


@dataclass(frozen=True)
class Bound:
    """What is asked of a median."""

    value: float
    at_least: bool = True

    def holds(self, measured: float) -> bool:
        return measured >= self.value if self.at_least else measured <= self.value


@dataclass(frozen=True)
class Line:
    """A quantity and, where there is one, its target. Percentages are given as shares."""

    name: str
    measured: Measured
    bound: Bound | None = None
    percent: bool = False

    @property
    def verdict(self) -> str:
        if self.bound is None:
            return "-"
        return "PASS" if self.bound.holds(self.measured.median) else "MISS"

    def cells(self) -> tuple[str, str, str, str]:
        target = "-"
        if self.bound is not None:
            sign = ">=" if self.bound.at_least else "<="
            target = f"{sign} {self._text(self.bound.value)}"
        spread = f"{self._text(self.measured.low)} - {self._text(self.measured.high)}"
        return self.name, f"{self._text(self.measured.median)} ({spread})", target, self.verdict

    def _text(self, value: float) -> str:
        return f"{value:.1%}" if self.percent else f"{value:.2f}x"


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table whose columns are also aligned as plain text."""
    cells = [list(header), *(list(row) for row in rows)]
    widths = [max(3, *(len(row[n]) for row in cells)) for n in range(len(header))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
        for row in cells
    ]
    return "\n".join([lines[0], "|" + "|".join("-" * (w + 2) for w in widths) + "|", *lines[1:]])


def lines_table(lines: Sequence[Line]) -> str:
    header = ("measured in the same round", "median (least - most)", "target", "")
    return table(header, (line.cells() for line in lines))


def header_text(header: Mapping[str, Any]) -> str:
    """The facts that a result needs to mean anything, as a Markdown code block."""
    facts = {
        "command": header["command"],
        "commit": f"{header['commit']}, {header['date']}",
        "processor": f"{header['processor']} ({' '.join(header['extensions'])})",
        "cores": f"{header['cores']}, of which each system uses {header['threads']}; "
        f"{header['memory_bytes'] / 2**30:.0f} GiB",
        "system": f"{header['system']}; load before {header['load_average']}",
        "versions": ", ".join(f"{name} {number}" for name, number in header["versions"].items()),
    }
    return "```\n" + "\n".join(f"{name:10}{value}" for name, value in facts.items()) + "\n```"


def paragraphs(*parts: str) -> str:
    """Parts that are not empty, with an empty line between them."""
    return "\n\n".join(part.strip("\n") for part in parts if part)
