"""What is known about one HTTP request while it runs, for its log line and the metrics.

Never holds a prompt or a text.
"""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Callable, Iterable
from typing import Any

import msgspec

from gpt2serve.api.callers import ANYBODY, Caller
from gpt2serve.engine.events import Timing, Usage

REQUEST_ID_HEADER = "X-Request-Id"
CLIENT_DISCONNECTED = "client_disconnected"
_UNTIL_FIRST_TOKEN = ("queue", "load", "prefill")
_SCOPE_KEY = "gpt2serve_exchange"
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")


class Exchange:
    """One request and its answer, in numbers."""

    def __init__(self, request_id: str) -> None:
        self.request_id = request_id
        self.status = 500
        self.code = "ok"
        self.error: Exception | None = None
        #: Anybody, until a guard has seen a key.
        self.caller: Caller = ANYBODY
        self.model: str | None = None
        self.model_version: str | None = None
        #: What `/admin` was asked to do; "" as long as it is unknown. None: another route.
        self.action: str | None = None
        self.stream = False
        self.client_gone = False
        self.finish_reasons: list[str] = []
        #: Requests to the engine that have ended well.
        self.ended = 0
        self.numbers: dict[str, float] = {}
        #: Each request to the engine: when it began, and what tells how far it is.
        self.requests: list[tuple[float, Callable[[], Timing]]] = []
        #: Of the trace that it is part of, if traces are made.
        self.trace_id: str | None = None
        #: On the clock of `time.perf_counter`.
        self.begun = time.perf_counter()

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self.begun

    def about(self, model: str) -> None:
        """The request is about `model`. Raises `ModelNotAllowed` if it is not for the caller."""
        self.model = model
        self.caller.check_model(model)

    def submitted(self, timing: Callable[[], Timing]) -> None:
        """A request to the engine begins."""
        self.requests.append((time.perf_counter(), timing))

    def failed(self, code: str, error: Exception | None) -> None:
        """Note the problem's code, and the error itself if the log should explain it."""
        self.code, self.error = code, error
        self.client_gone = code == CLIENT_DISCONNECTED

    def gone(self) -> None:
        """The client left before the end."""
        self.client_gone = True
        self.code = CLIENT_DISCONNECTED

    def finished(self, reasons: Iterable[str]) -> None:
        self.finish_reasons += reasons

    def done(self, model_version: str, usage: Usage, timing: Timing) -> None:
        """A request to the engine has ended well. Of several, tokens add up and times do not."""
        self.ended += 1
        self.model_version = model_version
        for name, tokens in msgspec.structs.asdict(usage).items():
            self.numbers[name] = self.numbers.get(name, 0) + tokens
        for name, milliseconds in msgspec.structs.asdict(timing).items():
            self.numbers[name] = max(self.numbers.get(name, 0.0), round(milliseconds, 3))

    def times(self) -> dict[str, float]:
        """Milliseconds of each phase; of a stream that has begun, of those until its first token.

        Nothing of what has failed.
        """
        if self.code != "ok" or not self.requests:
            return {}
        if self.ended:
            return {name: self.numbers[f"{name}_ms"] for name in (*_UNTIL_FIRST_TOKEN, "decode")}
        timing = self.requests[0][1]()
        return {name: getattr(timing, f"{name}_ms") for name in _UNTIL_FIRST_TOKEN}


def open_exchange(scope: Any, given_id: str | None) -> Exchange:
    """Begin an exchange and put it where the handlers find it.

    A client's own request id is kept if it is harmless in a header and a log line.
    """
    usable = given_id is not None and _REQUEST_ID.fullmatch(given_id)
    exchange = Exchange(given_id if given_id and usable else uuid.uuid4().hex)
    scope.setdefault("state", {})[_SCOPE_KEY] = exchange
    return exchange


def exchange_of(scope: Any) -> Exchange | None:
    found = scope.get("state", {}).get(_SCOPE_KEY)
    return found if isinstance(found, Exchange) else None
