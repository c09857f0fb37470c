"""The fleet benchmark: its figures, its search, and its report, from made-up results."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.common import results as results_module
from benchmarks.common.model import ROOT
from benchmarks.common.servers import metric
from benchmarks.fleet import __main__ as command
from benchmarks.fleet import answers as answers_module
from benchmarks.fleet import report, report_needed
from benchmarks.fleet.answers import Answers, Wishes
from benchmarks.fleet.calibrate import Calibration, Effort
from benchmarks.fleet.figures import Requests, figures, relative_errors
from benchmarks.fleet.loader import NEVER, Loader, Packer
from benchmarks.fleet.questions import Case, LossPlan, loss, replicas_needed
from benchmarks.fleet.replica import Settings
from benchmarks.fleet.routing import Ring, Uniform
from benchmarks.fleet.simulation import LOST, Fleet, Loss, Outcome
from benchmarks.fleet.times import Curve, ServerTimes
from benchmarks.fleet.trace import Popularity, recorded
from benchmarks.fleet.validate import measured_requests, rates
from benchmarks.fleet.warm import Past
from gpt2serve.engine.worker import STEPS_WORTH_PACKING

TIMES = ServerTimes(
    decode=((1, 0.010), (2, 0.012), (4, 0.020)),
    prefill=((4, 0.010), (8, 0.012)),
    unpacked_decode=((1, 0.015), (4, 0.030)),
    unpacked_prefill=((4, 0.020), (8, 0.022)),
    load=0.2,
    first_load=0.3,
    pack=0.1,
    packing_beside_steps=2.0,
    step_beside_packing=1.5,
    overhead=0.001,
    model_bytes=100,
    resident_bytes=150,
)


# -- times --------------------------------------------------------------------------------


def test_a_curve_goes_through_its_points_and_on() -> None:
    curve = Curve(TIMES.decode)
    assert [curve.at(n) for n in (1, 2, 3, 4)] == pytest.approx([0.010, 0.012, 0.016, 0.020])
    assert curve.at(6) == pytest.approx(0.028)
    assert Curve([(3, 5.0)]).at(17) == 5.0
    with pytest.raises(ValueError, match="needs a point"):
        Curve([])


def test_times_pass_through_json() -> None:
    assert ServerTimes.from_json(json.loads(json.dumps(TIMES.as_json()))) == TIMES


def test_times_come_from_a_result_or_from_plain_json(tmp_path: Path) -> None:
    plain, result = tmp_path / "plain.json", tmp_path / "result.json"
    plain.write_text(json.dumps(TIMES.as_json()))
    result.write_text(json.dumps({"benchmark": "fleet", "times": TIMES.as_json()}))
    assert ServerTimes.from_file(plain) == ServerTimes.from_file(result) == TIMES
    for wrong in ("[]", "{}", "no", json.dumps(TIMES.as_json() | {"load": "x", "decode": []})):
        plain.write_text(wrong)
        with pytest.raises(ValueError, match=r"not the times|Expecting"):
            ServerTimes.from_file(plain)
    with pytest.raises(ValueError, match="No such file"):
        ServerTimes.from_file(tmp_path / "nothing")


def test_reading_from_the_disk_comes_on_top() -> None:
    read = TIMES.in_a_fleet(1000.0)
    assert (read.load, read.first_load) == pytest.approx((0.3, 0.4))
    assert read.decode == TIMES.decode
    assert read.model_bytes == 150


def test_loads_come_one_after_the_other_and_hashes_are_checked_once() -> None:
    loader = Loader(TIMES)
    loader.load("7", 0.0)
    loader.load("8", 0.1)
    assert loader.end == pytest.approx(0.3)
    assert loader.finish(loader.end) == "7"
    assert loader.end == pytest.approx(0.6)
    assert loader.finish(loader.end) == "8"
    assert loader.end == NEVER
    loader.load("7", 1.0)
    assert loader.end == pytest.approx(1.2)


def test_packing_goes_on_slower_beside_steps() -> None:
    packer = Packer(TIMES)
    packer.pace(0.0, beside_steps=True)
    packer.pack(1.0)
    assert packer.end == pytest.approx(1.2)
    packer.pace(1.1, beside_steps=False)
    assert packer.end == pytest.approx(1.15)
    packer.pace(1.12, beside_steps=True)
    assert packer.end == pytest.approx(1.18)
    assert packer.busy
    packer.finish()
    packer.pace(1.5, beside_steps=False)
    assert (packer.end, packer.busy) == (NEVER, False)


# -- one replica --------------------------------------------------------------------------


def alone(rows: list[tuple[float, int, int, int]], warm: list[int]) -> Requests:
    """Answers of one replica for (time, model, prompt, tokens), without the overhead."""
    times = replace(TIMES, overhead=0.0)
    fleet = Fleet(1, First(0), times, Settings(cache_bytes=300), recorded(rows))
    fleet.warm([warm], lambda _replica, _model: False)
    return fleet.run().requests


def test_a_cold_model_makes_its_first_token_unpacked_and_then_waits_to_be_packed() -> None:
    answer = alone([(0.0, 0, 4, 30)], [])
    # The prefill and the packing disturb each other.
    prefill = 1.5 * 0.020
    assert answer.first.tolist() == pytest.approx([0.3 + prefill])
    packed = 0.3 + prefill + (0.1 - prefill / 2)
    assert answer.total.tolist() == pytest.approx([packed + 29 * 0.010])
    assert answer.hits.tolist() == [False]


def test_a_first_token_does_not_wait_for_packing() -> None:
    answer = alone([(0.0, 0, 4, 30), (0.34, 0, 4, 1)], [])
    # A decode step comes between two prefills, as always.
    assert answer.first[1] == pytest.approx(1.5 * (0.015 + 0.020))


def test_a_model_with_few_steps_is_packed_when_they_have_become_many() -> None:
    few = STEPS_WORTH_PACKING - 1
    rows = [(at, 0, 4, few) for at in (0.0, 2.0, 4.0)]
    cold, second, third = (alone(rows, []).total - [0.3, 0.0, 0.0]).tolist()
    assert cold == pytest.approx(0.020 + (few - 1) * 0.015)
    # The packing begins with the second request, which waits for it and gains from it.
    prefill = 1.5 * 0.020
    assert second == pytest.approx(0.1 + prefill / 2 + (few - 1) * 0.010)
    assert third == pytest.approx(0.010 + (few - 1) * 0.010)


def test_packed_models_have_two_thirds_of_the_time_beside_unpacked_ones() -> None:
    few = STEPS_WORTH_PACKING - 1
    answer = alone([(0.0, 0, 4, 300), (0.0, 1, 4, few)], [0])
    assert (answer.total - answer.first)[1] == pytest.approx((few - 1) * 3 * 0.015, rel=0.05)
    # Two that are packed have the same share.
    answer = alone([(0.0, 0, 4, 300), (0.0, 1, 4, few)], [0, 1])
    assert (answer.total - answer.first)[1] == pytest.approx((few - 1) * 2 * 0.010, rel=0.05)


# -- figures ------------------------------------------------------------------------------


def made_up(first: list[float], total: list[float]) -> Requests:
    count = len(first)
    return Requests(
        due=np.arange(count, dtype=np.float64),
        first=np.array(first),
        total=np.array(total),
        tokens=np.full(count, 10),
        hits=np.arange(count) % 2 == 0,
    )


def test_figures_of_requests() -> None:
    told = figures(made_up([0.1, 0.2, 0.3, np.inf], [1.0, 1.0, 2.0, np.inf]))
    assert told["requests"] == 4
    assert told["failed"] == 1
    assert told["tokens_per_second"] == pytest.approx(30 / 4)
    assert told["hit_ratio"] == 0.5
    assert told["first_ms"] == {"p50": 300.0, "p90": None, "p99": None}


def test_errors_are_relative_to_what_was_measured() -> None:
    measured = figures(made_up([0.1] * 4, [1.0] * 4))
    predicted = figures(made_up([0.15] * 4, [0.5] * 4))
    errors = relative_errors(predicted, measured)
    assert errors["first_ms p50"] == pytest.approx(0.5)
    assert errors["total_ms p99"] == pytest.approx(-0.5)
    assert errors["hit_ratio"] == 0.0


def test_outcomes_of_a_load_test_become_requests() -> None:
    good = {"due": 2.0, "first": 2.5, "ended": 3.0, "tokens": 9, "code": "ok", "load_ms": 0.0}
    cold = good | {"due": 1.0, "load_ms": 90.0}
    failed = good | {"due": 3.0, "first": None, "code": "429", "load_ms": None, "tokens": 0}
    told = measured_requests([good, failed, cold])
    assert told.due.tolist() == [1.0, 2.0, 3.0]
    assert told.first.tolist() == [1.5, 0.5, np.inf]
    assert told.hits.tolist() == [False, True, False]


# -- questions ----------------------------------------------------------------------------


def test_more_replicas_are_needed_for_a_tighter_bound() -> None:
    case = Case(20, 30.0, "hash", 1000, 1.0, 600)
    loose, tight = (replicas_needed(case, TIMES, bound)["replicas"] for bound in (2.0, 0.35))
    assert 1 <= loose < tight
    impossible = replicas_needed(case, TIMES, 0.001)
    assert impossible["replicas"] is None
    assert impossible["replicas_shown"] > tight


def test_answers_are_given_for_several_seeds() -> None:
    case = Case(20, 30.0, "random", 1000, 1.0, 300)
    alone = [replicas_needed(replace(case, seed=n), TIMES, 0.6)["replicas"] for n in range(3)]
    together = replicas_needed(case, TIMES, 0.6, seeds=3)
    assert together["by_seed"] == alone
    assert together["replicas"] == sorted(alone)[1]
    impossible = replicas_needed(case, TIMES, 0.001, seeds=2)
    assert (impossible["replicas"], impossible["by_seed"]) == (None, [None, None])


def test_a_model_that_is_rarely_asked_for_is_not_known_everywhere() -> None:
    """As often as theory says: by random routing each replica gets a share of the requests."""
    popularity = Popularity(1000, 0.0)
    random, hashing = (Past(popularity, 2000.0, 4, homes) for homes in (None, Ring(range(4)).home))
    pairs = [(replica, model) for replica in range(4) for model in range(1000)]
    share = sum(random.had(*pair) for pair in pairs) / len(pairs)
    assert share == pytest.approx(1 - np.exp(-0.5), abs=0.02)
    share = sum(hashing.had(*pair) for pair in pairs) / 1000
    assert share == pytest.approx(1 - np.exp(-2.0), abs=0.03)
    assert not any(hashing.had(r, model) for r, model in pairs if Ring(range(4)).home(model) != r)
    assert all(Past(popularity, 1e9, 4, None).had(*pair) for pair in pairs)


class First(Uniform):
    """The first replica that the router knows of."""

    def choose(self, model: int, active: Any, total: int) -> int:
        return self._alive[0]


def lost_at_1(rows: list[tuple[float, int, int, int]], detection: float) -> Outcome:
    settings = Settings(cache_bytes=1000)
    fleet = Fleet(2, First(0), TIMES, settings, recorded(rows))
    fleet.warm([[0], [0]], None)
    return fleet.run(Loss(0, 1.0, detection=detection, connect=0.5))


def test_until_the_router_knows_requests_go_to_the_lost_replica_first() -> None:
    # One whose answer has begun, one that waits for a model's load, and some after the loss.
    rows = [(0.5, 0, 4, 100), (0.9, 1, 4, 2), (2.0, 0, 4, 1), (5.0, 0, 4, 1)]
    outcome = lost_at_1(rows, detection=3.0)
    assert outcome.codes.tolist() == [LOST, 0, 0, 0]
    assert outcome.again.tolist() == [False, True, True, False]
    broken, stranded, meanwhile, later = outcome.requests.first.tolist()
    assert broken == np.inf
    # Its connection was closed at 4.0; then its model was loaded elsewhere.
    assert stranded == pytest.approx(3.1 + 0.2 + 0.020 + 0.001)
    assert meanwhile == pytest.approx(0.5 + 0.010 + 0.001)
    assert later == pytest.approx(0.010 + 0.001)


def test_a_router_that_knows_at_once_sends_nothing_there() -> None:
    outcome = lost_at_1([(0.5, 0, 4, 100), (1.0, 0, 4, 1)], detection=0.0)
    assert outcome.codes.tolist() == [LOST, 0]
    assert not outcome.again.any()
    assert outcome.requests.first[1] == pytest.approx(0.011)


def test_requests_on_a_lost_replica_are_counted_and_its_models_move() -> None:
    plan = LossPlan(before=10.0, after=20.0, runs=2)
    told = loss(Case(20, 30.0, "hash", 1000, 1.0, 0), 4, TIMES, plan)
    assert told["lost"] > 0
    # About a quarter of all requests within 6 s of each of two runs, and those under way.
    assert 40 < told["again"] < 200
    assert told["unnoticed"]["p99_ms"] > 1000  # which is how long each waited for a connection
    assert [len(runs) for runs in told["p99_by_run"].values()] == [2, 2, 2]
    assert told["requests"] + told["lost"] == pytest.approx(2 * 30 * 30, rel=0.15)
    assert 0 < told["moved"]["least"] <= 0.25 <= told["moved"]["most"] < 1
    assert [window["from"] for window in told["windows"]] == [-10.0, -5.0, 0.0, 5.0, 10.0, 15.0]
    assert told["before"]["failed"] == 0


# -- the probe ----------------------------------------------------------------------------


class Fake(BaseHTTPRequestHandler):
    """Streams as the server does. Every model is cold, and packed in 0.1 s."""

    packs = 0

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        timing = {"queue_ms": 0.0, "load_ms": 200.0, "prefill_ms": 10.0}
        timing["decode_ms"] = 5.0 * (body["max_new_tokens"] - 1) * body["num_return_sequences"]
        Fake.packs += body["max_new_tokens"] >= STEPS_WORTH_PACKING
        tokens = ['{"index":0,"token":{}}'] * body["max_new_tokens"]
        end = {
            "model_version": "v",
            "usage": {"prompt_tokens": len(body["prompt"].split())},
            "timing": timing,
        }
        events = [*tokens, json.dumps(end), "[DONE]"]
        self._answer("".join(f"data: {event}\n\n" for event in events))

    def do_GET(self) -> None:
        phase = "gpt2serve_model_load_phase_seconds"
        self._answer(
            "gpt2serve_models_resident 4.0\ngpt2serve_model_cache_used_bytes 4e+02\n"
            f'{phase}_count{{phase="pack"}} {Fake.packs}\n'
            f'{phase}_sum{{phase="pack"}} {Fake.packs / 10}\n'
        )

    def _answer(self, text: str) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *arguments: Any) -> None:
        pass


@contextmanager
def fake_server() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Fake) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def test_a_calibration_reads_what_the_server_tells() -> None:
    effort = Effort(repeats=1, loads=2, tokens=5, storm_tokens=9)
    with fake_server() as url:
        assert metric(url, "models_resident") == 4
        with pytest.raises(RuntimeError, match="no gpt2serve_nothing"):
            metric(url, "nothing")
        checkpoint = ROOT / "samples" / "george-washington"
        watched: list[dict[str, Any]] = []
        calibration = Calibration(url, os.getpid(), checkpoint, ["a", "b", "c"], effort, watched)
        times = calibration.times()
    assert times.decode[0] == (1.0, pytest.approx(0.005))
    assert times.decode[-1] == (32.0, pytest.approx(0.160))
    assert dict(times.prefill)[8.0] == pytest.approx(0.010)
    assert (times.load, times.first_load, times.model_bytes) == (0.2, 0.2, 100)
    assert times.pack == pytest.approx(0.1)
    assert times.unpacked_decode == times.decode
    assert times.unpacked_prefill == times.prefill
    # Here all tokens come at once.
    assert (times.packing_beside_steps, times.step_beside_packing) == (1.0, 1.0)
    assert [one["what"] for one in watched][:2] == ["loads", "packing"]
    assert all("others" in one for one in watched)


def test_rates_are_shares_of_what_one_after_the_other_allows() -> None:
    assert rates(TIMES, [0.5, 1.0]) == pytest.approx([0.5 / 0.292, 1 / 0.292])


# -- the report ---------------------------------------------------------------------------


def entry(models: int, routing: str, replicas: int | None, **changes: Any) -> dict[str, Any]:
    latencies = {"p50": 20.0, "p90": 100.0, "p99": 900.0}
    return {
        "models": models,
        "rate": 50.0,
        "routing": routing,
        "cache_bytes": 2**31,
        "zipf": 1.0,
        "requests": 9000,
        "seed": 0,
        "balance": 1.5,
        "tried": 5,
        "all_events": 1_000_000,
        "failed": 0,
        "tokens_per_second": 1500.0,
        "hit_ratio": 0.5,
        "first_ms": latencies,
        "total_ms": latencies,
        "events": 200_000,
        "busy": 0.6,
        "replicas": replicas,
        "replicas_shown": replicas or 128,
        "by_seed": [replicas],
    } | changes


def side(first: float) -> dict[str, Any]:
    latencies = {"p50": first, "p90": 2 * first, "p99": 3 * first}
    return {
        "requests": 90,
        "failed": 0,
        "tokens_per_second": 100.0,
        "hit_ratio": 0.7,
        "first_ms": latencies,
        "total_ms": latencies,
    }


def window(begin: float, p99: float | None) -> dict[str, Any]:
    return {
        "from": begin,
        "requests": 100,
        "failed": 0,
        "hit_ratio": 0.5,
        "p50_ms": 20.0,
        "p99_ms": p99,
    }


@pytest.fixture
def results(header: dict[str, Any]) -> dict[str, Any]:
    lost = {
        "routing": "hash",
        "models": 10_000,
        "rate": 50.0,
        "replicas": 20,
        "requests": 60_000,
        "lost": 24,
        "again": 100,
        "runs": 8,
        "detection": 6.0,
        "connect": 1.0,
        "moved": {"least": 0.04, "most": 0.06},
        "before": window(0, 800.0),
        "unnoticed": window(0, 3000.0),
        "after": window(0, 2000.0),
        "p99_by_run": {"before": [700.0, 900.0], "unnoticed": [None, 3000.0], "after": [None]},
        "windows": [window(-5.0, 800.0), window(0.0, None), window(5.0, 2000.0)],
    }
    return {
        "benchmark": "fleet",
        "quick": False,
        "header": header,
        "times": TIMES.as_json(),
        "places": {"models": 40, "cache": 10},
        "calibration": [{"what": "loads", "others": 0.2}],
        "validation": [
            {
                "share": 1.3,
                "rate": 2.0,
                "seconds": 30.0,
                "others": 0.01,
                "lag_ms": {},
                "codes": {"ok": 90},
                "measured": side(50.0),
                "predicted": side(40.0),
                "errors": relative_errors(side(40.0), side(50.0)),
            }
        ],
        "assumptions": {
            "rate": 50.0,
            "bound": 1.0,
            "cache_bytes": 2**31,
            "zipf": 1.0,
            "uptime_hours": 24.0,
            "price_per_hour": 0.085,
            "storage_bytes_per_second": 1e9,
        },
        "models": [
            entry(1000, "hash", 12, by_seed=[13, 11, 12]),
            entry(1000, "random", 24),
            entry(1000, "least requests", 16),
            entry(1_000_000, "hash", 20),
            entry(1_000_000, "random", None, by_seed=[None, None, 120]),
            entry(1_000_000, "least requests", 19),
        ],
        "rates": [entry(100_000, "hash", 6, rate=10.0), entry(100_000, "hash", 20)],
        "caches": [entry(100_000, "hash", 25, cache_bytes=2**30)],
        "balances": [entry(100_000, "hash", 21, balance=None)],
        "loss": [lost, lost | {"routing": "least requests", "moved": None}],
        "simulation": {"seconds": 100.0, "processes": 2},
    }


@pytest.fixture
def header() -> dict[str, Any]:
    return {
        "date": "2026-01-01",
        "command": "python -m benchmarks.fleet",
        "commit": "abc",
        "processor": "a processor",
        "extensions": ["avx2"],
        "cores": 2,
        "threads": 2,
        "memory_bytes": 2**34,
        "system": "Linux",
        "load_average": 0.1,
        "versions": {"numpy": "2"},
    }


def test_the_cost_of_tokens(results: dict[str, Any]) -> None:
    # 12 replicas make 1500 tokens a second.
    expected = 12 * 0.085 / (1500 * 3600) * 1e6
    assert report_needed.cost(results["models"][0], results) == pytest.approx(expected)
    assert report_needed.cost(results["models"][4], results) is None


def test_the_report_is_derived_from_the_results(results: dict[str, Any]) -> None:
    text = report.markdown(results)
    assert "50 -> 40 (-20%)" in text
    assert "A model takes 1.5x the memory that the server counts" in text
    assert "Compared with random, consistent hashing needs 0.50x the replicas for 1,000" in text
    assert "0.75x the replicas for 1,000 models, 1.05x the replicas for 1,000,000" in text
    assert "not with 128" in text
    assert "12 (11-13)" in text
    assert "2.0 requests/s (1.3)" in text
    assert "in 1 of 2 measurements" in text
    assert "800 -> 3000 -> 2000" in text
    assert "700-900 -> 3000-inf -> -" in text
    assert "| 3.0    | 12.5" in text
    assert "4.0% to 6.0% of the models" in text
    assert "9 million events" not in text
    assert "10.0 million events" in text
    results["models"][0]["replicas"] = 36
    assert "1.50x the replicas for 1,000" in report.markdown(results)


def test_a_short_run_has_a_report_too(results: dict[str, Any]) -> None:
    for name in ("rates", "caches", "balances"):
        del results[name]
    text = report.markdown(results)
    assert "hash_balance_factor" not in text
    assert "Replicas needed" in text
    assert set(report.plots(results)) == {"replicas", "loss"}


def test_plots_are_drawn(results: dict[str, Any]) -> None:
    drawn = report.plots(results)
    replicas = drawn["replicas"].get_axes()
    assert [axes.get_xlabel() for axes in replicas] == ["models", "requests a second"]
    # The routing for which no number is enough has one point less.
    assert [len(line.get_xdata()) for line in replicas[0].get_lines()] == [2, 1, 2]
    assert len(drawn["loss"].get_axes()[0].get_lines()) == 4  # two, the loss, the bound


def test_a_run_with_given_times_says_that_nothing_was_measured(results: dict[str, Any]) -> None:
    for name in ("validation", "calibration", "places"):
        del results[name]
    text = report.markdown(results)
    assert "given with `--times`, not measured in this run" in text
    assert "Prediction beside measurement" not in text


# -- the run ------------------------------------------------------------------------------


def interrupt(times: ServerTimes, wishes: Any, plan: Any, results: dict[str, Any]) -> None:
    results["models"] = [entry(1000, "hash", 12)]
    raise KeyboardInterrupt


def test_what_was_answered_is_kept_when_the_run_is_interrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    times = tmp_path / "times.json"
    times.write_text(json.dumps(TIMES.as_json()))
    monkeypatch.setattr(command, "answer", interrupt)
    output = tmp_path / "made.json"
    with pytest.raises(KeyboardInterrupt):
        command.main(["--quick", "--times", str(times), "--output", str(output)])
    kept = json.loads((tmp_path / "made.incomplete.json").read_text())
    assert kept["models"][0]["replicas"] == 12
    assert kept["times"]["load"] == TIMES.load
    assert not output.exists()


def test_times_that_are_none_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "times.json"
    path.write_text("{}")
    with pytest.raises(SystemExit):
        command.main(["--times", str(path)])
    assert "not the times of a server" in capsys.readouterr().err


def test_answers_are_put_into_the_results_and_ending_early_waits_for_nothing() -> None:
    wishes = Wishes(rate=20.0, bound=1.0, cache_bytes=1000, zipf=1.0, uptime_hours=1.0)
    answers = Answers(TIMES, wishes, answers_module.Effort(requests=100, seeds=2), 1)
    plan = LossPlan(models=20, before=5.0, after=10.0, runs=2)
    told: dict[str, Any] = {}
    answers.all(told, [20], plan, sweeps=False)
    assert [len(told[name]) for name in ("models", "loss")] == [3, 3]
    assert [one["routing"] for one in told["loss"]] == ["hash", "random", "least requests"]
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert time.monotonic() - started < 20


def interrupted() -> None:
    with answers_module.processes(1) as pool:
        for _ in range(2):
            pool.submit(time.sleep, 60)
        raise KeyboardInterrupt


def test_the_report_of_a_file_is_the_same(results: dict[str, Any]) -> None:
    read = json.loads(results_module.dumps(results))
    assert report.markdown(read) == report.markdown(results)
