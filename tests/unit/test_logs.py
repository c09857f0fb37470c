"""Log lines: JSON or columns, no globals."""

from __future__ import annotations

import io
import json
import logging

import pytest
import structlog

from gpt2serve.logs import ForwardHandler, create_logger


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("log_format", "stream", "is_json"),
    [
        ("auto", io.StringIO(), True),
        ("auto", Terminal(), False),
        ("json", Terminal(), True),
        ("console", io.StringIO(), False),
    ],
)
def test_format(log_format: str, stream: io.StringIO, is_json: bool) -> None:
    create_logger(log_format, stream).info("hello", number=1)  # type: ignore[arg-type]
    (line,) = stream.getvalue().splitlines()
    if is_json:
        entry = json.loads(line)
        assert (entry["event"], entry["level"], entry["number"]) == ("hello", "info", 1)
        assert entry["timestamp"].endswith("Z")
    else:
        assert "hello" in line
        assert not line.startswith("{")


@pytest.mark.parametrize("log_format", ["json", "console"])
def test_tracebacks_do_not_show_variables(log_format: str) -> None:
    stream = io.StringIO()
    log = create_logger(log_format, stream)  # type: ignore[arg-type]
    prompt = "se" + "cret"
    try:
        raise ValueError(len(prompt))
    except ValueError as error:
        log.error("failed", exc_info=error)
    assert "ValueError: 6" in stream.getvalue()
    assert "secret" not in stream.getvalue()


def test_nothing_global_is_configured() -> None:
    create_logger("json", io.StringIO())
    assert not structlog.is_configured()


def test_records_of_the_standard_library_are_forwarded() -> None:
    stream = io.StringIO()
    logger = logging.Logger("uvicorn.error")
    logger.addHandler(ForwardHandler(create_logger("json", stream)))
    logger.info("not this")
    logger.warning("lost %d", 3)
    entry = json.loads(stream.getvalue())
    assert (entry["event"], entry["level"], entry["logger"]) == (
        "lost 3",
        "warning",
        "uvicorn.error",
    )
