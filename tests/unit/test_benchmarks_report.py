"""Ratios, verdicts and tables of the benchmarks, from made-up measurements."""

from __future__ import annotations

import itertools

import pytest

from benchmarks import decode_report, report
from benchmarks.decode import http_plan
from benchmarks.http_clients import check
from benchmarks.model import END_OF_TEXT, VOCABULARY, padded
from benchmarks.peers import CT2_INT8, ENGINE_FP32, ENGINE_INT8, TRANSFORMERS, share_between
from benchmarks.report import Bound, Line, Measured


def _times(**values: tuple[float, ...]) -> dict[tuple[str, int], Measured]:
    names = {"ours": ENGINE_INT8, "ct2": CT2_INT8, "hf": TRANSFORMERS}
    return {(names[name], 1): Measured(times) for name, times in values.items()}


def test_a_ratio_pairs_values_of_the_same_round() -> None:
    # The second round ran on a machine half as fast: the quotient does not notice.
    assert report.ratio(Measured((10.0, 20.0, 11.0)), Measured((5.0, 10.0, 5.0))).values == (
        2.0,
        2.0,
        2.2,
    )


def test_a_ratio_of_unequal_numbers_of_rounds_is_refused() -> None:
    with pytest.raises(ValueError, match="zip"):
        report.ratio(Measured((1.0, 2.0)), Measured((1.0,)))


@pytest.mark.parametrize(
    ("bound", "measured", "verdict"),
    [
        (Bound(4.5), 4.5, "PASS"),
        (Bound(4.5), 4.4999, "MISS"),
        (Bound(0.1, at_least=False), 0.1, "PASS"),
        (Bound(0.1, at_least=False), 0.1001, "MISS"),
        (None, 1.0, "-"),
    ],
)
def test_a_verdict_is_about_the_median(bound: Bound | None, measured: float, verdict: str) -> None:
    assert Line("x", Measured((0.0, measured, 100.0)), bound).verdict == verdict


def test_a_line_shows_median_spread_and_target() -> None:
    line = Line("a / b", Measured((2.0, 1.0, 4.0)), Bound(1.8))
    assert line.cells() == ("a / b", "2.00x  (1.00x - 4.00x)", ">= 1.80x", "PASS")
    share = Line("share", Measured((0.05,)), Bound(0.1, at_least=False), percent=True)
    assert share.cells() == ("share", "5.0%  (5.0% - 5.0%)", "<= 10.0%", "PASS")


def test_ratio_lines_say_how_many_times_as_fast_and_leave_out_what_did_not_run() -> None:
    times = _times(ours=(2.0, 2.0), ct2=(3.0, 5.0))
    lines = report.ratio_lines(times, [1], decode_report.PAIRS, decode_report.TARGETS)
    assert [line.name for line in lines] == [f"{ENGINE_INT8} / {CT2_INT8}, B=1"]
    assert lines[0].measured.values == (1.5, 2.5)
    assert lines[0].bound == Bound(1.8)
    assert lines[0].verdict == "PASS"


@pytest.mark.parametrize(
    ("ours", "other", "size", "least"),
    [
        (ENGINE_INT8, TRANSFORMERS, 1, 4.5),
        (ENGINE_INT8, TRANSFORMERS, 5, None),
        (ENGINE_INT8, TRANSFORMERS, 16, 4.5),
        (ENGINE_INT8, CT2_INT8, 32, 1.8),
        (ENGINE_FP32, TRANSFORMERS, 1, 1.4),
        (ENGINE_FP32, TRANSFORMERS, 16, 2.0),
    ],
)
def test_targets(ours: str, other: str, size: int, least: float | None) -> None:
    times = {(ours, size): Measured((1.0,)), (other, size): Measured((1.0,))}
    (line,) = report.ratio_lines(times, [size], [(ours, other)], decode_report.TARGETS)
    assert line.bound == (None if least is None else Bound(least))


def test_render_aligns_columns() -> None:
    text = report.render(("name", "value"), [("a", "10"), ("longer", "2")])
    assert text.splitlines() == ["name    value", "------  -----", "a       10", "longer  2"]


def test_the_whole_report_from_raw_results() -> None:
    steps = [
        {"system": name, "batch": 1, "round": 0, "seconds": seconds, "outside": outside}
        | {"others": others}
        for name, seconds, outside, others in (
            (ENGINE_INT8, 0.048, 0.2, 0.0),
            (TRANSFORMERS, 0.48, None, 0.02),
        )
    ]
    http = [
        {"way": way, "round": 0, "seconds": seconds, "tokens": 100, "event_loop_seconds": 0.01}
        | {"cpu_seconds": 0.02, "others": 0.2}
        for way, seconds in (("engine", 1.0), ("whole", 1.1), ("streamed", 2.0))
    ]
    text = decode_report.text_of(
        {
            "header": _HEADER,
            "rounds": 1,
            "new_tokens": 48,
            "bandwidth": 1e10,
            "steps": steps,
            "http": http,
            "http_plan": [[48, 52]],
            "weight_bytes": {ENGINE_INT8: 5_000_000},
        }
    )
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert any(
        line.startswith("Other work took more than 5% of the cores in 3 of 5 measurements, 20% at")
        for line in lines
    )
    assert f"{ENGINE_INT8} 1.0 (1.0-1.0)" in lines
    assert f"{ENGINE_INT8} 1,000" in lines
    assert f"{ENGINE_INT8} / {TRANSFORMERS}, B=1 10.00x (10.00x - 10.00x) >= 4.50x PASS" in lines
    assert (
        f"{ENGINE_INT8}, sampling and bookkeeping, B=1 20.0% (20.0% - 20.0%) <= 10.0% MISS" in lines
    )
    assert "HTTP whole / engine 90.9% (90.9% - 90.9%) >= 85.0% PASS" in lines
    assert "HTTP streamed / engine 50.0% (50.0% - 50.0%) >= 85.0% MISS" in lines
    assert f"{ENGINE_INT8} 5.0 MB 0.50 ms 1.00 ms 50%" in lines
    assert "streamed 50 (50-50) 100 us 200 us" in lines


_HEADER = {
    "date": "2026-01-01",
    "command": "python -m benchmarks.decode",
    "commit": "abc",
    "processor": "a processor",
    "extensions": ["avx2"],
    "cores": 2,
    "threads": 2,
    "memory_bytes": 2**30,
    "system": "Linux",
    "load_average": 0.1,
    "versions": {"numpy": "2.4", "ctranslate2": None},
}


def test_share_between_counts_gaps_after_the_first_run() -> None:
    # Prefill 0-5; then a gap of 1, a step of 3, a gap of 1, a step of 5.
    assert share_between([(0, 5), (6, 9), (10, 15)]) == pytest.approx(0.2)


def test_the_made_up_vocabulary_has_the_real_size_and_keeps_what_was_there() -> None:
    small = {"a": 0, "\u0120w00001": 1, "b": 2, END_OF_TEXT: 3}
    made = padded(small)
    assert sorted(made.values()) == list(range(VOCABULARY))
    assert made[END_OF_TEXT] == VOCABULARY - 1
    assert [made[token] for token in ("a", "\u0120w00001", "b")] == [0, 1, 2]


def test_clients_check_what_they_get() -> None:
    assert check(b'{"usage": {"completion_tokens": 3}}', 3, stream=False) == 3
    stream = b'data: {"index": 0, "token": {}}\n\ndata: {"usage": {}}\n\ndata: [DONE]\n\n'
    assert check(stream, 1, stream=True) == 1
    with pytest.raises(RuntimeError, match="got 1"):
        check(stream, 2, stream=True)
    with pytest.raises(RuntimeError, match="broke off"):
        check(stream[:-5], 1, stream=True)


def test_clients_end_at_different_times() -> None:
    plan = http_plan()
    assert len(plan) == 16
    assert all(a != b for a, b in itertools.pairwise(plan))
