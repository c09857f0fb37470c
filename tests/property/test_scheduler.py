"""The scheduler and the worker around it, driven at random with a model made of plain arrays.

`SchedulerMachine` looks at the plans alone: who is asked to run what, and when.
`WorkerMachine` runs them with a fake model whose cache holds the tokens themselves, so each
sequence must get the very tokens that it gets alone, wherever its cache was moved to.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from gpt2serve.engine.events import PromptToken, PromptTokens
from gpt2serve.engine.kv_buffers import bytes_per_token
from gpt2serve.engine.kv_cache import KVPool, KVShape, rectangle
from gpt2serve.engine.request import Request, Sequence
from gpt2serve.engine.scheduler import Decode, Plan, Prefill, PrefillChunk, Scheduler, Score
from gpt2serve.engine.worker import ModelWorker
from gpt2serve.errors import RequestAborted
from tests.engine_fakes import (
    DIMENSIONS,
    FakeHost,
    FakeRunner,
    Recorder,
    alone,
    fake_logits,
    make_request,
)

BATCH = 4
CHUNK = 8
CONTEXT = 64
KV_TOKENS = 150  # less than BATCH * CONTEXT, so that room is often what is missing


def prompt(length: int, start: int) -> list[int]:
    return [1 + (start + 5 * n) % 27 for n in range(length)]


def request_of(prompt_ids: list[int], **params: Any) -> Request:
    if not params["max_tokens"]:
        params["prompt_logprobs"] = True  # or nothing is asked for
    return make_request(prompt_ids, **params)


requests_strategy = st.builds(
    request_of,
    # Many short, some exactly a chunk or nearly so, some of many chunks.
    st.builds(prompt, st.sampled_from([1, 2, 3, 4, 7, 8, 9, 16, 20, 35]), st.integers(0, 26)),
    sequences=st.sampled_from([1, 1, 1, 2, 4]),
    max_tokens=st.integers(0, 12),
    seed=st.integers(0, 999),
    stop=st.sampled_from([(), (), ("a",), ("bc", "z")]),
    do_sample=st.booleans(),
    top_k=st.sampled_from([0, 3]),
    wants_tokens=st.booleans(),
    details=st.booleans(),
    prompt_logprobs=st.sampled_from([False, False, True]),
    top_logprobs=st.sampled_from([0, 0, 2]),
    ignore_eos=st.booleans(),
    logit_bias=st.sampled_from([{}, {}, {0: -100.0, 5: 3.0}]),
    frequency_penalty=st.sampled_from([0.0, 0.0, 1.5]),
    min_p=st.sampled_from([0.0, 0.0, 0.2]),
    typical_p=st.sampled_from([1.0, 1.0, 0.5]),
)


def beside(request: Request) -> int:
    """Prompts are read in whole chunks, and scored in slots of their own."""
    whole = -(-request.prompt_length // CHUNK) * CHUNK
    return whole * (1 + request.scored_together)


def fits_alone(request: Request) -> bool:
    """Whether the engine would accept it at all."""
    needed = rectangle(
        [request.max_length] * len(request.sequences), context_length=CONTEXT, max_slots=BATCH
    )
    extra = beside(request)
    return request.max_length <= CONTEXT and needed.slots * needed.length + extra <= KV_TOKENS


def is_scored(request: Request) -> bool:
    return request.params.prompt_logprobs


def is_long(request: Request) -> bool:
    return request.prompt_length > CHUNK or is_scored(request)


class SchedulerMachine(RuleBasedStateMachine):
    """Executes plans on paper: `cache[slot]` names whose keys and values are in a slot."""

    def __init__(self) -> None:
        super().__init__()
        self.cache: list[Sequence] = []
        self.added: list[Request] = []
        self.read: dict[Request, int] = {}
        self.scored: dict[Request, int] = {}
        self.joined: list[Request] = []
        self.kinds: list[str] = []
        self.scheduler = Scheduler(
            max_batch_size=BATCH,
            prefill_chunk=CHUNK,
            context_length=CONTEXT,
            kv_fits=lambda shape, extra: shape.slots * shape.length + extra <= KV_TOKENS,
        )

    @rule(requests=st.lists(requests_strategy, min_size=1, max_size=3))
    def add(self, requests: list[Request]) -> None:
        for request in filter(fits_alone, requests):
            self.scheduler.add(request)
            self.added.append(request)

    @rule()
    def step(self) -> None:
        running = list(self.scheduler.running)
        plan = self.scheduler.schedule()
        if plan is None:
            # Nothing runs and something waits: then it must be able to start.
            assert not self.scheduler.has_work
            return
        self._check_turns(plan, running)
        match plan:
            case Decode():
                assert running
            case Prefill():
                self._prefill(plan)
            case PrefillChunk():
                self._chunk(plan)
            case Score():
                self._score(plan)

    @precondition(lambda self: self.cache)
    @rule(data=st.data())
    def finish_some(self, data: st.DataObject) -> None:
        slots = data.draw(st.sets(st.sampled_from(range(len(self.cache))), min_size=1))
        leaving = [self.cache[slot] for slot in slots]
        for sequence in leaving:
            sequence.finish_reason = "eos"
        self._leave(leaving)

    @precondition(lambda self: any(self._alive(request) for request in self.added))
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        alive = [request for request in self.added if self._alive(request)]
        request = data.draw(st.sampled_from(alive))
        self.scheduler.drop(request)
        self._leave([s for s in self.cache if s.request is request])
        self.added.remove(request)

    def _check_turns(self, plan: Plan, running: list[Sequence]) -> None:
        """Between two prefill steps everyone who runs gets a token."""
        kind = "decode" if isinstance(plan, Decode) else "prefill"
        if running and kind == "prefill":
            assert self.kinds[-1:] != ["prefill"], "a second prefill stalls those who run"
        self.kinds.append(kind)

    def _prefill(self, plan: Prefill) -> None:
        self._check_prefill(plan)
        for request in plan.requests:
            assert request not in self.read
            self.read[request] = request.prompt_length
        for request in plan.requests:
            self._join(request)

    def _chunk(self, plan: PrefillChunk) -> None:
        self._check_chunk(plan)
        self.read[plan.request] = plan.stop
        if plan.last and (plan.request.prompt_length == 1 or not is_scored(plan.request)):
            self._join(plan.request)

    def _score(self, plan: Score) -> None:
        self._check_score(plan)
        self.scored[plan.request] = plan.stop
        if plan.last:
            self._join(plan.request)

    def _check_prefill(self, plan: Prefill) -> None:
        assert plan.requests
        longest = max(request.prompt_length for request in plan.requests)
        assert longest * len(plan.requests) <= CHUNK
        # In order of arrival, and nobody is overtaken except a long prompt by short ones
        # while another long prompt is being read.
        positions = [self.added.index(request) for request in plan.requests]
        assert positions == sorted(positions)
        for request in self.scheduler.waiting:
            if self.added.index(request) < positions[-1]:
                assert is_long(request)
                assert self.scheduler.long is not None

    def _check_chunk(self, plan: PrefillChunk) -> None:
        request = plan.request
        assert is_long(request)
        assert plan.start == self.read.get(request, 0), "a part was skipped, or is read twice"
        assert plan.start % CHUNK == 0
        assert plan.stop == min(plan.start + CHUNK, request.prompt_length)
        assert plan.last == (plan.stop == request.prompt_length)
        for other in self.scheduler.waiting:
            if self.added.index(other) < self.added.index(request):
                pytest.fail("a long prompt overtook another request")

    def _check_score(self, plan: Score) -> None:
        request = plan.request
        assert is_scored(request)
        assert self.read[request] == request.prompt_length, "scored before it was read"
        assert plan.start == self.scored.get(request, 0), "a place was skipped, or scored twice"
        assert plan.start < plan.stop <= plan.start + request.scored_together
        assert plan.last == (plan.stop == request.prompt_length - 1)

    def _join(self, request: Request) -> None:
        assert self.read[request] == request.prompt_length
        assert request not in self.joined
        self.joined.append(request)
        slots = self.scheduler.join(request)
        assert slots == list(range(len(self.cache), len(self.cache) + len(request.sequences)))
        self.cache += request.sequences

    def _leave(self, leaving: list[Sequence]) -> None:
        staying = len(self.cache) - len(leaving)
        moves = self.scheduler.leave(leaving)
        for from_slot, to_slot in moves:
            assert from_slot >= staying > to_slot, "a move that was not needed"
            assert self.cache[from_slot] not in leaving
            assert self.cache[to_slot] in leaving
            self.cache[to_slot] = self.cache[from_slot]
        del self.cache[staying:]

    def _alive(self, request: Request) -> bool:
        return request not in self.joined or any(s.request is request for s in self.cache)

    @invariant()
    def cache_is_where_the_scheduler_thinks(self) -> None:
        scheduler = self.scheduler
        scheduler.check_integrity()
        assert scheduler.running == self.cache
        assert len(self.cache) <= BATCH
        shape = scheduler.shape()
        prompt = beside(scheduler.long) if scheduler.long else 0
        assert shape.slots * shape.length + max(CHUNK, prompt) <= KV_TOKENS
        assert shape.slots >= len(self.cache)
        assert all(sequence.max_length <= shape.length for sequence in self.cache)

    def teardown(self) -> None:
        """Whoever waits gets a turn, given that those who run end some day."""
        for turn in range(2000):
            if not self.scheduler.has_work:
                break
            self.step()
            if turn % 3 == 2 and self.cache:
                self._leave([self.cache[0]])
        assert not self.scheduler.has_work
        assert set(self.added) <= set(self.joined), "somebody never joined"


def check_scores(request: Request, scores: tuple[PromptToken, ...], salt: int) -> None:
    """What the fake model says of each token after those before it, and no other."""
    ids = request.prompt_ids
    assert [token.id for token in scores] == ids
    assert scores[0] == PromptToken(ids[0], None)
    for n, token in enumerate(scores[1:], start=1):
        logits = fake_logits(ids[:n], salt).astype(float)
        logprobs = logits - np.log(np.exp(logits).sum())
        assert token.logprob == pytest.approx(logprobs[token.id], abs=1e-5)
        best = np.argsort(-logprobs, kind="stable")[: request.params.top_logprobs].tolist()
        assert [top.id for top in token.top] == best


class WorkerMachine(RuleBasedStateMachine):
    """Two models that share one KV pool, as in the engine."""

    def __init__(self) -> None:
        super().__init__()
        # As for the scheduler above: a request that was let in fits on its own.
        token = bytes_per_token(DIMENSIONS, "float32")
        self.host = FakeHost(KVPool(KV_TOKENS * token))
        self.workers = [
            ModelWorker(
                f"model-{salt}",
                FakeRunner(salt),  # type: ignore[arg-type]
                self.host,
                max_batch_size=BATCH,
                prefill_chunk=CHUNK,
            )
            for salt in (0, 1)
        ]
        self.requests: list[tuple[Request, int]] = []
        self.cancelled: set[Request] = set()

    @rule(requests=st.lists(requests_strategy, min_size=1, max_size=3), model=st.integers(0, 1))
    def add(self, requests: list[Request], model: int) -> None:
        for request in filter(fits_alone, requests):
            self.workers[model].add(request)
            self.requests.append((request, model))

    @rule(model=st.integers(0, 1), steps=st.integers(1, 4))
    def step(self, model: int, steps: int) -> None:
        for _ in range(steps):
            if self.workers[model].has_work:
                self.workers[model].step()
        self.host.outbox.flush()

    @precondition(lambda self: any(worker.has_work for worker in self.workers))
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        worker = data.draw(st.sampled_from([w for w in self.workers if w.has_work]))
        request = data.draw(st.sampled_from(worker.requests()))
        worker.cancel(request, RequestAborted("cancelled"))
        self.cancelled.add(request)

    @invariant()
    def accounts_agree(self) -> None:
        self.host.pool.check_integrity()
        for worker in self.workers:
            worker.scheduler.check_integrity()
            if not worker.has_work:
                assert self.host.pool.fits(worker.key, self.host.pool.budget - self._others(worker))

    def _others(self, worker: ModelWorker) -> int:
        return sum(size for key, size in self.host.pool._held.items() if key != worker.key)

    def teardown(self) -> None:
        for _ in range(3000):
            stepped = [worker.step() for worker in self.workers if worker.has_work]
            if not any(stepped):
                break
        self.host.outbox.flush()
        assert not any(worker.has_work for worker in self.workers), "somebody waits for ever"
        assert self.host.pool.used == 0
        assert len(self.host.ended) == len(self.requests)
        for request, model in self.requests:
            self._check_end(request, model)

    def _check_end(self, request: Request, model: int) -> None:
        stream = request.stream
        assert isinstance(stream, Recorder)
        assert stream.ends == 1
        if request in self.cancelled:
            assert isinstance(stream.error, RequestAborted)
            return
        assert stream.error is None, f"{stream.error}: {stream.error.__cause__}"
        scores = [e.tokens for e in stream.events if isinstance(e, PromptTokens)]
        assert len(scores) == is_scored(request)
        for tokens in scores:
            check_scores(request, tokens, model)
        for index, (tokens, text, reason) in enumerate(alone(request, model)):
            sequence, generation = request.sequences[index], stream.generations[index]
            made = sequence.row.history[request.prompt_length :]
            assert (made, generation.text, generation.finish_reason) == (tokens, text, reason)
            assert generation.tokens == len(tokens)
            if request.wants_tokens:
                assert stream.pieces(index) == text
            if request.params.details:
                assert generation.details is not None
                assert [token.id for token in generation.details] == tokens
                assert "".join(token.text for token in generation.details) == text


SETTINGS = settings(deadline=None, derandomize=True, max_examples=130, stateful_step_count=30)


def test_scheduler_keeps_its_promises() -> None:
    run_state_machine_as_test(SchedulerMachine, settings=SETTINGS)


def test_worker_gives_everyone_what_it_gets_alone() -> None:
    run_state_machine_as_test(WorkerMachine, settings=settings(SETTINGS, max_examples=90))


def test_prefill_is_padded_to_a_chunk_at_most() -> None:
    worker: Any = ModelWorker(
        "model",
        FakeRunner(),  # type: ignore[arg-type]
        FakeHost(KVPool(10**9)),
        max_batch_size=32,
        prefill_chunk=16,
    )
    for length in (1, 1, 1, 7, 2, 16, 15, 17, 3, 40, 1):
        worker.add(make_request([1] * length, max_tokens=2))
    while worker.has_work:
        worker.step()
    assert all(padded <= 16 for _, padded in worker.runner.prefills)
    assert max(rows for rows, _ in worker.runner.prefills) > 1


def test_nothing_overtakes_a_prompt_that_waits_for_room() -> None:
    # Two slots are taken, the long prompt wants three: the short one behind it has to wait.
    scheduler = Scheduler(
        max_batch_size=BATCH, prefill_chunk=CHUNK, context_length=CONTEXT, kv_fits=lambda *_: True
    )
    first = make_request([1], sequences=2)
    long = make_request([1] * (CHUNK + 1), sequences=3)
    short = make_request([1])
    scheduler.add(first)
    assert scheduler.schedule() == Prefill([first])
    scheduler.join(first)
    scheduler.add(long)
    scheduler.add(short)
    assert [scheduler.schedule() for _ in range(3)] == [Decode()] * 3
    scheduler.leave([first.sequences[0]])
    # Now there is room for it; the short one may take turns with its chunks.
    plans = [scheduler.schedule() for _ in range(4)]
    assert scheduler.long is long
    assert PrefillChunk(long, 0, CHUNK) in plans


def test_shapes_are_those_of_the_rectangle() -> None:
    scheduler = Scheduler(
        max_batch_size=BATCH, prefill_chunk=CHUNK, context_length=CONTEXT, kv_fits=lambda *_: True
    )
    assert scheduler.shape([make_request([1] * 5, sequences=3, max_tokens=4)]) == KVShape(4, 16)
    assert scheduler.schedule() is None
