"""The map in docs/architecture.md has every module, and no other."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
#: Folders whose modules are all on it, and the heading above each.
FOLDERS = {
    "server/gpt2serve": "server/gpt2serve/",
    "server/gpt2serve/engine": "server/gpt2serve/",
    "server/gpt2serve/engine/stores": "server/gpt2serve/",
    "export/gpt2export": "export/gpt2export/",
}


def part(heading: str) -> str:
    """The table below `heading`, up to the next one."""
    text = (ROOT / "docs" / "architecture.md").read_text()
    return text.partition(f"\n`{heading}`")[2].partition("\n\n`")[0]


def test_every_module_is_on_the_map() -> None:
    for folder, heading in FOLDERS.items():
        named = set(re.findall(r"([a-z0-9_]+)\.py`", part(heading)))
        there = {path.stem for path in (ROOT / folder).glob("*.py")} - {"__init__"}
        assert there
        assert there - named == set(), folder


def test_what_is_on_the_map_is_there() -> None:
    for heading in set(FOLDERS.values()):
        there = {path.stem for path in (ROOT / heading).rglob("*.py")}
        assert set(re.findall(r"([a-z0-9_]+)\.py`", part(heading))) <= there


def test_every_benchmark_is_on_the_map() -> None:
    named = set(re.findall(r"`([a-z]+)/`", part("benchmarks/"))) - {"results"}
    assert named == {path.parent.name for path in (ROOT / "benchmarks").glob("*/__init__.py")}
