"""The isolation benchmark: what is counted, and its report, from made-up results."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.isolation import metrics, report
from benchmarks.isolation.gaps import disturber_figures, hot_figures
from benchmarks.isolation.plan import LEAVING, LONG_SAME, QUIET, SITUATIONS, STORM, Plan
from benchmarks.load.outcome import Outcome
from benchmarks.load.traffic import Ask

ASK = Ask(0.0, "a", "the", 4, 0)


def outcome(first: float | None, gaps: tuple[float, ...] = (), **changes: Any) -> Outcome:
    values: dict[str, Any] = {"ask": ASK, "due": 0.0, "sent": 0.0, "ended": 9.0, "code": "ok"}
    values |= {"tokens": len(gaps) + 1, "first": first, "gaps": gaps} | changes
    return Outcome(**values)


# -- gaps ---------------------------------------------------------------------------------


def test_only_gaps_within_the_measured_time_count() -> None:
    outcomes = [outcome(0.0, (0.4, 0.2, 0.1)), outcome(0.9, (0.05, 0.3))]
    told = hot_figures(outcomes, 0.5, 1.0)
    # They end at 0.4, 0.6, 0.7, 0.95 and 1.25 s.
    assert told["tokens"] == 3
    assert told["gap_ms"]["p50"] == 100.0
    assert told["gap_ms"]["max"] == 200.0
    assert told["gap_ms"]["mean"] == pytest.approx(350 / 3, abs=0.01)


def test_failed_requests_are_counted_and_have_no_gaps() -> None:
    told = hot_figures([outcome(None, code="503"), outcome(None, code="broken")], 0.0, 1.0)
    assert told["failed"] == 2
    assert told["codes"] == {"503": 1, "broken": 1}
    assert "gap_ms" not in told


def test_what_disturbs_is_described() -> None:
    outcomes = [
        outcome(0.5, load_ms=200.0, prompt_tokens=8),
        outcome(0.7, load_ms=0.0, prompt_tokens=1000),
        outcome(None, code="left"),
    ]
    told = disturber_figures(outcomes)
    assert told["codes"] == {"left": 1, "ok": 2}
    assert (told["loads"], told["load_ms"], told["first_ms"]) == (1, 200.0, 600.0)
    assert told["prompt_tokens"] == 1000
    assert disturber_figures([])["load_ms"] is None


# -- metrics ------------------------------------------------------------------------------

METRICS = """\
# HELP gpt2serve_requests_total Generation requests that ended.
gpt2serve_requests_total{code="ok"} 12.0
gpt2serve_requests_total{code="aborted"} 3.0
gpt2serve_requests_running 2.0
gpt2serve_requests_waiting 0.0
gpt2serve_sequences_running 5.0
"""


def test_what_is_under_way_is_read_from_the_metrics() -> None:
    assert metrics.under_way(METRICS) == 7
    with pytest.raises(RuntimeError, match="does not tell"):
        metrics.under_way("something else")


def test_ends_are_differences() -> None:
    before = 'gpt2serve_requests_total{code="ok"} 12.0\n'
    assert metrics.ends_between(before, METRICS) == {"aborted": 3}
    assert metrics.ends_between("", METRICS) == {"ok": 12, "aborted": 3}


# -- the report ---------------------------------------------------------------------------


def entry(situation: str, number: int, milliseconds: float, **changes: Any) -> dict[str, Any]:
    gaps = {"p50": 1, "p90": 2, "p99": 3, "max": 4, "mean": 1.2}
    leaving = situation == LEAVING
    return {
        "round": number,
        "situation": situation,
        "tokens": 500,
        "requests": 10,
        "failed": 0,
        "codes": {"ok": 10},
        "gap_ms": {name: factor * milliseconds for name, factor in gaps.items()},
        "beside": {
            "requests": 7,
            "models": 7,
            "cold_left": 3,
            "codes": {"left": 7} if leaving else {"ok": 7},
            "loads": 5 if situation == STORM else 0,
            "load_ms": 250.0 if situation == STORM else None,
            "first_ms": 300.0,
            "prompt_tokens": 8,
        },
        "empty_seconds": 0.02,
        "ends": {"ok": 10, "aborted": 7} if leaving else {"ok": 17},
        "others": 0.01,
    } | changes


@pytest.fixture
def results() -> dict[str, Any]:
    # The second round is slower altogether, which ratios within it do not see.
    times = dict(zip(SITUATIONS, (10.0, 15.0, 12.0, 11.0, 10.5), strict=True))
    return {
        "benchmark": "isolation",
        "quick": False,
        "header": {
            "date": "2026-01-01",
            "command": "python -m benchmarks.isolation",
            "commit": "abc",
            "processor": "a processor",
            "extensions": ["avx2"],
            "cores": 2,
            "threads": 2,
            "memory_bytes": 2**34,
            "system": "Linux",
            "load_average": 0.1,
            "versions": {"numpy": "2"},
        },
        "plan": vars(Plan(rounds=2, seconds=6.0, tokens=150, streams=4, tries=1)),
        "measured": [
            entry(name, number, (1 + number) * time)
            for number in range(2)
            for name, time in times.items()
        ],
    }


def test_ratios_are_of_the_same_round(results: dict[str, Any]) -> None:
    (storm, *_), (long, *_) = (
        [line for line in report.lines(results["measured"]) if line.name.startswith(name)]
        for name in (STORM, LONG_SAME)
    )
    assert storm.measured.values == pytest.approx((1.5, 1.5))
    assert storm.verdict == "PASS"
    assert long.verdict == "-"


def test_a_storm_that_doubles_the_time_is_missed(results: dict[str, Any]) -> None:
    slower = [entry(STORM, n, 50.0) for n in range(2)]
    others = [e for e in results["measured"] if e["situation"] != STORM]
    verdicts = {line.name: line.verdict for line in report.lines(others + slower)}
    assert verdicts[f"{STORM} / {QUIET}, p50"] == "MISS"


def test_the_report_says_that_all_went_well(results: dict[str, Any]) -> None:
    text = report.markdown(results)
    assert "Of 100 requests for the hot model none failed." in text
    assert "Of 14 requests whose clients left, the engine ended 14 early." in text
    assert "at most 0.02 s after" in text
    assert "left 14" in text
    assert "Of 14 requests for cold models none asked for a model again." in text
    assert "**" not in text


def test_the_report_says_what_went_wrong(results: dict[str, Any]) -> None:
    results["measured"][1] |= {"failed": 2, "codes": {"ok": 8, "503": 2}}
    results["measured"][2]["empty_seconds"] = None
    text = report.markdown(results)
    assert "**2 of 100 requests for the hot model failed" in text
    assert "'503': 2" in text
    assert "**After 1 of 10 measurements the engine was not empty again.**" in text


def test_the_report_says_if_cold_models_ran_out(results: dict[str, Any]) -> None:
    storm = next(one for one in results["measured"] if one["situation"] == STORM)
    storm["beside"]["cold_left"] = 0
    text = report.markdown(results)
    assert "**In 1 of 2 storms there were no cold models left" in text


def test_a_round_without_gaps_is_left_out_and_told(results: dict[str, Any]) -> None:
    (long, *_), (quiet, *_) = (
        [one for one in results["measured"] if one["situation"] == name]
        for name in (LONG_SAME, QUIET)
    )
    del long["gap_ms"]
    text = report.markdown(results)
    assert "**In 1 of 10 measurements no client of the hot model got two tokens" in text
    assert f"in time: {LONG_SAME} (round 1).**" in text
    ratios = {line.name: line.measured.values for line in report.lines(results["measured"])}
    assert ratios[f"{LONG_SAME} / quiet, p50"] == pytest.approx((1.2,))
    del quiet["gap_ms"]
    ratios = {line.name: line.measured.values for line in report.lines(results["measured"])}
    assert len(ratios[f"{STORM} / quiet, p50"]) == 1


def test_a_situation_without_any_gaps_has_a_report_too(results: dict[str, Any]) -> None:
    for one in results["measured"]:
        if one["situation"] == STORM:
            del one["gap_ms"]
    assert "| cold loads " in report.markdown(results)
    assert not [line for line in report.lines(results["measured"]) if line.name.startswith(STORM)]
    (axes,) = report.plots(results)["gaps"].get_axes()
    assert len(axes.patches) == 4 * (len(SITUATIONS) - 1)


# -- the clients and the run --------------------------------------------------------------


def test_no_cold_model_is_asked_for_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("aiohttp", reason="the clients need it")
    from benchmarks.isolation import clients as module

    async def greedy(api: Any, asks: Any, *, seconds: float, **options: Any) -> list[Outcome]:
        """As many requests as there are, but three at most for the storm's first time."""
        taken = list(itertools.islice(asks, 3))
        return [outcome(0.1, (0.2,), ask=ask) for ask in taken]

    monkeypatch.setattr(module, "closed_loop", greedy)
    clients = module.Clients("http://x", "hot", "other", ["a", "b", "c", "d"], ["the"], ["the"])
    plan = vars(Plan(rounds=1, seconds=1.0, tokens=4, streams=1, tries=1))
    told = [clients.run(situation=STORM, plan=plan)["beside"] for _ in range(3)]
    assert [(one["requests"], one["models"], one["cold_left"]) for one in told] == [
        *((3, 3, 1), (1, 1, 0), (0, 0, 0))
    ]


def test_what_was_measured_is_kept_when_the_run_is_interrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from benchmarks.isolation import __main__ as command

    def interrupted(args: Any, plan: Plan, measured: list[dict[str, Any]]) -> None:
        measured.append(entry(QUIET, 0, 10.0))
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "measure", interrupted)
    with pytest.raises(KeyboardInterrupt):
        command.main(["--quick", "--output", str(tmp_path / "made.json")])
    kept = json.loads((tmp_path / "made.incomplete.json").read_text())
    assert [one["situation"] for one in kept["measured"]] == [QUIET]
    assert not (tmp_path / "made.json").exists()


def test_there_are_cold_models_for_the_whole_run() -> None:
    plan = Plan(rounds=5, seconds=6.0, tokens=150, streams=4, tries=2)
    assert plan.cold_models > 20 * 5 * 2 * 6


def test_the_plot_has_bars_for_each_situation(results: dict[str, Any]) -> None:
    (axes,) = report.plots(results)["gaps"].get_axes()
    assert len(axes.patches) == 4 * len(SITUATIONS)
    assert axes.patches[0].get_height() == pytest.approx(15.0)  # p50 of quiet, of two rounds
