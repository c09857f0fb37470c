"""From raw measurements to ratios, targets and a table. Pure: no clock, no processes."""

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
        return self.name, f"{self._text(self.measured.median)}  ({spread})", target, self.verdict

    def _text(self, value: float) -> str:
        return f"{value:.1%}" if self.percent else f"{value:.2f}x"


def render(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Columns of text, aligned to the left, with a rule below the header."""
    rows = [list(header), *(list(row) for row in rows)]
    widths = [max(len(row[n]) for row in rows) for n in range(len(header))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])


def header_text(header: Mapping[str, Any]) -> str:
    """The facts that a result needs to mean anything."""
    versions = ", ".join(f"{name} {number or '-'}" for name, number in header["versions"].items())
    facts = {
        "date": header["date"],
        "command": header["command"],
        "commit": header["commit"],
        "processor": f"{header['processor']} ({' '.join(header['extensions'])})",
        "cores": f"{header['cores']}, of which each system uses {header['threads']}",
        "memory": f"{header['memory_bytes'] / 2**30:.0f} GiB",
        "system": header["system"],
        "load before": f"{header['load_average']} (other work disturbs the figures)",
        "versions": versions,
    }
    return "\n".join(f"{name:12}{value}" for name, value in facts.items())


Times = Mapping[tuple[str, int], Measured]


def steps_table(steps: Times, systems: Sequence[str], sizes: Sequence[int]) -> str:
    """Milliseconds per step: median and, in brackets, least and most."""
    header = ["ms per step", *(f"B={size}" for size in sizes)]
    return render(
        header,
        ([name, *(steps[name, size].text() for size in sizes)] for name in systems),
    )


def speed_table(steps: Times, systems: Sequence[str], sizes: Sequence[int]) -> str:
    """Tokens per second, all sequences together, at the median step."""
    header = ["tokens per second", *(f"B={size}" for size in sizes)]
    return render(
        header,
        (
            [name, *(f"{size * 1000 / steps[name, size].median:,.0f}" for size in sizes)]
            for name in systems
        ),
    )


#: (our system, the other one, batch size or None for all, how many times as fast to be)
Target = tuple[str, str, int | None, float]


def ratio_lines(
    steps: Times, sizes: Sequence[int], pairs: Sequence[tuple[str, str]], targets: Sequence[Target]
) -> list[Line]:
    """How many times as fast the first of each pair is, at every size."""
    lines = []
    for ours, other in pairs:
        for size in sizes:
            if (ours, size) not in steps or (other, size) not in steps:
                continue
            bound = next(
                (
                    Bound(least)
                    for mine, its, at, least in targets
                    if (mine, its) == (ours, other) and at in (None, size)
                ),
                None,
            )
            measured = ratio(steps[other, size], steps[ours, size])
            lines.append(Line(f"{ours} / {other}, B={size}", measured, bound))
    return lines


def lines_table(lines: Sequence[Line]) -> str:
    header = ("measured in the same round", "median  (least - most)", "target", "")
    return render(header, (line.cells() for line in lines))
