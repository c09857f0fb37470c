"""Quantities out of the raw results of `benchmarks.profile`. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.common.tables import Measured


def of_code(entries: Sequence[dict[str, Any]], code: str) -> list[dict[str, Any]]:
    return [entry for entry in entries if entry["code"] == code]


def of_batch(entries: Sequence[dict[str, Any]], batch: int, value: Any) -> Measured:
    return Measured(tuple(value(entry) for entry in entries if entry["batch"] == batch))


def of(entries: Sequence[dict[str, Any]], key: str, name: str, value: str) -> Measured:
    return Measured(tuple(entry[value] for entry in entries if entry[key] == name))


def nodes(entries: Sequence[dict[str, Any]], op: str) -> str:
    return f"{max(entry['ops'].get(op, [0, 0])[1] for entry in entries):.0f}"
