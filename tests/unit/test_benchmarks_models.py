"""The benchmark of many models: what is measured, what fits, and what the report makes of it."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import itertools
import json
import runpy
import subprocess
import sys
import threading
import urllib.error
from collections import Counter
from collections.abc import Callable, Sequence
from email.message import Message
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.common import cli
from benchmarks.common.servers import ServerFailed
from benchmarks.common.worker import WorkerFailed
from benchmarks.load.apis import Answer, Generate
from benchmarks.load.outcome import Outcome
from benchmarks.load.summary import summary
from benchmarks.load.traffic import Ask, Mix, Traffic
from benchmarks.models import __main__ as command
from benchmarks.models import cliff, measure, memory, plan, report, selection, serving
from benchmarks.models.clients import Scan, ended_per_second
from benchmarks.models.library import Library
from benchmarks.models.peers import wire
from benchmarks.models.peers.replica import Replica
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
from benchmarks.models.serving import Load

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


def test_each_round_begins_with_another_system_for_each_size_of_the_cache() -> None:
    made = plan.cells([GPT2SERVE, FASTAPI, RAY_CT2], [10, 40], SIZES, 24 * GB)
    orders = [[(c.cache, c.system) for c in plan.in_order(made, n)] for n in range(4)]
    assert orders[0] == [  # forty transformers models do not fit
        (10, GPT2SERVE),
        (10, FASTAPI),
        (10, RAY_CT2),
        (40, GPT2SERVE),
        (40, RAY_CT2),
    ]
    assert [order[0][1] for order in orders] == [GPT2SERVE, FASTAPI, RAY_CT2, GPT2SERVE]
    assert all(set(order) == set(orders[0]) for order in orders)


@pytest.mark.parametrize("traffic", plan.TRAFFICS)
def test_the_cliff_goes_from_half_the_cache_to_four_times_as_much(traffic: str) -> None:
    points = plan.steps(LRU, cache=8, models=100)
    assert [p.ratio for p in points if p.traffic == traffic] == [0.5, 1.0, 2.0, 4.0]


def test_the_cliff_needs_no_more_models_than_there_are() -> None:
    assert {p.models for p in plan.steps(LRU, cache=8, models=16)} == {4, 8, 16}


def test_the_cliff_leaves_out_what_does_not_fit() -> None:
    args = command.with_defaults(command.build_parser().parse_args([]))
    made = command.cliff_of(args, SYSTEMS, SIZES, 4 * GB)  # of which FastAPI's models take all
    assert [(one.name, cell.fits) for one, cell, _ in made] == [
        (LRU.name, True),
        (PINNED.name, True),
        (plan.DICT.name, False),
    ]


def test_a_cache_is_filled_as_it_would_be_after_a_while() -> None:
    models = list("abcdefgh")
    assert plan.filling(plan.Step(plan.SCAN, 5, 3), models) == ["c", "d", "e"]
    assert plan.filling(plan.Step(plan.ZIPF, 5, 3), models) == ["c", "b", "a"]
    assert plan.filling(plan.Step(plan.SCAN, 2, 3), models) == ["a", "b"]


# -- what is asked ------------------------------------------------------------------------


def test_a_scan_asks_models_one_after_the_other_whatever_the_batch() -> None:
    mix = Mix(("a", "b", "c"), seed=3)
    asks = list(itertools.islice(Scan(mix).endless(), 1000))
    assert [ask.model for ask in asks] == [mix.models[n % 3] for n in range(1000)]
    random = list(itertools.islice(Traffic(mix).endless(), 1000))
    assert [(one.prompt, one.tokens) for one in asks] == [(o.prompt, o.tokens) for o in random]


def test_the_traffics_of_the_cliff_are_three_different_ones() -> None:
    load = Load(clients=8, seconds=1, warm_up=0, zipf=0.9)
    made = [load.like(traffic) for traffic in plan.TRAFFICS]
    assert [(one.zipf, one.scan) for one in made] == [(0.0, False), (0.9, False), (0.0, True)]


def test_a_lock_lets_nobody_count_more_than_was_done() -> None:
    # One text a second, first come first served, and 8 clients: each waits 8 seconds. Three
    # seconds after the start it is measured for two.
    ask = Ask(0, "m", "My", 30, 1)
    ends = [(max(0, n - 8), n) for n in range(1, 14)]
    outcomes = [Outcome(ask, b - 3, b - 3, None, e - 2.5, 30, "ok") for b, e in ends]
    assert ended_per_second(outcomes, 2) == {"requests_per_second": 1, "tokens_per_second": 30}
    assert summary(outcomes, 2)["requests_per_second"] > 1.2  # what it would say


# -- failures -----------------------------------------------------------------------------


class _Server(contextlib.nullcontext[None]):
    url = ""


class _Bench:
    """Servers that only remember what they are. Those that `fails` is true of do not start."""

    library = Library(Path("unused"), tuple("abcdefgh"), SIZES)

    def __init__(self, fails: Callable[[plan.Cell, bool], bool], error: BaseException) -> None:
        self._fails, self._error = fails, error
        self.started: list[str] = []

    def start(self, cell: plan.Cell, pinned: Sequence[str] = ()) -> tuple[Any, float]:
        self.started.append(cell.label)
        if self._fails(cell, bool(pinned)):
            raise self._error
        return _Server(), 1.0


@pytest.fixture
def _without_servers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "new_clients", contextlib.nullcontext)
    monkeypatch.setattr(serving, "fill", lambda *_: None)
    monkeypatch.setattr(serving, "resident", lambda _: 3)
    monkeypatch.setattr(Load, "measure", lambda *_: _figures(5.0))


_LOAD = Load(clients=8, seconds=1, warm_up=0, zipf=1.0)
_FAILURES: list[Exception] = [
    ServerFailed("It ended with status 1: Traceback\nOSError: no space"),
    WorkerFailed("The worker ended with status 1."),
    urllib.error.URLError("refused"),
    urllib.error.HTTPError("/generate", 503, "Service Unavailable", Message(), None),
    TimeoutError("timed out"),
    http.client.IncompleteRead(b""),
]


@pytest.mark.parametrize("error", _FAILURES, ids=lambda error: type(error).__name__)
@pytest.mark.usefixtures("_without_servers")
def test_a_failure_costs_that_cache_of_that_system_and_nothing_else(error: Exception) -> None:
    bench: Any = _Bench(lambda cell, _: cell.label == "fastapi transformers, cache for 2", error)
    cells = plan.cells([GPT2SERVE, FASTAPI], [1, 2], SIZES, 24 * GB)
    results = measure.new_results()
    measure.measure_cells(bench, _LOAD, cells, 2, results)
    assert list(results["failed"]) == ["fastapi transformers, cache for 2"]
    assert bench.started.count("fastapi transformers, cache for 2") == 1
    found = [(e["system"], e["cache"], e["round"]) for e in results["cells"]]
    assert sorted(found) == sorted(
        (name, cache, number)
        for number in (0, 1)
        for name, cache in ((GPT2SERVE.name, 1), (FASTAPI.name, 1), (GPT2SERVE.name, 2))
    )


@pytest.mark.usefixtures("_without_servers")
def test_a_failure_in_a_later_round_takes_the_former_ones_along() -> None:
    bench: Any = _Bench(lambda *_: len(bench.started) > 4, ServerFailed("Out of memory."))
    cells = plan.cells([GPT2SERVE, FASTAPI], [1], SIZES, 24 * GB)
    results = measure.new_results()
    measure.measure_cells(bench, _LOAD, cells, 3, results)
    # The third round begins with gpt2serve again; both fail in it.
    assert bench.started[4] == "gpt2serve int8, cache for 1"
    assert results["failed"] == dict.fromkeys((cell.label for cell in cells), "Out of memory.")
    assert results["cells"] == []


@pytest.mark.usefixtures("_without_servers")
def test_a_failure_at_the_cliff_costs_one_server() -> None:
    bench: Any = _Bench(lambda _, pinned: pinned, urllib.error.URLError("refused"))
    args = command.with_defaults(command.build_parser().parse_args(["--quick"]))
    todo = command.cliff_of(args, SYSTEMS, SIZES, 24 * GB)
    results = measure.new_results()
    measure.measure_cliff(bench, _LOAD, todo, 2, results)
    assert list(results["failed"]) == ["gpt2serve int8, half pinned, at the cliff"]
    systems = [entry["system"] for entry in results["cliff"]]
    # Two ratios, two traffics, two rounds; the second begins with another one.
    assert Counter(systems) == {LRU.name: 8, plan.DICT.name: 8}
    assert (systems[0], systems[8]) == (LRU.name, plan.DICT.name)


def test_a_measurement_in_which_nothing_is_answered_is_a_failure(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    nothing = {"requests": 9, "ok": 0, "codes": {"connect": 9}}
    monkeypatch.setattr(serving, "undisturbed", lambda *_: nothing)
    server: Any = SimpleNamespace(url="", pid=1)
    clients: Any = SimpleNamespace(call=print, pid=1)
    with pytest.raises(ServerFailed, match="connect"):
        _LOAD.measure(clients, server, ["a"], seed=0)


def test_that_no_request_began_after_the_warm_up_is_no_failure(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(serving, "undisturbed", lambda *_: summary([], 1.0) | {"others": 0.0})
    nobody: Any = SimpleNamespace(url="", call=print, pid=2**22 + 1)
    assert _LOAD.measure(nobody, nobody, ["a"], seed=0)["end_to_end_ms"] is None


@pytest.mark.usefixtures("_without_servers")
def test_what_was_measured_before_an_interruption_is_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = _Bench(lambda *_: len(bench.started) > 2, KeyboardInterrupt())
    monkeypatch.setattr(command, "prepare", lambda *_: None)
    monkeypatch.setattr(command.library, "make", lambda *_: _Bench.library)
    monkeypatch.setattr(command, "memory_limit", lambda: 24 * GB)
    monkeypatch.setattr(measure, "Bench", lambda *_: bench)
    # None is started here, so none needs to be installed.
    monkeypatch.setattr(command, "installed", lambda _: [GPT2SERVE, FASTAPI])
    file = tmp_path / "models.json"
    with pytest.raises(KeyboardInterrupt):
        command.main(["--output", str(file), "--systems", GPT2SERVE.name, FASTAPI.name])
    saved = json.loads(file.with_suffix(".incomplete.json").read_text())
    assert [e["system"] for e in saved["cells"]] == [GPT2SERVE.name, FASTAPI.name]
    assert not file.exists()
    assert FASTAPI.name in report.markdown(saved)


def test_an_interrupted_command_ends_with_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "begin", interrupted)
    monkeypatch.setattr(sys, "argv", ["models", "--quick"])
    monkeypatch.delitem(sys.modules, "benchmarks.models.__main__")
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("benchmarks.models", run_name="__main__")
    assert ended.value.code == 130


# -- choosing -----------------------------------------------------------------------------


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


class _Slow:
    """A model whose text takes until it is let go on."""

    def __init__(self) -> None:
        self.begun, self.go_on = threading.Event(), threading.Event()

    def generate(self, wish: wire.Wish) -> wire.Text:
        self.begun.set()
        assert self.go_on.wait(10)
        return wire.Text(wish.prompt, 1, 1)


_WISH = wire.Wish("m", "My", 1, 0)


def test_a_ray_replica_loads_while_it_makes_a_text() -> None:
    async def scenario() -> None:
        slow = _Slow()
        replica = Replica(lambda _: slow)
        loaded = await replica.load("m")
        text = asyncio.create_task(replica.answer(_WISH, lambda: _soon(loaded)))
        await asyncio.to_thread(slow.begun.wait, 10)
        await asyncio.wait_for(replica.load("another"), 10)
        assert not text.done()
        slow.go_on.set()
        await text

    asyncio.run(scenario())


def test_who_waits_for_a_load_misses_and_who_comes_later_hits_however_long_it_takes() -> None:
    async def scenario() -> None:
        model = _Slow()
        model.go_on.set()
        replica = Replica(lambda _: model)
        missed = await replica.answer(_WISH, lambda: replica.load("m"))
        assert missed["timing"]["load_ms"] > 0
        loaded = await replica.load("m")

        async def hit_after_a_delay() -> wire.Loaded:
            await asyncio.sleep(0.01)  # a busy event loop
            return loaded

        hit = await replica.answer(_WISH, hit_after_a_delay)
        assert hit["timing"]["load_ms"] == 0

    asyncio.run(scenario())


async def _soon(loaded: wire.Loaded) -> wire.Loaded:
    return loaded


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
    place = {"traffic": plan.SCAN, "models": int(8 * ratio), "cache": 8, "ratio": ratio}
    return {"system": variant.name, **place, "round": 0} | _figures(requests, **others)


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
        "cliff_clients": 4,
        "sizes": SIZES,
        "memory_limit": 24 * 2**30,
        "left_out": [{"system": FASTAPI.name, "cache": 50, "cache_bytes": 24_900_000_000}],
        "cliff_left_out": [],
        "failed": {},
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
    ]
    failed = {"ray ctranslate2 int8, cache for 10": "No /dev/shm."}
    cliff = [_cliff(LRU, 4, 5.0, codes={"ok": 200, "503": 7})]
    text = report.markdown(_results(cells=cells, failed=failed, cliff=cliff))
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert any("fastapi transformers" in row and " 3 timeout " in row for row in rows)
    assert any(row.startswith("| 4 ") and " 7 503 " in row for row in rows)
    assert "fastapi transformers answered fewer than 100 requests in a measurement (17 at" in text
    assert "**Failed, and left out:** ray ctranslate2 int8, cache for 10 (No /dev/shm.)" in text


def test_nothing_is_said_of_errors_and_few_requests_where_there_are_none() -> None:
    text = report.markdown(_results())
    assert "**Failed" not in text
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


def test_what_does_not_fit_at_the_cliff_is_told() -> None:
    left_out = [{"system": FASTAPI.name, "cache": 8, "cache_bytes": 4_000_000_000}]
    text = report.markdown(_results(cliff_left_out=left_out))
    assert "fastapi transformers was left out of the cliff" in text
    assert "does not fit: 4.0 GB" in text


@pytest.mark.parametrize(
    ("traffic", "share"), [(plan.UNIFORM, 0.25), (plan.SCAN, 0.25), (plan.ZIPF, 0.67)]
)
def test_the_best_share_of_hits_is_that_of_the_most_asked_models(
    traffic: str, share: float
) -> None:
    # 1 + 1/2 + ... + 1/8 of 1 + 1/2 + ... + 1/32
    assert cliff.at_best(_results(), traffic, 4) == pytest.approx(share, abs=0.005)
    assert cliff.at_best(_results(), traffic, 0.5) == pytest.approx(1)


def test_a_table_for_each_traffic_with_latency_errors_and_memory() -> None:
    text = report.markdown(_results())
    head, row = (
        line for line in text.splitlines() if line.startswith(("| models / cache", "| 0.5 "))
    )
    assert "p50" in head
    assert "max" in head
    assert cliff.held([{"resident": 9}, {"resident": 7}, {"resident": 8}]) == "7-9"
    for cell in ("500 (500-500) ms", "9000 (9000-9000) ms", "80%", "100%", "none", "2.0 GB"):
        assert f"| {cell} " in row
    assert "**One after the other**" in text
    assert "**Zipf" not in text  # nothing of it was measured


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
    assert set(report.plots(results)) == {"throughput", "cliff", "hits"}


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
    panels = dict(zip(plan.TRAFFICS, drawn["cliff"].axes, strict=True))
    assert panels[plan.ZIPF].get_title() == "Zipf with exponent 1, at random"
    assert not panels[plan.ZIPF].get_lines()
    lines = panels[plan.SCAN].get_lines()
    assert [line.get_label() for line in lines] == [LRU.name, PINNED.name]
    assert [line.get_linestyle() for line in lines] == ["-", "--"]
    assert len({axes.get_ylim() for axes in panels.values()}) == 1
    hits = drawn["hits"].axes[-1].get_lines()
    assert np.array_equal(hits[-1].get_ydata(), [1.0, 0.25])  # the best that is possible
