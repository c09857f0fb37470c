"""Finds figures among raw entries. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from benchmarks.common.tables import Measured

Entry = dict[str, Any]
Figure = Callable[[Entry], float | None]


def requests(entry: Entry) -> float:
    return float(entry["requests_per_second"])


def tokens(entry: Entry) -> float:
    return float(entry["tokens_per_second"])


def hits(entry: Entry) -> float | None:
    ratio = entry["hit_ratio"]
    return None if ratio is None else float(ratio)


def p50(entry: Entry) -> float | None:
    return latency(entry, "p50")


def p99(entry: Entry) -> float | None:
    return latency(entry, "p99")


def slowest(entry: Entry) -> float | None:
    return latency(entry, "max")


def latency(entry: Entry, rank: str) -> float | None:
    """Milliseconds; None if nothing was answered."""
    times = entry["end_to_end_ms"]
    return None if times is None else float(times[rank])


def mapped(entry: Entry) -> float:
    return float(entry["memory"]["rss"])


def shared(entry: Entry) -> float:
    return float(entry["memory"]["pss"])


class Selection:
    """Entries of one table. `place` is the field along which a system is measured."""

    def __init__(self, entries: Iterable[Entry], place: str) -> None:
        self.entries = list(entries)
        self._place = place

    @property
    def systems(self) -> list[str]:
        return list(dict.fromkeys(entry["system"] for entry in self.entries))

    @property
    def places(self) -> list[Any]:
        return sorted({entry[self._place] for entry in self.entries})

    def at(self, system: str, place: Any) -> list[Entry]:
        """One entry a round."""
        return [
            entry
            for entry in self.entries
            if entry["system"] == system and entry[self._place] == place
        ]

    def measured(self, system: str, place: Any, figure: Figure) -> Measured | None:
        return measured(figure(entry) for entry in self.at(system, place))

    def ratio(self, top: str, bottom: str, place: Any, figure: Figure) -> Measured | None:
        """Quotients of the rounds that both have figures of."""
        values = []
        below = {entry["round"]: figure(entry) for entry in self.at(bottom, place)}
        for entry in self.at(top, place):
            above, under = figure(entry), below.get(entry["round"])
            if above is not None and under:
                values.append(above / under)
        return measured(values)

    def line(self, system: str, figure: Figure) -> tuple[list[Any], list[float]]:
        """Places and medians, for a plot."""
        points = [(place, self.measured(system, place, figure)) for place in self.places]
        known = [(place, value.median) for place, value in points if value is not None]
        return [place for place, _ in known], [value for _, value in known]


def measured(values: Iterable[float | None]) -> Measured | None:
    known = tuple(value for value in values if value is not None)
    return Measured(known) if known else None


def text(value: Measured | None, digits: int = 1, unit: str = "") -> str:
    return "-" if value is None else value.text(digits) + unit


def percent(value: Measured | None) -> str:
    return "-" if value is None else f"{value.median:.0%}"


def gigabytes(value: Measured | None) -> str:
    return "-" if value is None or not value.median else f"{value.median / 1e9:.1f} GB"


def errors(entries: Iterable[Entry]) -> str:
    """How many answers were none, by code, in all rounds together."""
    codes: Counter[str] = Counter()
    for entry in entries:
        codes.update(entry["codes"])
    found = [f"{count} {code}" for code, count in sorted(codes.items()) if code != "ok"]
    return ", ".join(found) or "none"


def listed(names: Sequence[str]) -> str:
    """a, b and c"""
    return " and ".join(part for part in (", ".join(names[:-1]), *names[-1:]) if part)
