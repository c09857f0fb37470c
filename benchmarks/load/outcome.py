"""What became of a request. Pure data."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from benchmarks.load.traffic import Ask

#: The code of a request that was under way when the measurement was cut off.
UNFINISHED = "unfinished"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a request. Times are in seconds after the start of the loop.

    due: when it was to be sent; latencies count from then. first: when the first token came,
    None if the answer was not streamed or had none. gaps: between the arrivals of tokens; what
    came together has gaps of 0. tokens: as the server counted them, else as they arrived.
    code: "ok", the status ("429"), "timeout", "connect" (there is no connection), "broken" (the
    answer ended early or cannot be read), the code of an error in a stream that had begun, or
    `UNFINISHED`.
    """

    ask: Ask
    due: float
    sent: float
    first: float | None
    ended: float
    tokens: int
    code: str
    gaps: tuple[float, ...] = ()
    prompt_tokens: int | None = None
    load_ms: float | None = None
    text: str = ""
    detail: str = ""

    def later_by(self, seconds: float) -> Outcome:
        """The same, with times that count from `seconds` later."""
        return replace(
            self,
            due=self.due - seconds,
            sent=self.sent - seconds,
            first=None if self.first is None else self.first - seconds,
            ended=self.ended - seconds,
        )


@dataclass(slots=True)
class Progress:
    """Filled while a loop runs; what is in it stays there when the loop is cancelled."""

    sent: int = 0
    outcomes: list[Outcome] = field(default_factory=list)
    #: `time.perf_counter()` when the loop began.
    start: float = 0.0
