"""What the determinism benchmark asks, compares and says; nothing real is asked."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self

import pytest

from benchmarks.common.model import ROOT, Assets
from benchmarks.common.worker import WorkerFailed
from benchmarks.determinism import __main__ as program
from benchmarks.determinism import report, running, samplers, systems
from benchmarks.determinism.__main__ import BATCH, QUICK_REQUESTS, QUICK_SYSTEMS, select
from benchmarks.determinism.comparing import Answers, compare, identical, variety
from benchmarks.determinism.requests import (
    LONGEST_PROMPT,
    Request,
    another_order,
    batches,
    make,
)
from benchmarks.determinism.running import Gpt2Serve, Sampler
from benchmarks.peers import (
    CT2_INT8,
    ENGINE_FP32,
    ENGINE_INT8,
    LLAMA_CPP,
    OPTIMUM,
    SYSTEMS,
    TRANSFORMERS,
    System,
)

ASSETS = Assets(*map(Path, ("checkpoint", "store", "ct2", "onnx", "gguf")), model="a-model")
BY_NAME = {system.name: system for system in SYSTEMS}

# -- what is asked ------------------------------------------------------------------------


def test_the_same_number_gives_the_same_requests() -> None:
    made = make(200)
    random.seed(1)  # whatever else draws from the generator that all share
    assert make(200) == made


def test_requests_differ_in_prompt_length_and_seed() -> None:
    made = make(200)
    lengths = [len(request.prompt.split()) for request in made]
    assert (min(lengths), max(lengths)) == (1, LONGEST_PROMPT)
    assert len({request.seed for request in made}) == 200
    # llama.cpp takes a seed as 32 bits, and the largest of these means a random one.
    assert all(0 <= request.seed < 2**32 - 1 for request in made)
    assert len({request.prompt for request in made}) > 100


@pytest.mark.parametrize("count", [1, 50, 200])
def test_the_other_order_has_every_number_once(count: int) -> None:
    order = another_order(count)
    assert sorted(order) == list(range(count))
    assert another_order(count) == order


@pytest.mark.parametrize("count", [QUICK_REQUESTS, 200])
def test_the_other_order_has_other_neighbours(count: int) -> None:
    there = [set(piece) for piece in batches(range(count), BATCH)]
    here = [set(piece) for piece in batches(another_order(count), BATCH)]
    assert not any(piece in there for piece in here)


def test_batches_are_cut_in_order() -> None:
    assert batches([4, 2, 0, 1, 3], 2) == [[4, 2], [0, 1], [3]]
    assert batches([4, 2], 2) == [[4, 2]]
    assert batches([], 2) == []


# -- who is asked -------------------------------------------------------------------------


def test_a_short_run_asks_some_systems() -> None:
    assert [one.name for one in select(skip=[], quick=True)] == list(QUICK_SYSTEMS)
    assert select(skip=[], quick=False) == list(SYSTEMS)
    assert ENGINE_INT8 not in [one.name for one in select(skip=[ENGINE_INT8], quick=False)]
    assert [one.name for one in select(skip=[TRANSFORMERS], quick=True)] == [ENGINE_INT8, CT2_INT8]


def test_a_system_that_does_not_exist_cannot_be_skipped(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        program.main(["--skip", "gpt2serve"])
    assert "invalid choice: 'gpt2serve'" in capsys.readouterr().err


@pytest.mark.parametrize("system", SYSTEMS, ids=lambda one: one.name)
def test_every_system_has_something_that_asks_it(
    monkeypatch: pytest.MonkeyPatch, system: System
) -> None:
    monkeypatch.setattr(systems, "token_ids", lambda *_: [[7, 8]])
    start: Any = systems.starter(system, ASSETS, 2, [Request("a", 5)])
    if system.name in (ENGINE_INT8, ENGINE_FP32):
        assert start.func is Gpt2Serve
        assert start.args[:3] == (ASSETS, system.precision, 2)
        return
    target, *rest, tokens = start.args
    assert start.func is Sampler
    assert rest == [ASSETS, system.precision, 2]
    assert tokens == [{"ids": [7, 8], "seed": 5}]
    assert hasattr(getattr(samplers, target.partition(":")[2]), "texts")


# -- how they are asked -------------------------------------------------------------------


class _Server:
    """Stands for a server: it answers nobody before `together` clients have asked."""

    url = "http://server"

    def __init__(self, together: int) -> None:
        self._here = threading.Barrier(together)
        self.asked: list[dict[str, Any]] = []
        self.closed = False

    def answer(self, url: str, body: dict[str, Any]) -> Any:
        assert url == "http://server/generate"
        self.asked.append(body)
        self._here.wait(timeout=30)  # fails the test if fewer are on their way
        return {"generations": [{"text": f"{body['prompt']}, {body['seed']}"}]}

    def close(self) -> None:
        self.closed = True


@pytest.mark.parametrize("batch", [1, 4])
def test_as_many_requests_are_on_their_way_as_there_should_be(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, batch: int
) -> None:
    server = _Server(batch)
    started: list[tuple[Any, ...]] = []

    def start(store: Path, log: Path, **options: Any) -> _Server:
        started.append((store, log, options))
        return server

    clients: list[int] = []

    def pool(size: int) -> ThreadPoolExecutor:
        clients.append(size)
        return ThreadPoolExecutor(size)

    monkeypatch.setattr(running, "ThreadPoolExecutor", pool)
    monkeypatch.setattr(running.servers, "gpt2serve", start)
    monkeypatch.setattr(running, "_post", server.answer)
    requests = [Request(f"prompt {n}", 100 + n) for n in range(8)]
    order = [5, 0, 7, 2, 1, 3, 4, 6]
    with Gpt2Serve(ASSETS, "int8", 2, requests, tmp_path / "log") as system:
        made = system.texts(order, batch)
        assert not server.closed
    assert server.closed
    assert started == [(ASSETS.store, tmp_path / "log", {"precision": "int8", "threads": 2})]
    # An answer has the number of its own request, whichever came back first.
    assert made == {n: f"prompt {n}, {100 + n}" for n in range(8)}
    # That there are no more cannot be seen from the server without waiting for one.
    assert clients == [batch]
    if batch == 1:
        assert [body["seed"] - 100 for body in server.asked] == order
    for body in server.asked:
        # Everything that a package could have another default for.
        assert body["model"] == "a-model"
        assert (body["do_sample"], body["temperature"]) == (True, 1.0)
        assert (body["top_k"], body["top_p"]) == (50, 1.0)
        assert body["return_full_text"] is False


def test_a_greedy_text_is_not_drawn(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    server = _Server(1)
    monkeypatch.setattr(running.servers, "gpt2serve", lambda *_, **__: server)
    monkeypatch.setattr(running, "_post", server.answer)
    with Gpt2Serve(ASSETS, "int8", 2, [Request("a", 1)], tmp_path / "log") as system:
        system.texts([0], 1, greedy=True)
    assert [body["do_sample"] for body in server.asked] == [False]


class _Worker:
    """Stands for a peer's process; a text is its prompt."""

    made: list[_Worker]  # set by each test
    fails = False

    def __init__(self, target: str, arguments: dict[str, Any]) -> None:
        self.target, self.arguments, self.closed = target, arguments, False
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.made.append(self)

    def call(self, method: str, **arguments: Any) -> Any:
        self.calls.append((method, arguments))
        if self.fails:
            raise RuntimeError("no such file")
        return [request["ids"] for request in arguments.get("requests", [])]

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def workers(monkeypatch: pytest.MonkeyPatch) -> list[_Worker]:
    made: list[_Worker] = []
    monkeypatch.setattr(_Worker, "made", made, raising=False)
    monkeypatch.setattr(running, "Worker", _Worker)
    return made


def test_a_peer_gets_the_requests_in_order_and_its_answers_their_numbers(
    workers: list[_Worker],
) -> None:
    requests = [{"ids": [n], "seed": n} for n in range(4)]
    with Sampler("a:B", ASSETS, "fp32", 2, requests) as system:
        assert system.texts([2, 0, 3], 2, greedy=True) == {2: [2], 0: [0], 3: [3]}
    (worker,) = workers
    assert (worker.target, worker.arguments) == ("a:B", {"precision": "fp32", "threads": 2})
    asked = {"requests": [requests[n] for n in (2, 0, 3)], "batch": 2, "greedy": True}
    assert worker.calls == [("load", {"assets": ASSETS.arguments}), ("texts", asked)]
    assert worker.closed


def test_a_peer_that_cannot_load_leaves_no_process(
    monkeypatch: pytest.MonkeyPatch, workers: list[_Worker]
) -> None:
    monkeypatch.setattr(_Worker, "fails", True)
    with pytest.raises(RuntimeError, match="no such file"):
        Sampler("a:B", ASSETS, "fp32", 2, [])
    assert [worker.closed for worker in workers] == [True]


def test_a_text_of_a_peer_ends_before_its_first_end_of_text() -> None:
    assert samplers.until([5, 6, 0, 7, 0], 0) == [5, 6]
    assert samplers.until([0, 5], 0) == []
    assert samplers.until((5, 6), 0) == [5, 6]


def test_short_prompts_are_filled_on_the_left_and_not_attended_to() -> None:
    ids, mask = samplers.padded([[1, 2, 3], [4], [5, 0]], filler=0)
    assert ids == [[1, 2, 3], [0, 0, 4], [0, 5, 0]]
    assert mask == [[1, 1, 1], [0, 0, 1], [0, 1, 1]]


# -- comparing ----------------------------------------------------------------------------


def test_answers_are_compared_by_number() -> None:
    reference = {0: "a", 1: "b", 2: "c"}
    assert identical(reference, {2: "c", 0: "a", 1: "x"}) == {"identical": 2, "of": 3}
    assert identical(reference, {1: "b"}) == {"identical": 1, "of": 1}
    assert identical({0: [1, 2]}, {0: [1, 2, 3]}) == {"identical": 0, "of": 1}
    with pytest.raises(KeyError):
        identical({0: "a"}, {1: "a"})


def test_variety_counts_different_answers() -> None:
    assert variety({0: "a", 1: "b", 2: "a"}) == 2
    assert variety({0: [1, 2], 1: [1, 2], 2: []}) == 2


#: What a made-up system says: from the number, the place in the order, the size of the batch,
#: how often systems were started before, and how often this one was asked before.
Saying = Callable[..., str]


class _System:
    def __init__(self, saying: Saying, life: int, log: list[Any]) -> None:
        self._saying, self._life, self._log = saying, life, log
        self._asked = 0

    def texts(self, order: Sequence[int], batch: int, *, greedy: bool = False) -> Answers:
        self._log.append((list(order), batch, greedy))
        made = {}
        for place, number in enumerate(order):
            facts = {"place": place, "batch": batch, "life": self._life, "asked": self._asked}
            made[number] = self._saying(number, greedy=greedy, **facts)
            self._asked += 1
        return made

    def __enter__(self) -> Self:
        self._log.append("start")
        return self

    def __exit__(self, *_: object) -> None:
        self._log.append("end")


def _compared(saying: Saying) -> tuple[dict[str, Any], list[Any]]:
    log: list[Any] = []
    lives = iter(range(2))
    made = compare(lambda: _System(saying, next(lives), log), 4, ORDER)
    return made, log


ORDER = [3, 6, 0, 5, 1, 7, 2, 4]


def test_a_system_is_asked_alone_together_and_after_a_restart() -> None:
    _, log = _compared(lambda number, **_: f"{number}")
    numbers = list(range(8))
    assert log == [
        "start",
        (numbers, 1, False),
        (numbers, 4, False),
        (numbers, 1, True),
        (numbers, 4, True),
        "end",
        "start",
        (ORDER, 4, False),
        (ORDER[:2], 1, False),
        "end",
    ]


@pytest.mark.parametrize(
    ("saying", "together", "restarted", "again", "greedy"),
    [
        (lambda number, **_: f"{number}", 8, 8, 2, 8),
        # Only texts that are drawn depend on the batch; the even ones do not.
        (
            lambda number, batch, greedy, **_: f"{number} {not greedy and number % 2 and batch}",
            4,
            4,
            2,
            8,
        ),
        # Arithmetic that depends on the batch.
        (lambda number, batch, **_: f"{number} {batch}", 0, 0, 2, 0),
        # A generator that starts with the process: in the other order no number comes when it
        # came at first.
        (lambda number, asked, **_: f"{number} {asked}", 0, 0, 0, 0),
        # What a process remembers from its start.
        (lambda number, life, **_: f"{number} {life}", 8, 0, 0, 8),
        # The half of the order that a number is in: 0, 3, 4 and 7 stay in theirs.
        (lambda number, place, **_: f"{number} {place // 4}", 8, 4, 1, 8),
    ],
)
def test_what_a_text_depends_on_is_noticed(
    saying: Saying, together: int, restarted: int, again: int, greedy: int
) -> None:
    made, _ = _compared(saying)
    assert made == {
        "different_texts": 8,
        "together": {"identical": together, "of": 8},
        "restarted": {"identical": restarted, "of": 8},
        "again": {"identical": again, "of": 2},
        "greedy": {"identical": greedy, "of": 8},
    }


def test_a_system_that_says_one_thing_only_is_noticed() -> None:
    made, _ = _compared(lambda number, **_: "always")
    assert made["different_texts"] == 1


# -- what it says -------------------------------------------------------------------------

HEADER = {
    "date": "2026-01-01",
    "command": "python -m benchmarks.determinism",
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


def entry(system: str, *, different: int = 199, **identical_texts: int) -> dict[str, Any]:
    """All 200 texts are identical, in each pass that is not named."""
    counts = {"together": 200, "restarted": 200, "again": 50, "greedy": 200}
    passes = {
        name: {"identical": identical_texts.get(name, of), "of": of} for name, of in counts.items()
    }
    return {"system": system, "different_texts": different, **passes}


def results(*entries: dict[str, Any]) -> dict[str, Any]:
    asked = {"requests": 200, "batch": 32, "tokens": 40, "top_k": 50}
    return {"benchmark": "determinism", "quick": False, "header": HEADER, "failed": {}, **asked} | {
        "systems": list(entries)
    }


def _row(text: str, system: str) -> list[str]:
    """Cells of the row of `system` in the table."""
    (line,) = [line for line in text.splitlines() if line.startswith(f"| {system} ")]
    return [cell.strip() for cell in line.strip("|").split("|")]


def _finding(text: str, system: str) -> str:
    (line,) = [line for line in text.splitlines() if line.startswith(f"- {system}: ")]
    return line


def test_shares_of_identical_texts() -> None:
    text = report.markdown(
        results(
            entry(ENGINE_INT8),
            entry(TRANSFORMERS, together=13, restarted=0, again=49, greedy=199, different=7),
        )
    )
    header = ["32 at a time", "restarted, other order", "alone again", "greedy, 32 at a time"]
    assert _row(text, "identical to the texts alone")[1:5] == header
    assert _row(text, ENGINE_INT8)[1:] == ["100%", "100%", "100%", "100%", "199", "PASS"]
    assert _row(text, TRANSFORMERS)[1:] == ["6.5%", "0%", "98.0%", "99.5%", "7", "-"]


@pytest.mark.parametrize("column", ["together", "restarted", "again", "greedy"])
def test_one_text_that_differs_misses_the_target(column: str) -> None:
    count = entry(ENGINE_FP32)[column]["of"] - 1
    text = report.markdown(results(entry(ENGINE_INT8), entry(ENGINE_FP32, **{column: count})))
    assert _row(text, ENGINE_INT8)[-1] == "PASS"
    assert _row(text, ENGINE_FP32)[-1] == "MISS"


@pytest.mark.parametrize(
    ("equal", "of", "text"),
    [
        (200, 200, "100%"),
        (199, 200, "99.5%"),
        (4999, 5000, ">99.9%"),
        (1, 3, "33.3%"),
        (1, 5000, "<0.1%"),
        (0, 200, "0%"),
    ],
)
def test_a_share_is_not_rounded_to_all_or_none(equal: int, of: int, text: str) -> None:
    assert report.percent({"identical": equal, "of": of}) == text


NOT_ALONE = "texts differ alone too"
ARITHMETIC = "the arithmetic depends on the batch"
ONE_GENERATOR = "draw from one generator"
ROUNDING = "although each sequence has its own seed"


@pytest.mark.parametrize(
    ("system", "equal", "reasons"),
    [
        (TRANSFORMERS, {"together": 3, "restarted": 2}, {ONE_GENERATOR}),
        (OPTIMUM, {"together": 3}, {ONE_GENERATOR}),
        (CT2_INT8, {"together": 3, "restarted": 2, "again": 9}, {NOT_ALONE}),
        (LLAMA_CPP, {"restarted": 2}, {ROUNDING}),
        (LLAMA_CPP, {"together": 2, "greedy": 199}, {ROUNDING, ARITHMETIC}),
        (LLAMA_CPP, {"together": 2, "greedy": 1, "again": 1}, {NOT_ALONE, ARITHMETIC}),
        (ENGINE_INT8, {"greedy": 199}, {ARITHMETIC}),
        (ENGINE_INT8, {"again": 49}, {NOT_ALONE}),
    ],
)
def test_why_texts_differ_follows_from_the_columns(
    system: str, equal: dict[str, int], reasons: set[str]
) -> None:
    line = _finding(report.markdown(results(entry(system, **equal))), system)
    every = (NOT_ALONE, ARITHMETIC, ONE_GENERATOR, ROUNDING)
    assert {reason for reason in every if reason in line} == reasons
    assert "every text was the same" not in line


def test_a_system_without_a_difference_needs_no_reason() -> None:
    text = report.markdown(results(entry(ENGINE_INT8)))
    assert _finding(text, ENGINE_INT8) == (
        f"- {ENGINE_INT8}: every text was the same in all passes."
    )


def test_the_method_has_the_numbers_of_the_results() -> None:
    made = results(entry(ENGINE_INT8)) | {"requests": 77, "batch": 11, "tokens": 33, "top_k": 9}
    text = " ".join(report.markdown(made).split())
    assert "77 requests, each with a prompt of its own of 1 to 24 words" in text
    assert LONGEST_PROMPT == 24  # which the sentence says by itself
    assert "top_k 9, temperature 1, at most 33 new tokens" in text
    assert "then 11 at a time; then its process was started anew" in text
    assert "commit abc, 2026-01-01" in text
    assert systems.SAMPLE == ROOT / "samples" / "george-washington"  # and this one too
    assert "`samples/george-washington`" in text


def test_seeds_are_told_of_the_systems_that_were_asked() -> None:
    text = report.markdown(results(entry(ENGINE_INT8), entry(ENGINE_FP32), entry(LLAMA_CPP)))
    (line,) = [line for line in text.splitlines() if line.startswith("How each system")]
    assert line.count("gpt2serve, a seed for each request, over HTTP") == 1
    assert "llama.cpp, a seed for each sequence" in line
    assert "transformers" not in line
    assert "ctranslate2" not in line


def test_there_is_no_plot() -> None:
    assert report.plots(results(entry(ENGINE_INT8))) == {}


# -- a whole run, of a made-up system -----------------------------------------------------


def test_a_run_asks_every_system_all_requests(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: list[tuple[str, int, int]] = []

    def starter(system: System, _: Any, threads: int, requests: Sequence[Request]) -> Any:
        asked.append((system.name, threads, len(requests)))
        return lambda: _System(lambda number, **_: f"{number}", 0, [])

    fake = SimpleNamespace(prepare=lambda *_: ASSETS, starter=starter)
    monkeypatch.setattr(program, "systems", fake)
    chosen = [BY_NAME[ENGINE_INT8], BY_NAME[LLAMA_CPP]]
    made: dict[str, Any] = {}
    program.run(tmp_path, chosen, 3, made, quick=False)
    assert asked == [(ENGINE_INT8, 3, 200), (LLAMA_CPP, 3, 200)]
    assert [one["system"] for one in made["systems"]] == [ENGINE_INT8, LLAMA_CPP]
    assert made["systems"][0]["together"] == {"identical": 200, "of": 200}
    assert made["systems"][0]["again"] == {"identical": 50, "of": 50}
    assert (made["requests"], made["batch"]) == (200, 32)


def test_a_system_that_fails_is_said_to_and_the_others_are_asked(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def starter(system: System, *_: Any) -> Any:
        if system.name == LLAMA_CPP:
            raise WorkerFailed("Traceback ...\nno such file")
        return lambda: _System(lambda number, **_: f"{number}", 0, [])

    fake = SimpleNamespace(prepare=lambda *_: ASSETS, starter=starter)
    monkeypatch.setattr(program, "systems", fake)
    made: dict[str, Any] = {"header": HEADER}
    chosen = [BY_NAME[LLAMA_CPP], BY_NAME[ENGINE_INT8]]
    program.run(tmp_path, chosen, 3, made, quick=True)
    assert [one["system"] for one in made["systems"]] == [ENGINE_INT8]
    assert f"**Failed, and left out:** {LLAMA_CPP} (no such file)." in report.markdown(made)
