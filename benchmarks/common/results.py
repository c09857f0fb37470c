"""Raw results: one JSON file a benchmark, from which tables and plots are made at any time.

    {"benchmark": "decode", "quick": false, "header": {...}, ...}

The rest of the object is the benchmark's own. Figures that may be published lie in
`benchmarks/results/`; short runs write to `benchmarks/results/quick/`, which git ignores.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from benchmarks.common.model import ROOT

RESULTS = ROOT / "benchmarks" / "results"


def path_of(benchmark: str, *, quick: bool) -> Path:
    return (RESULTS / "quick" if quick else RESULTS) / f"{benchmark}.json"


def save(results: dict[str, Any], path: Path) -> None:
    """Write all of it or nothing: a run that is interrupted leaves the former results."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".unfinished")
    unfinished.write_text(dumps(results), encoding="utf-8")
    unfinished.replace(path)


def dumps(results: dict[str, Any]) -> str:
    """JSON with a line for each measurement: small files and readable differences."""
    parts = []
    for key, value in results.items():
        if isinstance(value, list) and value and isinstance(value[0], dict):
            lines = ",\n  ".join(json.dumps(entry) for entry in value)
            text = f"[\n  {lines}\n ]"
        else:
            text = json.dumps(value)
        parts.append(f" {json.dumps(key)}: {text}")
    return "{\n" + ",\n".join(parts) + "\n}\n"


def load(path: Path) -> dict[str, Any]:
    results: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return results


def relative(path: Path) -> str:
    """As seen from the repository, where it is inside."""
    return os.path.relpath(path, ROOT) if path.is_relative_to(ROOT) else str(path)
