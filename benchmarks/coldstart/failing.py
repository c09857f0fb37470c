"""What fails is left out, and the rest is measured."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from benchmarks.common.measuring import note_failure


@contextmanager
def noting(failed: dict[str, str], system: str) -> Iterator[None]:
    """Whatever goes wrong inside goes into `failed`: a process, an answer, a file, a disk."""
    try:
        yield
    except Exception as error:
        note_failure(failed, system, error)
