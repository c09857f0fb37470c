"""The profile's clock, its reading of onnxruntime's events, and its report."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.common.model import assets_in
from benchmarks.profile import report, versions
from benchmarks.profile.engine import Steps, by_op
from benchmarks.profile.spans import Spans


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Work:
    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def outer(self) -> str:
        self.clock.now += 1
        self.inner()
        self.inner()
        self.clock.now += 2
        return "done"

    def inner(self) -> None:
        self.clock.now += 10

    def failing(self) -> None:
        self.clock.now += 5
        raise KeyError("x")


def test_a_span_is_without_the_spans_inside_it() -> None:
    class Mine(Work): ...

    clock = Clock()
    spans = Spans(clock)
    spans.watch(Mine, "outer", "outside")
    spans.watch(Mine, "inner", "inside")
    assert Mine(clock).outer() == "done"
    assert dict(spans.seconds) == {"outside": 3.0, "inside": 20.0}


def test_a_span_ends_when_its_function_fails() -> None:
    class Mine(Work): ...

    clock = Clock()
    spans = Spans(clock)
    spans.watch(Mine, "failing", "failing")
    with pytest.raises(KeyError):
        Mine(clock).failing()
    spans.watch(Mine, "inner", "inside")
    Mine(clock).inner()
    assert dict(spans.seconds) == {"failing": 5.0, "inside": 10.0}


def test_only_decode_steps_of_the_whole_batch_count() -> None:
    steps = Steps()
    steps.begin(2)
    for kind, rows, seconds in (("prefill", 2, 7.0), ("decode", 2, 1.0), ("decode", 1, 9.0)):
        steps.spans.seconds["part"] = seconds
        steps.on_step(kind, rows, 0.0)
    result = steps.result()
    assert result["steps"] == 1
    assert result["parts"]["part"] == 1000.0
    assert sum(result["parts"].values()) == pytest.approx(result["step_ms"])
    assert steps.rows == 5


def _event(name: str, ts: int, dur: int, op: str = "") -> dict[str, Any]:
    return {"name": name, "ts": ts, "dur": dur, "args": {"op_name": op}}


def test_ops_are_those_of_the_last_runs() -> None:
    events = [
        _event("n0_kernel_time", 1, 5000, "MatMul"),
        _event("model_run", 0, 9000),
        _event("n0_kernel_time", 11, 1000, "MatMul"),
        _event("n1_kernel_time", 13, 500, "Add"),
        _event("n1_fence_before", 13, 500, "Add"),
        _event("model_run", 10, 2000),
        _event("n0_kernel_time", 21, 2000, "MatMul"),
        _event("n1_kernel_time", 23, 500, "Add"),
        _event("model_run", 20, 4000),
    ]
    assert by_op(events, 2) == {"run_ms": 3.0, "ops": {"MatMul": [1.5, 1.0], "Add": [0.5, 1.0]}}


def _results() -> dict[str, Any]:
    parts = {"onnxruntime": 8.0, "sampling": 1.5, "rest of the engine thread": 0.5}
    step = {
        "code": "now",
        "batch": 1,
        "round": 0,
        "step_ms": 10.0,
        "steps": 5,
        "parts": parts,
        "others": 0.01,
    }
    http = [
        {"code": "now", "way": way, "round": 0, "tokens_per_second": speed, "others": 0.0}
        | ({} if way == "engine" else {"event_loop_us": 30.0, "clients_us": 40.0})
        for way, speed in (("engine", 100.0), ("whole", 90.0), ("streamed", 50.0))
    ]
    servers = [
        {"server": name, "round": 0, "tokens_per_second": speed, "others": 0.0}
        | {"event_loop_us": None if name == "granian" else 30.0, "clients_us": 40.0}
        for name, speed in (("uvicorn-h11", 50.0), ("granian", 75.0))
    ]
    return {
        "header": HEADER,
        "steps": [step],
        "ops": [
            {"code": "now", "batch": 1, "run_ms": 9.0}
            | {"ops": {"MatMul": [9.95, 48.0], "Cast": [0.05, 2.0]}}
        ],
        "versions": ["now"],
        "http": http,
        "servers": servers,
        "clients": 16,
        "outputs": [48, 0.25, 32, 64],
    }


HEADER = {
    "date": "2026-01-01",
    "command": "python -m benchmarks.profile",
    "commit": "abc",
    "processor": "a processor",
    "extensions": ["avx2"],
    "cores": 2,
    "threads": 2,
    "memory_bytes": 2**30,
    "system": "Linux",
    "load_average": 0.1,
    "versions": {"numpy": "2.4"},
}


def _rows(text: str) -> list[str]:
    return [" ".join(line.replace("|", " ").split()) for line in text.splitlines()]


def test_the_report_shows_parts_ops_and_http() -> None:
    rows = _rows(report.markdown(_results()))
    assert "onnxruntime 8.00 (80.0%)" in rows
    assert "sampling 1.50 (15.0%)" in rows
    assert "sampling and bookkeeping, B=1 20.0% (20.0% - 20.0%) <= 10.0% MISS" in rows
    assert "MatMul 48 9.95 (99.5%)" in rows
    assert "others 0.05" in rows
    assert "HTTP whole / engine 90.0% (90.0% - 90.0%) >= 85.0% PASS" in rows
    assert "HTTP streamed / engine 50.0% (50.0% - 50.0%) >= 85.0% MISS" in rows
    assert "uvicorn-h11 50 (50-50) 30 us 40 us" in rows
    assert "granian 75 (75-75) - 40 us" in rows
    assert "granian / uvicorn-h11 1.50x (1.50x - 1.50x) - -" in rows


def test_an_earlier_commit_stands_beside_what_is_here() -> None:
    results = _results()
    before = _results()
    before["steps"][0] |= {"step_ms": 12.0, "parts": {"onnxruntime": 9.0, "sampling": 3.0}}
    before["ops"][0]["ops"] = {"MatMul": [9.95, 48.0], "Gather": [2.0, 3.0]}
    before["http"][1]["tokens_per_second"] = 60.0
    for part in ("steps", "ops", "http"):
        results[part] += [entry | {"code": "abc123"} for entry in before[part]]
    results["versions"] = ["now", "abc123"]
    rows = _rows(report.markdown(results))
    assert "ms per decode step, abc123 -> now B=1" in rows
    assert "sampling 3.00 -> 1.50" in rows
    assert "**together** 12.00 -> 10.00" in rows
    assert "Gather 3 -> 0 2.00 -> 0.00" in rows
    assert not any(row.startswith("MatMul 48 -> 48") for row in rows)
    assert "a step of 1: abc123 / now 1.20x (1.20x - 1.20x) - -" in rows
    assert "tokens per second, whole: now / abc123 1.50x (1.50x - 1.50x) - -" in rows
    # The tables of what is here are of what is here alone.
    assert "sampling 1.50 (15.0%)" in rows


def test_a_commit_that_git_does_not_know_is_left_out(tmp_path: Path) -> None:
    assert versions.earlier("no-such-commit", assets_in(tmp_path), tmp_path, "int8") is None


def test_the_report_leaves_out_what_was_not_measured() -> None:
    results = _results() | {"steps": [], "ops": [], "http": [], "servers": []}
    text = report.markdown(results)
    assert "ms per decode step" not in text
    assert "HTTP" not in text


def test_outside_is_what_onnxruntime_does_not_take() -> None:
    assert report.outside({"step_ms": 10.0, "parts": {"onnxruntime": 7.5}}) == pytest.approx(0.25)


def test_what_is_watched_is_there() -> None:
    """In a process of its own, as watching is not undone."""
    code = (
        "from benchmarks.profile.engine import _watch\n"
        "from benchmarks.profile.spans import Spans\n"
        "from gpt2serve.engine import draw\n"
        "_watch(Spans())\n"
        "assert draw.top_candidates.__wrapped__\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
