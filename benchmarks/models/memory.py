"""How much memory a server takes: all of its processes, from /proc."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

#: Fields of smaps_rollup, in kB there.
_FIELDS = {"Rss": "rss", "Pss": "pss", "Private_Clean": "private", "Private_Dirty": "private"}


def of_processes(processes: Iterable[int]) -> dict[str, int]:
    """Bytes of all together; all are 0 where the system does not tell.

    rss: every mapped page, as often as it is mapped: what models take that are different files.
    pss: each page once, as far as these processes have it. private: pages that nobody shares.
    """
    total = {"rss": 0, "pss": 0, "private": 0}
    for process in processes:
        try:
            text = Path(f"/proc/{process}/smaps_rollup").read_text()
        except OSError:
            continue  # it ended, or this is not Linux
        for name, value in parse(text).items():
            total[name] += value
    return total


def parse(text: str) -> dict[str, int]:
    """Bytes from the text of smaps_rollup."""
    found = {"rss": 0, "pss": 0, "private": 0}
    for line in text.splitlines()[1:]:  # the first is a range of addresses
        field, _, value = line.partition(":")
        if field in _FIELDS:
            found[_FIELDS[field]] += 1024 * int(value.split()[0])
    return found
