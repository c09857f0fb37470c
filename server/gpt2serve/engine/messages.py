"""What reaches the engine thread through its inbox. Anybody may put a message in."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from gpt2serve.engine.fetcher import FetchResult
from gpt2serve.engine.loader import LoadResult
from gpt2serve.engine.packer import PackResult
from gpt2serve.engine.preparation import PreparedRequest
from gpt2serve.engine.request import Request
from gpt2serve.engine.store import Package
from gpt2serve.errors import Gpt2ServeError


@dataclass(frozen=True, slots=True, eq=False)
class Submit:
    """A request, prepared for a version of its model."""

    request: Request

    @property
    def package(self) -> Package:
        """Of that version."""
        return self.request.prepared.package


@dataclass(frozen=True, slots=True)
class Cancel:
    request: Request


@dataclass(frozen=True, slots=True, eq=False)
class Preload:
    """Load a model that nobody asked for yet; `done` gets None or the error."""

    package: Package
    pin: bool
    done: Future[None] = field(default_factory=Future)


#: What waits for a model.
Waiting = Submit | Preload


@dataclass(frozen=True, slots=True)
class Renewed:
    """What waited for a version that the store has no more is for this one, now.

    known: what was known of the model's newest version when the store was asked. prepared: a
    request, prepared again. Without a package the model is not there any more, or cannot be used.
    """

    message: Waiting
    known: str | None
    package: Package | None = None
    prepared: PreparedRequest | None = None
    error: Gpt2ServeError | None = None


@dataclass(frozen=True, slots=True)
class Changed:
    """The store has another package for a model, or None if it was deleted."""

    model: str
    package: Package | None


@dataclass(frozen=True, slots=True)
class Unload:
    """Put all versions of a model out of memory; `done` gets None when they are."""

    model: str
    done: Future[None] = field(default_factory=Future)


@dataclass(frozen=True, slots=True)
class Unpin:
    model: str


@dataclass(frozen=True, slots=True)
class Call:
    """Run `function` in the engine thread."""

    function: Callable[[], object]

    def run(self) -> None:
        self.function()


@dataclass(frozen=True, slots=True)
class Ask:
    """Run `function` in the engine thread; `answer` is set to what it returns, without fail."""

    function: Callable[[], Any]
    answer: Future[Any]

    def run(self) -> None:
        try:
            self.answer.set_result(self.function())
        except Exception as error:
            self.answer.set_exception(error)


class Stop:
    """End the thread; whatever has not ended is aborted."""


Message = (
    Submit
    | Cancel
    | Preload
    | Renewed
    | Changed
    | Unload
    | Unpin
    | Call
    | Ask
    | FetchResult
    | LoadResult
    | PackResult
    | Stop
)


def settle(done: Future[None], error: Exception | None = None) -> None:
    """End a future, which whoever waited for it may have cancelled."""
    with suppress(InvalidStateError):
        if error is None:
            done.set_result(None)
        else:
            done.set_exception(error)
