"""The load test's pure parts: traffic, summaries, decisions, texts and the report."""

from __future__ import annotations

import argparse
import contextlib
import copy
import itertools
import json
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self, cast

import numpy as np
import pytest

from benchmarks.common.model import ROOT
from benchmarks.common.servers import ServerFailed
from benchmarks.common.worker import WorkerFailed
from benchmarks.load import comparison, idle, live, options, report, systems, text
from benchmarks.load.__main__ import main
from benchmarks.load.apis import Answer, Completions, Generate
from benchmarks.load.deployment import advice
from benchmarks.load.idle import NeverIdle
from benchmarks.load.outcome import Outcome, Progress
from benchmarks.load.rounds import paired, sustained
from benchmarks.load.search import Search, is_sustained, rate_of, step_of
from benchmarks.load.summary import fell_behind, summary, wrong_lengths
from benchmarks.load.traffic import (
    TWEET_OUTPUTS,
    WORDS,
    Ask,
    Lengths,
    Mix,
    Traffic,
    burst_times,
    poisson_times,
    zipf,
)
from benchmarks.load.worker import make_api, make_mix

ASK = Ask(at=0.0, model="me/m", prompt="the people", tokens=10, seed=7)


def outcome(due: float = 0.0, **changes: Any) -> Outcome:
    """First token 100 ms after it was due, 10 tokens, ended after a second."""
    fields: dict[str, Any] = {
        "ask": ASK,
        "due": due,
        "sent": due,
        "first": due + 0.1,
        "ended": due + 1.0,
        "tokens": 10,
        "code": "ok",
    }
    return Outcome(**(fields | changes))


class TestTraffic:
    def test_popularity_follows_zipf(self) -> None:
        assert zipf(3, 1.0) == pytest.approx([6 / 11, 3 / 11, 2 / 11])
        assert zipf(4, 0.0) == pytest.approx([0.25] * 4)
        asks = Traffic(Mix(("a", "b", "c"), zipf=1.0)).at(np.zeros(11_000))
        counts = [sum(ask.model == name for ask in asks) for name in "abc"]
        assert counts == pytest.approx([6000, 3000, 2000], rel=0.1)

    def test_the_seed_decides_everything(self) -> None:
        def first(seed: int) -> list[Ask]:
            return list(itertools.islice(Traffic(Mix(("a", "b"), seed=seed)).endless(), 300))

        assert first(1) == first(1)
        assert first(1) != first(2)
        assert len({ask.seed for ask in first(1)}) == 300

    def test_prompts_and_answers_are_as_long_as_asked(self) -> None:
        mix = Mix(("a",), prompts=Lengths(4, 0.0, 4, 4), outputs=Lengths(20, 1.0, 10, 30))
        asks = Traffic(mix).at(np.zeros(500))
        assert {len(ask.prompt.split()) for ask in asks} == {4}
        assert set(" ".join(ask.prompt for ask in asks).split()) <= set(WORDS)
        assert min(ask.tokens for ask in asks) == 10
        assert max(ask.tokens for ask in asks) == 30
        assert np.median([ask.tokens for ask in asks]) == pytest.approx(20, rel=0.2)

    def test_poisson_arrivals_have_the_rate_and_its_randomness(self) -> None:
        times = poisson_times(200.0, 50.0, np.random.default_rng(0))
        assert len(times) == 10_000
        gaps = np.diff(times)
        assert gaps.min() >= 0
        assert gaps.mean() == pytest.approx(1 / 200, rel=0.05)
        assert gaps.std() == pytest.approx(1 / 200, rel=0.1)  # as of exponential gaps

    def test_bursts_come_at_once(self) -> None:
        assert burst_times(2, every=3.0, seconds=7.0).tolist() == [0, 0, 3, 3, 6, 6]


class TestApis:
    def test_generate_reads_its_stream(self) -> None:
        api, answer = Generate("http://h/"), Answer()
        assert (api.url, api.models_url) == ("http://h/generate", "http://h/models")
        api.read_event({"index": 0, "token": {"id": 1, "text": ""}}, 0.5, answer)
        api.read_event(
            {"index": 0, "finish_reason": "eos", "text": "the people", "seed": 1}, 1, answer
        )
        usage = {"prompt_tokens": 2, "completion_tokens": 1}
        api.read_event({"usage": usage, "timing": {"load_ms": 12.5}}, 1, answer)
        assert answer == Answer([0.5], 1, 2, "the people", 12.5)
        api.read_event({"error": {"code": "aborted", "status": 503}}, 1, answer)
        assert answer.error == "aborted"

    def test_completions_read_their_stream(self) -> None:
        api, answer = Completions("http://h"), Answer()
        for now, piece in enumerate(("", " the", " people")):
            api.read_event({"choices": [{"text": piece}], "usage": None}, now, answer)
        usage = {"prompt_tokens": 2, "completion_tokens": 3}
        api.read_event({"choices": [], "usage": usage}, 9, answer)
        assert answer == Answer([1, 2], 3, 2, " the people")
        api.read_event({"error": {"message": "no", "code": None, "type": "overloaded"}}, 1, answer)
        assert answer.error == "overloaded"

    def test_bodies_and_headers(self) -> None:
        whole = Generate("http://h", stream=False, extra_headers={"x-model": "<{model}>"})
        assert whole.headers(ASK) == {"x-model": "<me/m>"}
        assert whole.body(ASK) == {
            "model": "me/m",
            "prompt": "the people",
            "max_new_tokens": 10,
            "seed": 7,
            "do_sample": True,
            "temperature": 1.0,
            "top_k": 50,
            "stream": False,
        }
        assert Generate("http://h", exact=True).body(ASK)["min_new_tokens"] == 10
        body = Completions("http://h", exact=True).body(ASK)
        assert body["stream_options"] == {"include_usage": True}
        assert (body["min_tokens"], body["ignore_eos"]) == (10, True)
        assert body["temperature"] == 1.0
        assert "stream_options" not in Completions("http://h", stream=False).body(ASK)

    @pytest.mark.parametrize("api", [Generate, Completions])
    def test_more_can_be_put_into_bodies(self, api: type[Generate] | type[Completions]) -> None:
        body = api("http://h", extra_body={"top_k": 7, "temperature": 0.5}).body(ASK)
        assert (body["top_k"], body["temperature"]) == (7, 0.5)
        assert body["prompt"] == "the people"

    def test_a_worker_makes_them_from_json(self) -> None:
        api = make_api({"server": "http://h", "api": "completions", "stream": False})
        assert api == Completions("http://h", stream=False)
        mix = make_mix({"models": ["a"], "outputs": [5, 0, 5, 5]})
        assert mix == Mix(("a",), outputs=Lengths(5, 0, 5, 5))


class TestSummary:
    def test_latencies_count_from_when_a_request_was_due(self) -> None:
        figures = summary([outcome(due=1.0, sent=1.5)], 10)
        assert figures["ttft_ms"]["p50"] == pytest.approx(100)
        assert figures["end_to_end_ms"]["max"] == pytest.approx(1000)
        assert figures["per_token_ms"]["p50"] == pytest.approx(100)
        assert figures["lag_ms"]["p99"] == pytest.approx(500)
        assert fell_behind(figures)
        assert not fell_behind(summary([outcome()], 10))

    def test_percentiles(self) -> None:
        figures = summary([outcome(first=n / 1000) for n in range(101)], 10)
        assert figures["ttft_ms"] == {"p50": 50, "p90": 90, "p99": 99, "max": 100}

    def test_work_counts_where_it_was_done(self) -> None:
        within = outcome(due=0.0)
        half = outcome(due=9.0, first=9.5, ended=10.5)
        before = outcome(due=-1.0, first=-0.5, ended=0.5)  # from the warm-up
        after = outcome(due=9.0, first=10.5, ended=11.0)
        figures = summary([within, half, before, after], 10)
        assert figures["requests_per_second"] == pytest.approx((1 + 0.5 + 0.5) / 10)
        assert figures["tokens_per_second"] == pytest.approx(20 / 10)
        assert figures["requests"] == 3
        assert figures["offered_per_second"] == 0.3

    def test_errors_do_not_count_as_work_or_as_fast(self) -> None:
        failed = [outcome(code="429", ended=0.001, first=None, tokens=0) for _ in range(3)]
        figures = summary([outcome(), *failed], 10)
        assert figures["codes"] == {"429": 3, "ok": 1}
        assert figures["ok"] == 1
        assert figures["end_to_end_ms"]["p50"] == pytest.approx(1000)
        assert figures["requests_per_second"] == 0.1

    def test_who_was_cut_off_cannot_hide(self) -> None:
        waiting = outcome(code="unfinished", first=None, ended=5.0, tokens=0)
        begun = outcome(code="unfinished", first=2.0, ended=5.0, tokens=5)
        figures = summary([outcome(), waiting, begun], 10)
        assert figures["ttft_ms"]["max"] == pytest.approx(5000)
        assert figures["end_to_end_ms"]["p50"] == pytest.approx(5000)
        assert figures["requests_per_second"] == pytest.approx(0.15)
        assert figures["tokens_per_second"] == pytest.approx(1.5)

    def test_texts_that_are_not_as_long_as_asked(self) -> None:
        failed = outcome(code="timeout", tokens=3)
        assert wrong_lengths([outcome(), outcome(tokens=9), failed]) == [(10, 9)]

    def test_cold_starts_where_the_server_tells(self) -> None:
        assert summary([outcome()], 10)["cold"] is None
        told = [outcome(load_ms=ms) for ms in (0.0, 0.0, 0.0, 40.0)]
        cold = summary(told, 10)["cold"]
        assert cold["share"] == 0.25
        assert cold["load_ms"]["p50"] == 40

    def test_whole_answers_have_no_first_token(self) -> None:
        figures = summary([outcome(first=None)], 10)
        assert figures["ttft_ms"] is None
        assert figures["gap_ms"] is None
        assert figures["per_token_ms"]["p50"] == pytest.approx(100)

    def test_nothing_at_all(self) -> None:
        figures = summary([], 10)
        assert figures["requests"] == 0
        assert figures["end_to_end_ms"] is None
        assert figures["output_tokens"] is None


class TestSearch:
    def test_the_grid(self) -> None:
        assert rate_of(0) == 1.0
        assert rate_of(8) == 2.0
        assert [step_of(rate_of(step)) for step in range(-20, 20)] == list(range(-20, 20))

    def test_it_doubles_and_bisects(self) -> None:
        search, tried = Search(0, stride=8, most=20, lowest=-100), []
        while (step := search.next) is not None:
            tried.append(step)
            search.tell(sustained=step <= 21)
        assert tried == [0, 8, 16, 24, 20, 22, 21]
        assert search.best == 21

    def test_it_goes_down_too(self) -> None:
        search, tried = Search(0, stride=3, most=20, lowest=-4), []
        while (step := search.next) is not None:
            tried.append(step)
            search.tell(sustained=False)
        assert tried == [0, -3, -4]
        assert search.best is None

    @pytest.mark.parametrize(
        ("changes", "expected"),
        [
            ({}, True),
            ({"requests_per_second": 9.6}, True),
            ({"requests_per_second": 9.4}, False),
            ({"ttft_ms": {"p99": 2001}}, False),
            ({"ok": 98}, False),
            ({"ok": 90, "codes": {"ok": 90, "unfinished": 10}}, True),
            ({"ttft_ms": None, "end_to_end_ms": {"p99": 3000}}, False),
            ({"ttft_ms": None, "end_to_end_ms": None}, False),
            # Two requests of eight are chance.
            ({"seconds": 4, "offered_per_second": 2, "requests_per_second": 1.6}, True),
            ({"seconds": 4, "offered_per_second": 2, "requests_per_second": 1.4}, False),
        ],
    )
    def test_what_is_sustained(self, changes: dict[str, Any], expected: bool) -> None:
        figures = {
            "seconds": 100,
            "requests": 100,
            "ok": 100,
            "codes": {"ok": 100},
            "offered_per_second": 10,
            "requests_per_second": 10,
            "ttft_ms": {"p99": 500},
            "end_to_end_ms": {"p99": 900},
        }
        assert is_sustained(figures | changes) is expected


class TestOptions:
    def parse(self, *arguments: str) -> argparse.Namespace:
        return options.parser("").parse_args(["--url", "http://h", *arguments])

    def test_loads(self) -> None:
        assert options.load_of(self.parse("--rate", "2.5")) == {"rate": 2.5}
        assert options.load_of(self.parse("--burst", "9", "--every", "2")) == {
            "burst": 9,
            "every": 2,
        }
        assert options.load_of(self.parse("--clients", "3")) == {"clients": 3}
        assert options.load_of(self.parse()) == {"clients": options.DEFAULT_CLIENTS}

    @pytest.mark.parametrize(
        "wrong",
        [
            ["--rate", "0"],
            ["--rate", "1", "--clients", "2"],
            ["--output-tokens", "60-10"],
            ["--output-tokens", "few"],
            ["--header", "no colon"],
            ["--duration", "nan"],
            ["--url", "localhost:8000"],
            ["--extra-body", "{oops"],
            ["--extra-body", "[1]"],
            ["--rat", "1"],
        ],
    )
    def test_what_cannot_be(self, wrong: list[str], capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit):
            self.parse(*wrong)
        assert wrong[0] in capsys.readouterr().err

    def test_lengths(self) -> None:
        assert options.lengths("20") == Lengths(20, 0, 20, 20)
        between = options.lengths("10-40")
        assert (between.median, between.low, between.high) == (20, 10, 40)
        assert self.parse().output_tokens == TWEET_OUTPUTS

    def test_keys_and_headers(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        file = tmp_path / "key"
        file.write_text("secret\n")
        api = options.api_of(self.parse("--api-key-file", str(file), "--header", "x: {model}"))
        assert api.headers(ASK) == {"Authorization": "Bearer secret", "x": "me/m"}
        monkeypatch.setenv(options.API_KEY_VARIABLE, "other")
        assert options.api_of(self.parse()).headers(ASK) == {"Authorization": "Bearer other"}

    def test_fields_for_every_body(self) -> None:
        api = options.api_of(self.parse("--extra-body", '{"top_k": 7}'))
        assert api.body(ASK)["top_k"] == 7
        assert "--extra-body '{" in options.parser("").format_help()

    def test_results_keep_no_secrets(self) -> None:
        given = ["--api-key", "k1", "--api-key=k2", "--header", "A: k3", "--header=B:k4"]
        kept = ["--api-key", "***", "--api-key=***", "--header", "A: ***", "--header=B: ***"]
        rest = ["--rate", "2", "--api-key-file", "path"]
        assert options.without_secrets([*given, *rest]) == [*kept, *rest]

    def test_models_from_a_file_or_a_list(self, tmp_path: Path) -> None:
        file = tmp_path / "models"
        file.write_text("me/a\n\nme/b\n")
        assert options.given_models(str(file)) == ["me/a", "me/b"]
        assert options.given_models("me/a, me/b") == ["me/a", "me/b"]


def results_of(outcomes: list[Outcome], load: dict[str, float]) -> dict[str, Any]:
    figures = summary(outcomes, 10)
    details = {"429": "Too many requests"}
    return {"url": "u", "load": load, "interrupted": False, "figures": figures, "details": details}


class TestText:
    def test_a_report(self) -> None:
        outcomes = [outcome(load_ms=0.0), outcome(code="429", first=None)]
        shown = text.report(results_of(outcomes, {"rate": 2.0}))
        assert "open loop of 2 requests a second" in shown
        assert "| time to first token   | 100.0" in shown
        assert "50.0% of the requests\n             1 x 429: Too many requests" in shown
        assert "cold starts: 0.0%" in shown
        assert "WARNING" not in shown

    def test_a_client_that_fell_behind_says_so(self) -> None:
        late = [outcome(sent=0.3)]
        assert "WARNING" in text.report(results_of(late, {"rate": 2.0}))
        assert "WARNING" not in text.report(results_of(late, {"clients": 2.0}))

    def test_nothing_went_well(self) -> None:
        shown = text.report(results_of([outcome(code="timeout", first=None)], {"clients": 1.0}))
        assert "No request went well." in shown
        assert "1 x timeout" in shown
        assert "not told by this server" in shown

    def test_a_live_line(self) -> None:
        progress = Progress(sent=4, outcomes=[outcome(), outcome(), outcome(code="503")])
        progress.outcomes[2] = outcome(code="503", tokens=0)
        assert live.line(progress, 2.0) == (
            "    2 s  4 sent, 1 in flight, 2 done, 1 failed, 10 tokens/s, "
            "first token p50 100 p99 100 ms"
        )
        assert live.line(Progress(), 1.0).endswith("0 tokens/s")
        progress.outcomes.append(outcome(code="unfinished"))  # at the end; it did not fail
        assert "0 in flight, 2 done, 1 failed" in live.line(progress, 2.0)

    def test_advice(self) -> None:
        assert "server run" in advice("connect")
        assert options.API_KEY_VARIABLE in advice("401")
        assert advice("500") == ""


def entry(system: str, kind: str, number: int, rate: float, **changes: Any) -> dict[str, Any]:
    figures = summary([outcome(prompt_tokens=5)], 10) | {"cpu_seconds": 1.0, "others": 0.01}
    figures |= {"requests_per_second": rate, "requests": 120, "wall_seconds": 20.0}
    place = {"system": system, "kind": kind, "round": number}
    if kind == "open":
        place |= {"step": step_of(rate), "rate": rate, "sustained": True}
    return place | figures | changes


OURS, THEIRS = "gpt2serve int8", "transformers fp32 (FastAPI)"


@pytest.fixture
def results() -> dict[str, Any]:
    entries = []
    for number, (ours, theirs) in enumerate(((16.0, 2.0), (16.0, 4.0), (16.0, 2.0))):
        for system, rate in ((OURS, ours), (THEIRS, theirs)):
            entries.append(entry(system, "closed", number, rate))
            entries.append(entry(system, "burst", number, rate))
            entries.append(entry(system, "open", number, rate / 2))
            entries.append(entry(system, "open", number, rate))
            entries.append(entry(system, "open", number, 2 * rate, sustained=False))
    header = {
        "command": "python -m benchmarks.load",
        "commit": "abc",
        "date": "today",
        "processor": "a processor",
        "extensions": [],
        "cores": 2,
        "threads": 2,
        "memory_bytes": 2**33,
        "system": "Linux",
        "load_average": 0.0,
        "versions": {"gpt2serve": "1"},
    }
    plan = {"clients": 16, "burst": 16, "rounds": 3, "least": 4.0, "most": 8.0, "warm_up": 1.5}
    names = [OURS, THEIRS]
    return {"header": header, "plan": plan, "systems": names, "failed": {}, "load": entries}


class FakeServer:
    """Nothing runs; it notes that it was killed."""

    url, pid = "http://127.0.0.1:9", 2**30

    def __init__(self) -> None:
        self.killed = False

    def kill(self) -> None:
        self.killed = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass


@dataclass
class FakeSystem:
    """fails: raised when it starts."""

    name: str
    api: str = "generate"
    format: str = ""
    missing: tuple[str, ...] = ()
    fails: Exception | None = None
    server: FakeServer = field(default_factory=FakeServer)

    def start(self, *_: object) -> FakeServer:
        if self.fails is not None:
            raise self.fails
        self.server.url = f"http://{self.name}"
        return self.server


class Script:
    """What the clients of each server answer: always fine, until `trouble` is due there."""

    def __init__(self, trouble: dict[str, tuple[int, Any]]) -> None:
        self._trouble = trouble
        self._calls: Counter[str] = Counter()

    def call(self, _: str, *, target: dict[str, Any], load: Any, **__: Any) -> dict[str, Any]:
        name = target["server"].removeprefix("http://")
        self._calls[name] += 1
        at, what = self._trouble.get(name, (0, None))
        if self._calls[name] == at and isinstance(what, BaseException):
            raise what
        figures = summary([outcome()] * 10, 10) | {"cpu_seconds": 1.0, "wall_seconds": 20.0}
        figures |= {"wrong_lengths": [], "requests_per_second": load.get("rate", 8.0)}
        return figures | (what if self._calls[name] == at else {})

    pid = 2**30

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass


def scripted(monkeypatch: pytest.MonkeyPatch, **trouble: tuple[int, Any]) -> None:
    """trouble: by name of the server: at which measurement what happens."""
    script = Script(trouble)
    monkeypatch.setattr(comparison, "Worker", lambda *_: script)
    monkeypatch.setattr(comparison.model, "prepare", lambda *_: comparison.model.assets_in(Path()))
    monkeypatch.setattr(comparison.measuring, "SETTLE_SECONDS", 0)
    monkeypatch.setattr(comparison.idle, "wait", lambda _: None)


class TestComparison:
    def run(self, *systems: FakeSystem) -> dict[str, Any]:
        results: dict[str, Any] = {}
        plan = comparison.Plan(rounds=2)
        comparison.run(results, cast(Any, systems), plan, threads=1, cache=Path())
        return results

    @pytest.mark.parametrize(
        ("trouble", "reason"),
        [
            (WorkerFailed("Traceback\nValueError: no"), "ValueError: no"),
            (BrokenPipeError("gone"), "gone"),
            (
                {"wrong_lengths": [[20, 18], [9, 8]]},
                "2 texts were not as long as asked, one of them 18 tokens instead of 20.",
            ),
            ({"codes": {"connect": 10}}, "No request went well: 10 x connect."),
            (NeverIdle("It still computed."), "It still computed."),
        ],
    )
    def test_one_that_fails_loses_only_its_own(
        self, trouble: Any, reason: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """In the second round, when there are figures of the first."""
        scripted(monkeypatch, bad=(8, trouble))
        bad = FakeSystem("bad")
        results = self.run(bad, FakeSystem("good"))
        assert results["failed"] == {"bad": reason}
        assert {entry["system"] for entry in results["load"]} == {"good"}
        assert {entry["round"] for entry in results["load"]} == {0, 1}
        assert bad.server.killed

    def test_one_that_does_not_start(self, monkeypatch: pytest.MonkeyPatch) -> None:
        scripted(monkeypatch)
        bad = FakeSystem("bad", fails=ServerFailed("It ended with status 1: no"))
        results = self.run(bad, FakeSystem("good"))
        assert results["failed"] == {"bad": "It ended with status 1: no"}
        assert {entry["system"] for entry in results["load"]} == {"good"}

    def test_who_only_was_too_slow_did_not_fail(self) -> None:
        comparison.check({"requests": 3, "codes": {"unfinished": 3}, "wrong_lengths": []})
        comparison.check({"requests": 0, "codes": {}, "wrong_lengths": []})

    @pytest.mark.parametrize("quick", [["--quick"], []])
    def test_ctrl_c_keeps_what_was_measured(
        self, quick: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        scripted(monkeypatch, one=(4, KeyboardInterrupt()))
        for name in ("SYSTEMS", "QUICK"):
            monkeypatch.setattr(systems, name, (FakeSystem("one"),))
        file = tmp_path / "load.json"
        assert main([*quick, "--output", str(file)]) == 130
        kept = json.loads(file.with_suffix(".incomplete.json").read_text())
        assert [entry["kind"] for entry in kept["load"]] == ["closed", "burst", "open"]
        assert kept["incomplete"] == "KeyboardInterrupt"
        assert kept["header"]["command"].startswith("python -m benchmarks.load")
        assert not file.exists()

    def test_a_failure_shows_in_the_exit_status(
        self,
        monkeypatch: pytest.MonkeyPatch,
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        scripted(monkeypatch, bad=(1, WorkerFailed("no")))
        monkeypatch.setattr(systems, "QUICK", (FakeSystem("good"), FakeSystem("bad")))
        assert main(["--quick", "--output", str(tmp_path / "load.json")]) == 1
        shown = capsys.readouterr()
        assert "bad FAILED" in shown.err
        assert "**Failed, and left out:** bad (no)." in shown.out


class TestIdle:
    @pytest.mark.parametrize(("code", "busy"), [("while True: pass", True), ("input()", False)])
    def test_by_what_it_computes(self, code: str, busy: bool) -> None:
        command = [sys.executable, "-c", f"print('up', flush=True)\n{code}"]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            process.stdout.readline()
            with pytest.raises(NeverIdle) if busy else contextlib.nullcontext():
                idle.wait(process.pid, patience=0.3)
            process.kill()

    def test_nobody_is_idle(self) -> None:
        idle.wait(2**30)


class TestReport:
    def test_the_highest_sustained_rate_of_each_round(self, results: dict[str, Any]) -> None:
        best = sustained(results["load"], THEIRS)
        assert {number: found["rate"] for number, found in best.items()} == {0: 2.0, 1: 4.0, 2: 2.0}

    def test_ratios_are_paired_within_rounds(self, results: dict[str, Any]) -> None:
        shown = report.markdown(results)
        assert "8.00x (4.00x - 8.00x)" in shown
        assert "sustains 8.0 times its rate" in shown
        assert "![Latency against offered load](benchmarks/load-latency.svg)" in shown
        assert paired({0: 6.0, 1: 9.0}, {1: 3.0, 2: 1.0}) is not None

    def test_findings_follow_the_numbers(self, results: dict[str, Any]) -> None:
        swapped = copy.deepcopy(results)
        for one in swapped["load"]:
            one["system"] = OURS if one["system"] == THEIRS else THEIRS
        assert "sustains 8.0 times the rate of gpt2serve int8" in report.markdown(swapped)

    def test_a_server_that_sustained_nothing(self, results: dict[str, Any]) -> None:
        for one in results["load"]:
            one["sustained"] = one.get("sustained") and one["system"] == OURS
        shown = report.markdown(results)
        assert "< 1.00" in shown
        assert "comes nearest" not in shown

    def test_late_clients_and_disturbed_runs_are_named(self, results: dict[str, Any]) -> None:
        assert "sent late" not in report.markdown(results)
        (first, *_) = (one for one in results["load"] if one["kind"] == "open")
        first |= {"lag_ms": {"p99": 100.0}, "others": 0.5}
        shown = report.markdown(results)
        assert "In 1 of 18 points they sent late" in shown
        assert "in 1 of 30 measurements" in shown

    def test_every_load_has_all_percentiles_and_errors(self, results: dict[str, Any]) -> None:
        row = next(line for line in report.markdown(results).splitlines() if "| 32.00" in line)
        cells = [cell.strip() for cell in row.split("|")[1:-1]]
        same = "{0} / {0} / {0} / {0}".format
        times = [same("100"), same("100.0"), same("1000")]
        assert cells == ["32.00", "32.00", "1", "0 of 3", *times, "none"]
        for one in results["load"]:
            if one["system"] == OURS and one.get("rate") == 32.0:
                one["codes"] = {"ok": 10, "429": 2, "unfinished": 1}
        assert "| 6 429, 3 unfinished |" in report.markdown(results)

    def test_the_share_of_a_core_is_of_all_the_time(self, results: dict[str, Any]) -> None:
        """The clients' second of work was not done in the 10 s alone that count."""
        assert "at most 5% of one core" in report.markdown(results)

    def test_what_failed_is_named_and_left_out(self, results: dict[str, Any]) -> None:
        results["failed"] = {THEIRS: "It fell over."}
        results["load"] = [one for one in results["load"] if one["system"] == OURS]
        shown = report.markdown(results)
        assert f"**Failed, and left out:** {THEIRS} (It fell over.)." in shown
        assert f"| {THEIRS}" not in shown
        (legend,) = report.plots(results)["latency"].legends
        assert len(legend.get_texts()) == 1

    def test_everything_failed(self, results: dict[str, Any]) -> None:
        results |= {"failed": {OURS: "a", THEIRS: "b"}, "load": []}
        shown = report.markdown(results)
        assert f"{OURS} (a); {THEIRS} (b)" in shown
        assert "nan" not in shown

    def test_empty_cells(self, results: dict[str, Any]) -> None:
        """A server that answered nothing has no latencies."""
        for one in results["load"]:
            if one["system"] == THEIRS:
                nothing = dict.fromkeys(("ttft_ms", "end_to_end_ms", "per_token_ms"))
                one |= nothing | {"requests_per_second": 0.0, "sustained": False}
        assert "-" in report.markdown(results)
        assert report.plots(results)["latency"].axes

    def test_it_is_made_without_the_heavy_packages(self) -> None:
        code = (
            "import sys, benchmarks.load.report\n"
            "print({'aiohttp', 'fastapi', 'matplotlib', 'torch'} & set(sys.modules))"
        )
        command = [sys.executable, "-c", code]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        assert done.stdout == "set()\n"

    def test_the_plot_has_a_curve_for_each_server(self, results: dict[str, Any]) -> None:
        (legend,) = report.plots(results)["latency"].legends
        assert [line.get_text() for line in legend.get_texts()] == [OURS, THEIRS]
