"""Same seed, same prompt, same package: same text and log-probabilities, whatever the load."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gpt2serve import Engine, SamplingParams
from gpt2serve.engine.events import Generation, Token
from gpt2serve.engine.preparation import PreparedRequest
from gpt2serve.errors import RequestAborted
from tests.engine_driver import (
    JEFFERSON,
    REAGAN,
    Arrival,
    Recording,
    Script,
    Watcher,
    assert_idle,
    kv_bytes,
    open_engine,
    send_prepared,
)

Outcome = tuple[list[Generation], list[list[Token]]]

TEXT = "The people of our union must have peace and commerce, said Congress in 1802."
WORDS = TEXT.split()
REQUESTS = 20
#: Tight enough for every kind of trouble: prompts in chunks, requests that wait for slots
#: and for KV cache, batches that grow and shrink. The largest request needs 4 x 128 + 100.
CHUNK = 16
TIGHT = {"max_batch_size": 4, "prefill_chunk": CHUNK, "kv_cache_bytes": kv_bytes(4, 128, 150)}


def make_requests() -> list[tuple[str, str, SamplingParams]]:
    """A fixed mixture of everything that a request can ask for."""
    generator, rarer = random.Random(20), random.Random(21)
    made = []
    for number in range(REQUESTS):
        # Every third prompt is longer than a chunk.
        words = generator.randint(18, 55) if number % 3 == 0 else generator.randint(1, 9)
        sample = number % 4 != 3
        made.append(
            (
                (REAGAN, JEFFERSON)[number % 5 == 4],
                " ".join(generator.choices(WORDS, k=words)),
                SamplingParams(
                    num_return_sequences=generator.choice([1, 1, 2, 3, 4]) if sample else 1,
                    max_new_tokens=generator.choice([1, 2, 5, 9, 14, 24]),
                    min_new_tokens=generator.choice([0, 0, 1]),
                    do_sample=sample,
                    temperature=generator.choice([0.7, 1.0, 1.3]),
                    top_k=generator.choice([0, 1, 5, 50, 50, 300]),
                    top_p=generator.choice([0.5, 0.95, 1.0]),
                    repetition_penalty=generator.choice([1.0, 1.0, 1.3]),
                    no_repeat_ngram_size=generator.choice([0, 0, 2]),
                    stop=generator.choice([(), (), (".",), ("e", "zz")]),
                    seed=generator.randrange(2**63),
                    details=generator.random() < 0.5,
                    min_p=rarer.choice([None, None, 0.05]),
                    typical_p=rarer.choice([None, None, 0.7]),
                    presence_penalty=rarer.choice([None, None, 0.6]),
                    frequency_penalty=rarer.choice([None, None, -0.4]),
                    logit_bias=rarer.choice([None, None, {11: -100.0, 262: 2.0}]),
                    ignore_eos=rarer.random() < 0.3,
                    top_logprobs=rarer.choice([0, 0, 5]),
                    truncate=rarer.choice([None, None, 20]),
                ),
            )
        )
    return made


def alone(engine: Engine, prepared: PreparedRequest) -> Outcome:
    return send_prepared(engine, prepared).stream.finish().outcome(prepared.params.sequences)


@dataclass(repr=False)
class Case:
    """`expected[n]` is what request n said when it had an engine for itself."""

    engine: Engine
    watcher: Watcher
    prepared: list[PreparedRequest]
    expected: list[Outcome]


@pytest.fixture(scope="module", params=["int8", "fp32"])
def case(request: pytest.FixtureRequest, sample_store: Path) -> Iterator[Case]:
    watcher = Watcher()
    requests = make_requests()
    with open_engine(sample_store, precision=request.param, prefill_chunk=CHUNK) as roomy:
        prepared = [roomy.prepare(*r) for r in requests]
        expected = [alone(roomy, p) for p in prepared]
    with open_engine(sample_store, precision=request.param, observer=watcher, **TIGHT) as engine:
        yield Case(engine, watcher, prepared, expected)


ARRIVALS = st.lists(
    st.builds(
        Arrival,
        number=st.integers(0, REQUESTS - 1),
        at=st.integers(0, 30),
        leave_after=st.none() | st.none() | st.integers(0, 20),
    ),
    min_size=2,
    max_size=9,
)


# The engine lives through all examples on purpose: what one leaves behind must not matter.
@settings(
    max_examples=20,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(arrivals=ARRIVALS)
def test_any_interleaving_equals_running_alone(case: Case, arrivals: list[Arrival]) -> None:
    sent = Script(case.watcher, case.engine, case.prepared, arrivals).play()
    assert len(sent) == len(arrivals)
    for arrival, one in sent:
        check(one.stream, case.expected[arrival.number], may_leave=arrival.leave_after is not None)
    assert_idle(case.engine)


def check(stream: Recording, expected: Outcome, *, may_leave: bool) -> None:
    generations, tokens = expected
    assert stream.terminals == 1
    if stream.error is None:
        assert stream.outcome(len(tokens)) == expected
        return
    # A request that left has said the beginning of what it would have said.
    assert may_leave
    assert isinstance(stream.error, RequestAborted)
    for index, all_of_them in enumerate(tokens):
        got = stream.tokens(index)
        assert got == all_of_them[: len(got)]
    for generation in stream.generations:
        assert generation == generations[generation.index]


def test_everything_at_once_equals_running_alone(case: Case) -> None:
    """The worst queue: all requests, twice, in one step; the tight limits do get hit."""
    case.watcher.steps.clear()
    waited: list[int] = []
    arrivals = [Arrival(n % REQUESTS, 0) for n in range(2 * REQUESTS)]
    script = Script(case.watcher, case.engine, case.prepared, arrivals)
    watch_step = script._tick

    def tick() -> None:
        waited.append(case.engine._core._snapshot().requests_waiting)
        watch_step()

    script._tick = tick  # type: ignore[method-assign]
    for arrival, one in script.play():
        check(one.stream, case.expected[arrival.number], may_leave=False)
    assert max(waited) > REQUESTS
    assert max(rows for kind, rows in case.watcher.steps if kind == "decode") == 4
    assert_idle(case.engine)


@pytest.mark.parametrize("precision", ["int8", "fp32"])
def test_same_after_a_restart(sample_store: Path, precision: str) -> None:
    requests = make_requests()[:8]
    runs = []
    for _ in range(2):
        with open_engine(sample_store, precision=precision) as engine:
            runs.append([alone(engine, engine.prepare(*request)) for request in requests])
    assert runs[0] == runs[1]


def test_one_request_in_an_engine_of_its_own(case: Case, sample_store: Path) -> None:
    """`expected` came from an engine that had done other work; a fresh one agrees."""
    precision = case.prepared[0].package.manifest.precision
    for number in (0, 4, 7):
        with open_engine(sample_store, precision=precision, prefill_chunk=CHUNK) as engine:
            assert alone(engine, case.prepared[number]) == case.expected[number]


@pytest.mark.parametrize(("chunk", "batch"), [(CHUNK, 5), (33, 7), (500, 32)])
def test_the_size_of_chunk_and_batch_change_nothing(
    case: Case, sample_store: Path, chunk: int, batch: int
) -> None:
    precision = case.prepared[0].package.manifest.precision
    options = {"prefill_chunk": chunk, "max_batch_size": batch, "precision": precision}
    compared = 0
    with open_engine(sample_store, **options) as engine:
        sent = [send_prepared(engine, prepared) for prepared in case.prepared]
        for one, prepared, expected in zip(sent, case.prepared, case.expected, strict=True):
            one.stream.finish()
            if chunk == CHUNK or not _ends_in_a_single_token(prepared.prompt_tokens, chunk):
                check(one.stream, expected, may_leave=False)
                compared += 1
    assert compared > REQUESTS // 2


def _ends_in_a_single_token(prompt: int, chunk: int) -> bool:
    """Such a chunk is computed in another order of addition (see test_worker_runner.py)."""
    return any(prompt > size and prompt % size == 1 for size in (CHUNK, chunk))


def test_the_requests_differ_from_each_other(case: Case) -> None:
    """Against a model that says the same to everybody."""
    texts = {g.text for generations, _ in case.expected for g in generations}
    assert len(texts) > REQUESTS
