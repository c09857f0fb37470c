"""`--report`: a line of JSON for every package, for scripts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType

import msgspec

from gpt2export.errors import UsageError
from gpt2export.exporter import Outcome


class Kept:
    """All outcomes of a run; they go into the report as they come."""

    def __init__(self, report: Report | None) -> None:
        self.outcomes: list[Outcome] = []
        self._report = report

    def add(self, outcomes: Sequence[Outcome]) -> None:
        self.outcomes.extend(outcomes)
        if self._report is not None:
            self._report.add(outcomes)


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
