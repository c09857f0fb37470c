"""Every error that gpt2export raises on purpose.

ExportError
├── CheckpointError       the checkpoint cannot be read, or is not complete
│   └── UnsupportedModel  it is something other than a plain GPT-2; says what
├── HubError              the checkpoint could not be downloaded
├── StoreError            the package cannot be published
├── UsageError            options that do not go together
└── VerificationFailed    the package is outside a bound; it was not published
"""

from __future__ import annotations


class ExportError(Exception):
    """Base of all. `str(error)` is for the person who runs the exporter."""


class CheckpointError(ExportError):
    pass


class UnsupportedModel(CheckpointError):
    pass


class HubError(ExportError):
    pass


class StoreError(ExportError):
    pass


class UsageError(ExportError):
    pass


class VerificationFailed(ExportError):
    """`bound` names what was missed, `measured` is the value."""

    def __init__(self, bound: str, measured: float, limit: float, advice: str) -> None:
        super().__init__(f"{bound} is {measured:.4g}, the bound is {limit:.4g}. {advice}")
        self.bound = bound
        self.measured = measured
        self.limit = limit
