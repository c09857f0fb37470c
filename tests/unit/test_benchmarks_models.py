"""The benchmark of many models: what is measured, what fits, and what the report makes of it."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.load.apis import Answer, Generate
from benchmarks.load.traffic import Ask
from benchmarks.models import __main__ as command
from benchmarks.models import memory, plan, report, selection
from benchmarks.models.peers import wire
from benchmarks.models.plan import (
    CHECKPOINT,
    CT2,
    FASTAPI,
    GPT2SERVE,
    LRU,
    PACKAGE,
    PINNED,
    RAY_CT2,
    RAY_TRANSFORMERS,
    SAME_BYTES,
    SYSTEMS,
)
from benchmarks.models.selection import Selection

GB = 10**9
SIZES = {PACKAGE: 165_000_000, CHECKPOINT: 498_000_000, CT2: 127_000_000}


# -- what is measured ---------------------------------------------------------------------


def test_what_takes_more_than_four_fifths_of_the_memory_does_not_fit() -> None:
    assert plan.fits_into(10 * GB, 8 * GB)
    assert not plan.fits_into(10 * GB, 8 * GB + 1)


def test_fifty_transformers_models_do_not_fit_where_fifty_int8_models_do() -> None:
    made = plan.cells(SYSTEMS, [10, 20, 50], SIZES, 24 * GB)
    left_out = [(cell.system, cell.cache) for cell in made if not cell.fits]
    assert left_out == [(RAY_TRANSFORMERS, 50), (FASTAPI, 50)]


def test_systems_take_turns_for_each_size_of_the_cache() -> None:
    made = plan.cells([GPT2SERVE, FASTAPI], [20, 10], SIZES, 24 * GB)
    assert [(cell.cache, cell.system) for cell in made] == [
        (10, GPT2SERVE),
        (10, FASTAPI),
        (20, GPT2SERVE),
        (20, FASTAPI),
    ]


def test_the_same_bytes_hold_more_small_models_at_the_smallest_cache_only() -> None:
    made = plan.cells([GPT2SERVE, SAME_BYTES], [10, 20], SIZES, 24 * GB)
    (cell,) = [cell for cell in made if cell.system is SAME_BYTES]
    assert (cell.cache, cell.held, cell.cache_bytes) == (10, 30, 4_980_000_000)


@given(
    caches=st.sets(st.integers(1, 500), min_size=1),
    sizes=st.fixed_dictionaries(dict.fromkeys(SIZES, st.integers(1, 2 * GB))),
    memory=st.integers(1, 500 * GB),
)
def test_each_system_has_one_cell_for_each_cache_and_it_fits_or_not(
    caches: set[int], sizes: dict[str, int], memory: int
) -> None:
    made = plan.cells([*SYSTEMS], sorted(caches), sizes, memory)
    several = [(cell.system, cell.cache) for cell in made if cell.system is not SAME_BYTES]
    assert len(several) == len(set(several)) == (len(SYSTEMS) - 1) * len(caches)
    for cell in made:
        assert cell.held * sizes[cell.system.weights] <= cell.cache_bytes
        assert cell.fits == (cell.cache_bytes <= plan.MEMORY_SHARE * memory)
        if cell.system is not SAME_BYTES:
            assert cell.held == cell.cache


def test_the_cliff_goes_from_half_the_cache_to_four_times_as_much() -> None:
    points = plan.steps(plan.VARIANTS, cache=8, models=100)
    assert [p.ratio for p in points if p.variant == LRU.name] == [0.5, 1.0, 1.5, 2.0, 4.0]
    assert [p.models for p in points] == sorted(p.models for p in points)


def test_the_cliff_needs_no_more_models_than_there_are() -> None:
    assert {p.models for p in plan.steps([LRU], cache=8, models=12)} == {4, 8, 12}


def test_a_package_that_is_missing_is_named() -> None:
    system = plan.System("x", PACKAGE, None, ("json", "no_such_package"), "pip install x")
    assert system.missing == ["no_such_package"]


def test_quick_asks_for_less_and_what_is_given_wins() -> None:
    full = command.with_defaults(command.build_parser().parse_args([]))
    quick = command.with_defaults(
        command.build_parser().parse_args(["--quick", "--models", "7", "--cache-models", "2", "3"])
    )
    assert (full.models, full.cache_models, full.rounds) == (100, [10, 20, 50], 2)
    assert (quick.models, quick.cache_models, quick.rounds) == (7, [2, 3], 1)
    assert quick.seconds < full.seconds


def test_systems_are_chosen_by_name_and_skipped_by_name() -> None:
    names = ["--systems", GPT2SERVE.name, SAME_BYTES.name, "--skip", SAME_BYTES.name]
    assert command.installed(command.build_parser().parse_args(names)) == [GPT2SERVE]


# -- what the peers say -------------------------------------------------------------------


def test_the_load_client_understands_a_peer_and_the_peer_understands_it() -> None:
    api = Generate("http://peer", stream=False, exact=True)
    wish = wire.Wish.read(api.body(Ask(0, "m/1", "My dream", 30, 7)))
    assert wish == wire.Wish("m/1", "My dream", 30, 7)

    answer = Answer()
    api.read_whole(wire.answer(wish, wire.Text("My dream is", 2, 30), 0.25), answer)
    assert (answer.tokens, answer.prompt_tokens, answer.load_ms) == (30, 2, 250.0)
    assert answer.text == "My dream is"


# -- memory -------------------------------------------------------------------------------


def test_smaps_fields_become_bytes() -> None:
    text = (
        "55d0-7ffd ---p 00000000 00:00 0    [rollup]\n"
        "Rss:                2000 kB\nPss:                 900 kB\nPss_Anon:            700 kB\n"
        "Private_Clean:       100 kB\nPrivate_Dirty:       300 kB\nSwap:                  0 kB\n"
    )
    assert memory.parse(text) == {"rss": 2000 * 1024, "pss": 900 * 1024, "private": 400 * 1024}


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_real_process_takes_memory_and_shares_some() -> None:
    code = "import sys; block = bytes(50_000_000); print(flush=True); sys.stdin.read()"
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", code], **pipes) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdout.readline()
        taken = memory.of_processes([child.pid])
        child.stdin.close()
    assert taken["rss"] > taken["pss"] >= taken["private"] > 0


def test_memory_of_a_process_that_ended_is_none() -> None:
    assert memory.of_processes([2**22 + 1]) == {"rss": 0, "pss": 0, "private": 0}


# -- the report ---------------------------------------------------------------------------


def _figures(requests: float, **others: Any) -> dict[str, Any]:
    return {
        "requests": 200,
        "ok": 200,
        "codes": {"ok": 200},
        "requests_per_second": requests,
        "tokens_per_second": 30 * requests,
        "end_to_end_ms": {"p50": 500.0, "p90": 900.0, "p99": 8e3 / max(requests, 0.1), "max": 9e3},
        "hit_ratio": 0.8,
        "load_ms": {"p50": 100.0, "p90": 150.0, "p99": 200.0, "max": 200.0},
        "others": 0.01,
        "memory": {"rss": 2 * GB, "pss": GB, "private": GB},
        **others,
    }


def _cell(system: plan.System, cache: int, number: int, **values: Any) -> dict[str, Any]:
    held = 30 if system is SAME_BYTES else cache
    ours = {"resident": cache} if system.is_ours else {}
    entry = {"system": system.name, "cache": cache, "held": held, "round": number}
    return entry | ours | {"start_seconds": 1.0} | _figures(**values)


def _cliff(variant: plan.Variant, ratio: float, requests: float, **others: Any) -> dict[str, Any]:
    entry = {"system": variant.name, "models": int(8 * ratio), "cache": 8, "ratio": ratio}
    return entry | {"round": 0} | _figures(requests, **others)


def _results(**changes: Any) -> dict[str, Any]:
    header = {
        "date": "2026-01-01T00:00:00+00:00",
        "command": "python -m benchmarks.models",
        "commit": "abc1234",
        "processor": "A processor",
        "extensions": ["avx2"],
        "cores": 2,
        "threads": 2,
        "memory_bytes": 24 * 2**30,
        "system": "Linux",
        "load_average": 0.1,
        "versions": {"gpt2serve": "0.1.0"},
    }
    speeds = {GPT2SERVE: 12.0, FASTAPI: 3.0, RAY_CT2: 6.0, SAME_BYTES: 15.0}
    cells = [
        _cell(system, 10, number, requests=requests * (1 + number))
        for system, requests in speeds.items()
        for number in (0, 1)  # the machine is twice as fast in the second
    ]
    cliff = [_cliff(LRU, 0.5, 20.0), _cliff(LRU, 4, 5.0), _cliff(PINNED, 4, 6.0)]
    return {
        "benchmark": "models",
        "quick": False,
        "header": header,
        "models": 100,
        "clients": 8,
        "seconds": 10.0,
        "zipf": 1.0,
        "rounds": 2,
        "cliff_cache": 8,
        "sizes": SIZES,
        "memory_limit": 24 * 2**30,
        "left_out": [{"system": FASTAPI.name, "cache": 50, "cache_bytes": 24_900_000_000}],
        "cells": cells,
        "cliff": cliff,
        **changes,
    }


def test_ratios_pair_rounds_so_that_a_faster_round_does_not_matter() -> None:
    chosen = Selection(_results()["cells"], "cache")
    found = chosen.ratio(GPT2SERVE.name, FASTAPI.name, 10, selection.requests)
    assert found is not None
    assert found.values == (4.0, 4.0)


def test_a_round_that_one_system_missed_is_left_out_of_the_ratio() -> None:
    cells = [
        _cell(GPT2SERVE, 10, 0, requests=8.0),
        _cell(GPT2SERVE, 10, 1, requests=30.0),
        _cell(FASTAPI, 10, 1, requests=10.0),
        {"system": FASTAPI.name, "cache": 10, "held": 10, "round": 0, "error": "It ended."},
    ]
    found = Selection(cells, "cache").ratio(GPT2SERVE.name, FASTAPI.name, 10, selection.requests)
    assert found is not None
    assert found.values == (3.0,)


def test_the_report_has_all_systems_and_what_does_not_fit() -> None:
    text = report.markdown(_results())
    rows = [line for line in text.splitlines() if line.startswith("| 10 ")]
    assert any("gpt2serve int8, same bytes (30 models)" in row for row in rows)
    assert any("fastapi transformers" in row and "4.00 (4.00-4.00)x" in row for row in rows)
    assert "| 50    | fastapi transformers                   | does not fit: 24.9 GB |" in text
    assert "2.00 times at least (ray ctranslate2 int8, cache for 10)" in text
    assert "4.00 times at most (fastapi transformers, cache for 10)" in text


def test_how_many_models_fit_is_computed_from_their_sizes() -> None:
    assert "41 of transformers fp32 (498 MB each)" in report.markdown(_results())
    assert "82 of transformers fp32" in report.markdown(_results(memory_limit=48 * 2**30))


def test_errors_and_few_requests_are_told() -> None:
    cells = [
        _cell(GPT2SERVE, 10, 0, requests=9.0),
        _cell(FASTAPI, 10, 0, requests=2.0) | {"ok": 17, "codes": {"ok": 17, "timeout": 3}},
        {"system": RAY_CT2.name, "cache": 10, "held": 10, "round": 0, "error": "No /dev/shm."},
    ]
    text = report.markdown(_results(cells=cells))
    assert "fastapi transformers, cache for 10: 17 ok, 3 timeout." in text
    assert "fastapi transformers answered fewer than 100 requests in a measurement (17 at" in text
    assert "ray ctranslate2 int8, cache for 10: the server did not start." in text


def test_nothing_is_said_of_errors_and_few_requests_where_there_are_none() -> None:
    text = report.markdown(_results())
    assert "did not start" not in text
    assert "fewer than" not in text


def test_the_cliff_says_what_is_left_and_what_pinning_gives() -> None:
    text = report.markdown(_results())
    assert "gpt2serve int8 keeps 25% of its requests a second when 4 times as many" in text
    assert "Half of the cache pinned gives 1.20 times the requests of none pinned" in text
    assert any("| 25% " in line for line in text.splitlines() if line.startswith("| 4 "))


def test_without_a_cliff_there_is_no_section_and_no_plot_of_it() -> None:
    results = _results(cliff=[])
    assert "cliff" not in report.markdown(results)
    assert set(report.plots(results)) == {"throughput"}


def test_a_measurement_without_answers_is_a_dash_and_no_error() -> None:
    empty: dict[str, Any] = {
        "end_to_end_ms": None,
        "hit_ratio": None,
        "load_ms": None,
        "ok": 0,
        "codes": {},
    }
    cells = [_cell(GPT2SERVE, 10, 0, requests=0.0, **empty), _cell(FASTAPI, 10, 0, requests=1.0)]
    results = _results(cells=cells, cliff=[_cliff(LRU, 1.0, 0.0, **empty)])
    assert "| -" in report.markdown(results)
    assert set(report.plots(results)) == {"throughput", "cliff"}


def test_a_curve_for_each_system_in_both_plots() -> None:
    drawn = report.plots(_results())
    left, right = drawn["throughput"].axes
    assert [line.get_label() for line in left.get_lines()] == [
        GPT2SERVE.name,
        FASTAPI.name,
        RAY_CT2.name,
        SAME_BYTES.name,
    ]
    assert np.array_equal(left.get_lines()[0].get_ydata(), [18.0])  # the median of both rounds
    assert right.get_ylabel() == "p99, ms"
    hits = drawn["cliff"].axes[1].get_lines()
    assert np.array_equal(hits[-1].get_ydata(), [1.0, 0.25])  # the best that is possible
