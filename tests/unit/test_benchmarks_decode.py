"""What `benchmarks.decode` measures and says, from made-up measurements; nothing is timed."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.common.worker import WorkerFailed
from benchmarks.decode import comparisons, figures, measure, plan, report
from benchmarks.decode.__main__ import chosen, parser, settings
from benchmarks.decode.plan import Cell
from benchmarks.peers import (
    CT2_INT8,
    CUDA_SYSTEMS,
    ENGINE_FP32,
    ENGINE_INT8,
    LARGEST_BATCH,
    SYSTEMS,
    TRANSFORMERS,
    System,
)

# -- what is measured ---------------------------------------------------------------------


@given(st.sampled_from(plan.SIZES), st.sampled_from(plan.PROMPTS), st.integers(1, 64))
def test_a_whole_batch_grows_together_for_some_steps(batch: int, prompt: int, least: int) -> None:
    cell = Cell(batch, prompt)
    tokens = cell.new_tokens(least)
    assert tokens >= least
    # The first text has a token after each of the other chunks before all have begun.
    assert tokens - math.ceil(batch * prompt / plan.PREFILL_CHUNK) >= plan.LEAST_TOGETHER
    assert prompt + tokens <= 1024


@pytest.mark.parametrize(
    ("spent", "expected"),
    [([], True), ([80.0], False), ([37.0], True), ([38.0], False), ([1.0] * 7, False)],
)
def test_a_cell_is_repeated_while_it_is_cheap(spent: list[float], *, expected: bool) -> None:
    assert plan.wants_round(spent, rounds=7, most=75.0) == expected


@given(st.floats(0.01, 500), st.integers(1, 20), st.floats(1, 100))
def test_a_cell_never_takes_much_longer_than_it_may(
    seconds: float, rounds: int, most: float
) -> None:
    spent: list[float] = []
    while plan.wants_round(spent, rounds, most):
        spent.append(seconds)
    assert 1 <= len(spent) <= rounds
    assert len(spent) == 1 or sum(spent) <= most * (1 + 1e-9)


def test_what_takes_too_long_is_shortened_for_slow_systems_first() -> None:
    cells = plan.cells(plan.SIZES, plan.PROMPTS)
    shortened = {
        precision: {
            (cell.batch, cell.prompt)
            for cell in cells
            if plan.is_shortened(precision, cell, cell.new_tokens(32))
        }
        for precision in ("fp32", "int8", "q8_0", "fp16")
    }
    assert shortened["fp32"] == {(32, 512), (64, 512)}
    assert shortened["int8"] == shortened["q8_0"] == {(64, 512)}
    assert shortened["fp16"] == set()


def test_systems_of_another_device_are_not_listed() -> None:
    cpu = chosen(parser().parse_args([]))
    assert cpu == list(SYSTEMS)
    assert chosen(parser().parse_args(["--device", "cuda"])) == list(CUDA_SYSTEMS)
    assert {system.device for system in cpu} == {"cpu"}


def test_options_choose_systems_and_cells() -> None:
    args = parser().parse_args(["--quick", "--only", ENGINE_INT8, "--only", CT2_INT8])
    assert [system.name for system in chosen(args)] == [ENGINE_INT8, CT2_INT8]
    assert settings(args)["sizes"] == [1, 5, 16, 32]
    assert settings(args)["prompts"] == [8]
    args = parser().parse_args(["--skip", CT2_INT8, "--sizes", "3", "--rounds", "2"])
    assert CT2_INT8 not in [system.name for system in chosen(args)]
    assert settings(args)["sizes"] == [3]
    assert settings(args)["prompts"] == [8, 64, 512]
    assert settings(args)["rounds"] == 2


@pytest.mark.parametrize("wrong", [["--sizes", "65"], ["--prompts", "600"], ["--rounds", "0"]])
def test_options_that_cannot_be_measured_are_refused(
    wrong: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        parser().parse_args(wrong)
    assert "must be" in capsys.readouterr().err


# -- in which order -----------------------------------------------------------------------


class _Worker:
    """Stands for a system's process; writes down what it is asked."""

    pid = 0

    def __init__(self, name: str, log: list[tuple[str, int, int]]) -> None:
        self._name, self._log = name, log

    def call(self, method: str, *, prompts: list[Any], tokens: int) -> dict[str, Any]:
        assert method == "generate"
        self._log.append((self._name, len(prompts), tokens))
        return _times(0.001, 0.002)


def _times(first: float, step: float, steps: int = 10) -> dict[str, Any]:
    return {
        "seconds": first + step * steps,
        "first_seconds": first,
        "decode_seconds": step * steps,
        "decode_steps": steps,
    }


def _grid(
    monkeypatch: pytest.MonkeyPatch, cells: list[Cell], *, fixed: bool = False
) -> tuple[measure.Grid, measure.Measurements, list[tuple[str, int, int]]]:
    log: list[tuple[str, int, int]] = []
    assets = _Assets()
    monkeypatch.setattr(measure, "undisturbed", lambda work, *_: {**work(), "others": 0.0})
    monkeypatch.setattr(
        measure.model, "prompts", lambda _, count, length: [{"ids": [0] * length}] * count
    )
    running: dict[System, Any] = {
        system: _Worker(system.name, log)
        for system in SYSTEMS
        if system.name in (ENGINE_INT8, TRANSFORMERS)
    }
    made = measure.Measurements()
    grid = measure.Grid(
        running,
        assets,  # type: ignore[arg-type]
        cells,
        new_tokens=32,
        fixed=fixed,
        made=made,
    )
    return grid, made, log


class _Assets:
    checkpoint = None


def test_every_system_is_measured_in_turn_in_every_round(monkeypatch: pytest.MonkeyPatch) -> None:
    grid, made, log = _grid(monkeypatch, [Cell(1, 8), Cell(64, 8)])
    grid.measure(rounds=2, most_seconds=60)
    turns = [(entry["round"], entry["batch"], entry["system"]) for entry in made.entries]
    orders = (ENGINE_INT8, TRANSFORMERS), (TRANSFORMERS, ENGINE_INT8)
    assert turns == [
        (number, batch, name) for number in range(2) for batch in (1, 64) for name in orders[number]
    ]
    warm, measured = log[:4], log[4:]
    assert {size for _, size, _ in warm} == {1, 64}
    assert {tokens for _, _, tokens in measured} == {32}


def test_where_it_would_take_too_long_prompts_are_read_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    grid, made, _ = _grid(monkeypatch, [Cell(1, 512), Cell(32, 512)])
    grid.measure(rounds=1, most_seconds=60)
    assert {(e["system"], e["batch"]): e["tokens"] for e in made.entries} == {
        (ENGINE_INT8, 1): 32,
        (ENGINE_INT8, 32): Cell(32, 512).new_tokens(32),
        (TRANSFORMERS, 1): 32,
        (TRANSFORMERS, 32): 1,
    }


def test_a_system_that_fails_leaves_and_the_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    grid, made, log = _grid(monkeypatch, [Cell(1, 8), Cell(64, 8)])
    measured = _Worker.call

    def fails_at_64(worker: _Worker, method: str, **asked: Any) -> dict[str, Any]:
        is_measured = asked["tokens"] == 32
        if worker._name == TRANSFORMERS and is_measured and len(asked["prompts"]) == 64:
            raise WorkerFailed("Traceback ...\nMemoryError: no room")
        return measured(worker, method, **asked)

    monkeypatch.setattr(_Worker, "call", fails_at_64)
    grid.measure(rounds=2, most_seconds=60)
    assert made.failed == {TRANSFORMERS: "MemoryError: no room"}
    assert {entry["system"] for entry in made.entries} == {ENGINE_INT8}
    assert len(made.entries) == 4
    assert [name for name, _, tokens in log if tokens == 32].count(TRANSFORMERS) == 1


def test_long_prompts_get_more_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    grid, made, _ = _grid(monkeypatch, [Cell(1, 8), Cell(16, 512)])
    grid.measure(1, 60)
    tokens = {entry["batch"]: entry["tokens"] for entry in made.entries}
    assert tokens == {1: 32, 16: Cell(16, 512).new_tokens(32)}
    assert tokens[16] > 32


def test_a_number_of_tokens_that_was_asked_for_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    grid, made, _ = _grid(monkeypatch, [Cell(16, 512)], fixed=True)
    grid.measure(1, 60)
    assert {entry["tokens"] for entry in made.entries} == {32}


# -- what it says -------------------------------------------------------------------------


def _results(**times: list[dict[str, Any]]) -> dict[str, Any]:
    """times: for each system's short name, its generation in each round."""
    names = {"ours": ENGINE_INT8, "exact": ENGINE_FP32, "ct2": CT2_INT8, "hf": TRANSFORMERS}
    entries = [
        {"system": names[name], "batch": 1, "prompt": 8, "tokens": 11, "round": number}
        | {"others": 0.0}
        | made
        for name, rounds in times.items()
        for number, made in enumerate(rounds)
    ]
    return {
        "header": _HEADER,
        "device": "cpu",
        "sizes": [1],
        "prompts": [8],
        "rounds": 2,
        "new_tokens": 11,
        "cell_seconds": 75.0,
        "most_seconds": 25.0,
        "bandwidth": 1e10,
        "int8_rate": 2e12,
        "weight_bytes": {ENGINE_INT8: 50_000_000},
        "macs_per_token": 1_000_000_000,
        "head_macs": 200_000_000,
        "failed": {},
        "measurements": entries,
    }


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
    "versions": {"numpy": "2.4"},
}


def _lines(text: str) -> list[str]:
    return [" ".join(line.strip("| ").split()) for line in text.splitlines()]


def test_the_whole_report_from_raw_results() -> None:
    results = _results(
        ours=[_times(0.02, 0.010), _times(0.02, 0.010)],
        ct2=[_times(0.04, 0.015), _times(0.04, 0.025)],
    )
    lines = _lines(report.markdown(results))
    assert f"{ENGINE_INT8} | 100" in lines
    assert f"{ENGINE_INT8} | 10.0 (10.0-10.0)" in lines
    assert f"{CT2_INT8} | 20.0 (15.0-25.0)" in lines
    # 1.5 in the first round and 2.5 in the second.
    assert f"{ENGINE_INT8} / {CT2_INT8} | 2.00 (1.50-2.50)" in lines
    name = f"{ENGINE_INT8} / {CT2_INT8}, B=1"
    assert f"{name} | 2.00x (1.50x - 2.50x) | >= 1.80x | PASS" in lines
    # 50 MB at 10 GB/s are 5 ms; 1,000 million at 2 million million a second are 0.5 ms.
    assert f"{ENGINE_INT8} | 1 | 5.00 ms | 0.50 ms | 10.00 ms | 50%" in lines
    assert f"{CT2_INT8} | 40 (40-40)" in lines  # ms to the first token
    assert f"{ENGINE_INT8} | 400" in lines  # prompt tokens per second
    assert "in 0 of 4 measurements" in " ".join(lines)


def test_who_is_ahead_is_computed() -> None:
    slow, fast = [_times(0.1, 0.02)], [_times(0.01, 0.01)]
    results = _results(ours=fast, exact=slow, hf=slow)
    speeds = figures.values_of(results, figures.decode_speed)
    text = comparisons.fastest_table(results, speeds, "tokens per second", 8)
    assert "ahead of its fastest peer at 1 of 1" in text
    assert f"1 | {ENGINE_INT8}, 100 | {TRANSFORMERS}, 50 | 2.00" in _lines(text)
    results = _results(ours=slow, hf=fast)
    speeds = figures.values_of(results, figures.decode_speed)
    text = comparisons.fastest_table(results, speeds, "tokens per second", 8)
    assert "ahead of its fastest peer at 0 of 1" in text


def test_a_batch_that_never_grew_together_has_no_step() -> None:
    results = _results(ours=[_times(0.1, 0.0, steps=0)], hf=[_times(0.1, 0.01)])
    steps = figures.values_of(results, figures.step_ms)
    assert list(steps) == [(TRANSFORMERS, 1, 8)]
    assert figures.times_as_fast(steps, ENGINE_INT8, TRANSFORMERS, 1, 8) is None
    assert f"{ENGINE_INT8} | -" in _lines(report.markdown(results))


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
    entries = [
        {"system": name, "batch": size, "prompt": 8, **_times(0.1, step)}
        for name, step in ((ours, 0.01), (other, 0.1))
    ]
    results = {"measurements": entries, "prompts": [8], "sizes": [size]}
    text = comparisons.targets_table(results, figures.values_of(results, figures.step_ms))
    line = f"{ours} / {other}, B={size} | 10.00x (10.00x - 10.00x) | >= {least}0x | PASS"
    assert (line in _lines(text)) == (least is not None)


def test_where_only_prompts_were_read_is_said() -> None:
    results = _results(ours=[_times(0.1, 0.01)])
    assert "one token each" not in report.markdown(results)
    results["measurements"] += [
        {"system": TRANSFORMERS, "batch": batch, "prompt": 512, "tokens": 1, "round": 0}
        | _times(30.0, 0.0, steps=0)
        for batch in (32, 64)
    ]
    assert f"{TRANSFORMERS}: 32 x 512, 64 x 512." in report.markdown(results)


def test_what_failed_is_said() -> None:
    results = _results(ours=[_times(0.1, 0.01)]) | {"failed": {TRANSFORMERS: "no room"}}
    assert f"**Failed, and left out:** {TRANSFORMERS} (no room)." in report.markdown(results)


def test_results_of_a_gpu_have_no_limits_of_the_processor() -> None:
    results = _results(ours=[_times(0.1, 0.01)])
    for name in ("bandwidth", "int8_rate", "weight_bytes", "macs_per_token", "head_macs"):
        del results[name]
    text = report.markdown(results | {"device": "cuda", "gpu": ["a GPU"]})
    assert "### Limits" not in text
    assert "on\na GPU." in text
    assert set(report.plots(results)) == {"speed", "prefill"}


def test_the_readme_has_four_systems_and_two_ratios() -> None:
    results = _results(ours=[_times(0.1, 0.01)], ct2=[_times(0.1, 0.02)], hf=[_times(0.1, 0.05)])
    lines = _lines(report.readme(results))
    assert "tokens per second, batch of | 1" in lines
    assert f"{CT2_INT8} | 50" in lines
    assert f"**{ENGINE_INT8} / {CT2_INT8}** | 2.0x" in lines
    assert f"**{ENGINE_INT8} / {TRANSFORMERS}** | 5.0x" in lines
    assert "commit abc" in lines[-1]
    assert "2 of 2 cores" in lines[-1]


def test_plots_show_every_system_and_the_limits() -> None:
    results = _results(ours=[_times(0.1, 0.01)], hf=[_times(0.1, 0.05)])
    plots = report.plots(results)
    speed, prefill = plots["speed"].axes[0], plots["prefill"].axes[0]
    labels = [line.get_label() for line in speed.get_lines()]
    assert labels[:2] == [ENGINE_INT8, TRANSFORMERS]
    assert labels[2:] == ["limit of memory, int8", "limit of int8 arithmetic"]
    assert list(speed.get_lines()[0].get_ydata()) == pytest.approx([100])
    assert list(speed.get_lines()[2].get_ydata()) == pytest.approx([200])
    assert list(prefill.get_lines()[0].get_ydata()) == pytest.approx([80])
    # Per token of a prompt of 8: 800 million, and an eighth of the head's 200 million.
    assert prefill.get_lines()[2].get_label() == "limit of int8 arithmetic"
    assert list(prefill.get_lines()[2].get_ydata()) == pytest.approx([2e12 / 825e6])


def test_the_largest_batch_is_one_that_systems_are_told_to_allow() -> None:
    assert max(plan.SIZES) == LARGEST_BATCH
