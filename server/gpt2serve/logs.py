"""Log lines: JSON for machines, columns for people. Never a prompt, never a generated text."""

from __future__ import annotations

import logging
import sys
from typing import Any, Literal, TextIO

import structlog

LogFormat = Literal["auto", "json", "console"]


def create_logger(log_format: LogFormat = "auto", stream: TextIO | None = None) -> Any:
    """A logger of its own: nothing global is configured, so embedding apps keep their logs.

    `auto` is console on a terminal, JSON elsewhere. `stream` is stdout if None.
    """
    stream = sys.stdout if stream is None else stream
    processors: list[Any] = [
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    if _wants_json(log_format, stream):
        processors += [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    else:
        # Plain tracebacks: rich ones show local variables, and these hold prompts.
        plain = structlog.dev.plain_traceback
        colors = stream.isatty()
        processors.append(structlog.dev.ConsoleRenderer(colors=colors, exception_formatter=plain))
    return structlog.wrap_logger(
        structlog.WriteLogger(stream),
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
    )


def _wants_json(log_format: LogFormat, stream: TextIO) -> bool:
    return log_format == "json" or (log_format == "auto" and not stream.isatty())


class ForwardHandler(logging.Handler):
    """Hands records of the standard library's logging, such as uvicorn's, to a logger of ours."""

    def __init__(self, log: Any, level: int = logging.WARNING) -> None:
        super().__init__(level)
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        self._log.log(
            record.levelno, record.getMessage(), logger=record.name, exc_info=record.exc_info
        )
