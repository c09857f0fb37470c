"""How far a run is, and what is said at its end."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from gpt2export.errors import UsageError
from gpt2export.exporter import Job, Outcome
from gpt2export.progress import TOLD, Pace, Progress
from gpt2export.report import Report
from gpt2export.table import MOST_ROWS, amount, duration, render


def job(number: int) -> Job:
    return Job(f"ck/m{number}", f"m{number}")


def done(number: int, message: str = "") -> Outcome:
    status = "failed" if message else "exported"
    return Outcome(
        f"m{number}", "cpu-int8", status, size=10, message=message, checkpoint=f"ck/m{number}"
    )


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_pace() -> None:
    pace = Pace(100.0)
    assert pace.per_minute() is None
    assert pace.left(5, 100.0) is None
    pace.ended(110.0)
    pace.ended(120.0)
    assert pace.per_minute() == 6
    assert pace.left(5, 120.0) == 50
    assert pace.left(5, 126.0) == 44
    assert pace.left(1, 500.0) == 0


def test_pace_is_of_the_last_ones() -> None:
    """A folder of small models, then large ones."""
    pace, now = Pace(0.0), 0.0
    for seconds in [0.1] * 500 + [60.0] * 200:
        now += seconds
        pace.ended(now)
    assert pace.per_minute() == pytest.approx(1)


def test_a_log_gets_a_line_now_and_then() -> None:
    stream = io.StringIO()
    progress = Progress(1000, stream, log_every=30)
    for number in range(400):
        progress.skipped([done(number)])
    progress.start(0.0)
    for second in range(1, 101):
        progress.working(job(second), f"m{second}: writing cpu-int8")
        progress.finished(job(second), [done(second)], float(second))
        progress.working(job(second + 1), f"m{second + 1}: writing cpu-int8")
        progress.tick(float(second))
    progress.close()
    assert stream.getvalue().splitlines() == [
        "400 exported before and unchanged, 600 to do.",
        "430/1,000 done, 0 failed, 60/min, 9 min 30 s left, m31: writing cpu-int8",
        "460/1,000 done, 0 failed, 60/min, 9 min 0 s left, m61: writing cpu-int8",
        "490/1,000 done, 0 failed, 60/min, 8 min 30 s left, m91: writing cpu-int8",
    ]


def test_what_is_being_worked_on() -> None:
    stream = io.StringIO()
    progress = Progress(10, stream, log_every=0)
    progress.start(0.0)
    for number in range(1, 7):
        progress.working(job(number), f"m{number}: writing cpu-int8")
        progress.tick(0.0)
    progress.paused(job(1))
    progress.tick(0.0)
    assert [line.split("failed, ")[1] for line in stream.getvalue().splitlines()] == [
        "m1: writing cpu-int8",
        "m1, m2",
        "m1, m2, m3",
        "m1, m2, m3, m4",
        "m1, m2, m3, m4, ...",
        "m1, m2, m3, m4, ...",
        "m2, m3, m4, m5, ...",
    ]


def test_failures_are_told_as_they_happen_but_not_without_end() -> None:
    stream = io.StringIO()
    progress = Progress(100, stream)
    progress.start(0.0)
    for number in range(50):
        progress.finished(job(number), [done(number, "It is\nbroken.")], 1.0)
    lines = stream.getvalue().splitlines()
    assert lines[0] == "failed: m0: It is"
    assert len(lines) == TOLD + 1
    assert "at the end" in lines[-1]


def test_a_terminal_gets_a_bar() -> None:
    stream = Terminal()
    progress = Progress(4, stream)
    progress.start(0.0)
    progress.finished(job(1), [done(1)], 30.0)
    progress.working(job(2), "m2: writing cpu-int8")
    progress.tick(30.0)
    progress.note("a line that stays")
    progress.close()
    assert "1/4, 0 failed, 2.0/min, 1 min 30 s left, m2" in stream.getvalue()
    assert "a line that stays\n" in stream.getvalue()


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.04, "0.0 s"),
        (9.9, "9.9 s"),
        (59.4, "59 s"),
        (59.6, "1 min 0 s"),
        (3600 * 7.2, "7 h 12 min"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_amounts() -> None:
    assert [amount(number) for number in (0.834, 8.34, 83.4, 1234)] == [
        "0.83",
        "8.3",
        "83",
        "1,234",
    ]


def test_many_are_summed_up() -> None:
    outcomes = [done(number) for number in range(MOST_ROWS + 1)]
    assert render(outcomes, 62.0) == (
        "31 packages in 1 min 2 s: 31 exported, 0 unchanged, 0 failed. "
        "0.0 MB written, 30 packages a minute."
    )
    few = render(outcomes[:2], 62.0)
    assert few.startswith("id  variant")
    assert "\n\n2 packages in" in few


def test_failures_for_the_same_reason_stand_together() -> None:
    outcomes = [
        *(done(n, f"ck/m{n} holds no weights.") for n in range(1, 4)),
        *(done(n, f"The change is 0.0{n}, the bound is 0.01.") for n in (4, 5)),
        done(6, "ck/m6: the tensors do not fit the config:\n  missing: a\n  missing: b"),
    ]
    assert render(outcomes * 10, 1.0).split("\n\n", 1)[1].splitlines() == [
        "3 failed: ... holds no weights.",
        "    m1, m2, m3",
        "2 failed: The change is #, the bound is #.",
        "    m4, m5",
        "m6 (" + ", ".join(["cpu-int8"] * 10) + "): ck/m6: the tensors do not fit the config:",
        "  missing: a",
        "  missing: b",
    ]


def test_a_report_is_complete_after_every_package(tmp_path: Path) -> None:
    path = tmp_path / "report.jsonl"
    path.write_text("of an earlier run")
    with Report(path) as report:
        report.add([done(1)])
        assert len(path.read_text().splitlines()) == 1
        report.add([done(2, "It is\nbroken.")])
        rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row["status"] for row in rows] == ["exported", "failed"]
    assert rows[1] == {
        "id": "m2",
        "variant": "cpu-int8",
        "status": "failed",
        "checkpoint": "ck/m2",
        "bytes": 10,
        "seconds": 0.0,
        "perplexity_change": None,
        "message": "It is\nbroken.",
    }
    with pytest.raises(UsageError, match="cannot be written"):
        Report(tmp_path / "absent" / "report.jsonl")
