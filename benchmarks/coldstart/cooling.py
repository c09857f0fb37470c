"""How files come to be on the disk only: dropped from the page cache, or other ones each time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks.coldstart import another_file, page_cache
from benchmarks.common.measuring import say

DROPPED, ANOTHER_FILE = "dropped", "another file"


def choose(sets: Sequence[list[Path]]) -> tuple[str, str]:
    """What works here for all `sets` of files, found by trying it; "" if nothing does.

    Besides, why it is not `DROPPED`.
    """
    reasons = []
    for way in (DROPPED, ANOTHER_FILE):
        try:
            for files in sets:
                cool(files, way)
                _check(files)
        except (page_cache.NotDropped, OSError) as error:
            say(f"no cold page cache ({way}): {error}")
            reasons.append(str(error))
        else:
            return way, " ".join(reasons)
    return "", " ".join(reasons)


def cool(files: Sequence[Path], way: str) -> None:
    """Raises `NotDropped` if they cannot be dropped. Other files may be in the page cache too:
    not every system offers a way around it, so whoever calls this looks."""
    if way == DROPPED:
        page_cache.drop(files)
    else:
        another_file.replace(files)


def _check(files: Sequence[Path]) -> None:
    if left := page_cache.resident_bytes(files):
        raise page_cache.NotDropped(
            f"Of copies just made, {left:,} of {page_cache.size_of(files):,} bytes are in the page "
            "cache; with --another-file they are measured nevertheless."
        )
