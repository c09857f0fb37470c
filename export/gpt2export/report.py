"""`--report`: a line of JSON for every package, for scripts."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from types import TracebackType

import msgspec

from gpt2export.errors import UsageError
from gpt2export.exporter import Outcome


class Report:
    """Writes each package as it ends, so that a run that is killed has said what it did."""

    def __init__(self, path: Path) -> None:
        """Begins the file anew. Raises `UsageError`."""
        try:
            self._file = path.open("wb")
        except OSError as error:
            raise UsageError(f"--report: {path} cannot be written ({error}).") from error

    def __enter__(self) -> Report:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self._file.close()

    def add(self, outcomes: Iterable[Outcome]) -> None:
        for outcome in outcomes:
            row = {
                "id": outcome.model,
                "variant": outcome.variant,
                "status": outcome.status,
                "checkpoint": outcome.checkpoint,
                "bytes": outcome.size,
                "seconds": round(outcome.seconds, 3),
                "perplexity_change": outcome.perplexity_change,
                "message": outcome.message,
            }
            self._file.write(msgspec.json.encode(row) + b"\n")
        self._file.flush()
