"""What a request may wish for while it is generated, by one worker with a model of plain arrays."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest

from gpt2serve.engine.events import Done, Generation, PromptToken, PromptTokens, Token, TokenEvent
from gpt2serve.engine.kv_cache import KVPool
from gpt2serve.engine.request import Request
from gpt2serve.engine.worker import ModelWorker
from gpt2serve.errors import RequestAborted, StepFailed
from tests.engine_fakes import (
    DIMENSIONS,
    EOS,
    FakeHost,
    FakeRunner,
    Recorder,
    fake_logits,
    make_request,
)

CHUNK = 8
PROMPT = [3, 4, 5]


class Bench:
    """One worker, and requests that are run to their end."""

    def __init__(self, kv_bytes: int = 10**6) -> None:
        self.host = FakeHost(KVPool(kv_bytes))
        self.runner = FakeRunner()
        self.worker = ModelWorker(
            "model",
            self.runner,  # type: ignore[arg-type]
            self.host,
            max_batch_size=4,
            prefill_chunk=CHUNK,
        )

    def run(self, *requests: Request) -> None:
        for request in requests:
            self.worker.add(request)
        while self.worker.has_work:
            assert self.worker.step()
            self.worker.scheduler.check_integrity()
            self.host.pool.check_integrity()
        self.host.outbox.flush()
        assert self.host.pool.used == 0


def generated(request: Request, index: int = 0) -> list[int]:
    return request.sequences[index].row.history[request.prompt_length :]


def generation(request: Request) -> Generation:
    return recorder(request).generations[0]


def recorder(request: Request) -> Recorder:
    stream = request.stream
    assert isinstance(stream, Recorder)
    return stream


def ran(prompt: list[int] = PROMPT, **params: Any) -> Request:
    request = make_request(prompt, **params)
    Bench().run(request)
    return request


# -- the end ----------------------------------------------------------------------------------


def test_end_of_text_is_ignored_on_request() -> None:
    always_the_end = {EOS: 100.0}
    ends = ran(logit_bias=always_the_end, max_tokens=4)
    assert (generated(ends), generation(ends).finish_reason) == ([EOS], "eos")
    goes_on = ran(logit_bias=always_the_end, max_tokens=4, ignore_eos=True)
    assert generated(goes_on) == [EOS] * 4
    assert (generation(goes_on).finish_reason, generation(goes_on).text) == ("length", "")
    # Nor is it kept from coming early.
    early = ran(logit_bias=always_the_end, max_tokens=4, min_tokens=3, ignore_eos=True)
    assert generated(early) == [EOS] * 4
    assert generated(ran(logit_bias=always_the_end, max_tokens=4, min_tokens=3))[3:] == [EOS]


def test_no_token_is_begun_after_max_time() -> None:
    # The fake clock goes on by a millisecond whenever somebody looks at it.
    forever = ran(max_tokens=40, ignore_eos=True)
    assert len(generated(forever)) == 40
    short = ran(max_tokens=40, ignore_eos=True, max_time=0.02)
    assert 1 < len(generated(short)) < 40
    assert generated(short) == generated(forever)[: len(generated(short))]
    assert generation(short).finish_reason == "length"
    shortest = ran(max_tokens=40, ignore_eos=True, max_time=1e-9, sequences=2)
    assert [len(generated(shortest, n)) for n in (0, 1)] == [1, 1]
    assert isinstance(recorder(shortest).events[-1], Done)


def test_time_before_the_prompt_is_read_is_not_counted() -> None:
    bench = Bench()
    late = make_request(PROMPT, max_tokens=2, max_time=0.5)
    bench.host.now = 1000.0
    bench.run(late)
    assert len(generated(late)) == 2


def test_the_timing_stands_still_after_the_end() -> None:
    request = ran(max_tokens=3)
    done = recorder(request).events[-1]
    assert request.times.timing(10**9) == done.timing


# -- what may be said -------------------------------------------------------------------------


def test_banned_tokens_never_come_and_biased_ones_do() -> None:
    free = ran(max_tokens=30, ignore_eos=True)
    banned = dict.fromkeys(generated(free)[:5], -100.0)
    assert not banned.keys() & set(generated(ran(max_tokens=30, logit_bias=banned)))
    assert generated(ran(max_tokens=3, logit_bias={9: 100.0})) == [9, 9, 9]


def test_a_request_that_bans_everything_fails_alone() -> None:
    everything = dict.fromkeys(range(DIMENSIONS.vocab_size), -100.0)
    stuck, other = make_request(PROMPT, logit_bias=everything), make_request(PROMPT)
    Bench().run(stuck, other)
    assert isinstance(recorder(stuck).error, StepFailed)
    assert recorder(stuck).ends == recorder(other).ends == 1
    assert generated(other) == generated(ran())


def test_penalties_count_what_was_generated_and_not_the_prompt() -> None:
    def logits(history: list[int]) -> Any:
        scores = fake_logits(history)
        for token in set(history[3:]):
            scores[token] -= 0.5 + 1.5 * history[3:].count(token)
        return scores

    request = ran(
        do_sample=False,
        max_tokens=20,
        ignore_eos=True,
        presence_penalty=0.5,
        frequency_penalty=1.5,
    )
    history = list(PROMPT)
    for _ in range(20):
        history.append(int(np.argmax(logits(history))))
    assert generated(request) == history[3:]
    assert generated(request) != generated(ran(do_sample=False, max_tokens=20, ignore_eos=True))


# -- log-probabilities ------------------------------------------------------------------------


def own(history: list[int]) -> Any:
    """The model's own log-probabilities after `history`."""
    logits = fake_logits(history).astype(np.float64)
    return logits - np.log(np.exp(logits).sum())


@pytest.mark.parametrize("wants_tokens", [False, True])
def test_the_likeliest_tokens_beside_each(wants_tokens: bool) -> None:
    # Edits and filters change what is drawn, not what the model said.
    request = make_request(
        PROMPT,
        max_tokens=6,
        details=not wants_tokens,
        top_logprobs=3,
        min_tokens=6,
        logit_bias={7: 5.0, 8: -100.0},
        presence_penalty=1.0,
        top_k=2,
        wants_tokens=wants_tokens,
    )
    other = make_request(PROMPT, max_tokens=6, wants_tokens=True)
    Bench().run(request, other)
    events = [e.token for e in recorder(request).events if isinstance(e, TokenEvent)]
    tokens = events if wants_tokens else list(generation(request).details or ())
    assert len(tokens) == 6
    for n, token in enumerate(tokens):
        logprobs = own(PROMPT + generated(request)[:n])
        assert token.logprob == pytest.approx(logprobs[token.id], abs=1e-5)
        assert [top.id for top in token.top] == np.argsort(-logprobs)[:3].tolist()
        wanted = np.sort(logprobs)[::-1][:3]
        assert [top.logprob for top in token.top] == pytest.approx(wanted, abs=1e-5)
    plain = [e.token for e in recorder(other).events if isinstance(e, TokenEvent)]
    assert plain
    assert all(token.top == () for token in plain)


# -- prompts that are scored ------------------------------------------------------------------


def events_of(kind: type, request: Request) -> list[Any]:
    return [event for event in recorder(request).events if isinstance(event, kind)]


@pytest.mark.parametrize("tokens", [1, 2, 3, CHUNK, CHUNK + 1, 40])
@pytest.mark.parametrize("max_tokens", [0, 1, 5])
def test_every_token_of_the_prompt_is_scored_before_the_first_is_made(
    tokens: int, max_tokens: int
) -> None:
    prompt = [(5 * n) % 29 for n in range(tokens)]
    scored = ran(
        prompt, max_tokens=max_tokens, prompt_logprobs=True, top_logprobs=2, wants_tokens=True
    )
    events = recorder(scored).events
    assert isinstance(events[0], PromptTokens)
    assert [event for event in events[1:] if isinstance(event, PromptTokens)] == []
    assert [token.id for token in events[0].tokens] == prompt
    assert events[0].tokens[0] == PromptToken(prompt[0], None)
    for n, token in enumerate(events[0].tokens[1:], start=1):
        logprobs = own(prompt[:n])
        assert token.logprob == pytest.approx(logprobs[token.id], abs=1e-5)
        assert [top.id for top in token.top] == np.argsort(-logprobs)[:2].tolist()
    plain = ran(prompt, max_tokens=max_tokens or 1)
    assert generated(scored) == generated(plain)[:max_tokens]


def test_a_request_for_scores_only_ends_without_a_token() -> None:
    request = ran(max_tokens=0, prompt_logprobs=True, sequences=3, return_full_text=True)
    assert generated(request) == []
    ends = events_of(Generation, request)
    assert [(end.index, end.text, end.tokens) for end in ends] == [(n, "", 0) for n in range(3)]
    (done,) = events_of(Done, request)
    assert (done.usage.prompt_tokens, done.usage.completion_tokens) == (3, 0)
    assert done.timing.decode_ms == 0.0


def test_others_go_on_while_a_prompt_is_scored() -> None:
    bench = Bench()
    other = make_request(PROMPT, max_tokens=30, ignore_eos=True)
    bench.worker.add(other)
    assert bench.worker.step()
    scored = make_request([5] * 40, max_tokens=0, prompt_logprobs=True)
    bench.worker.add(scored)
    while not scored.ended:
        before = len(generated(other))
        assert bench.worker.step()
        assert bench.worker.step()
        assert len(generated(other)) > before
    assert not other.ended
    bench.run()
    assert generated(other) == generated(ran(max_tokens=30, ignore_eos=True))


@pytest.mark.parametrize("steps", range(9))
def test_a_request_that_leaves_while_it_is_scored_leaves_nothing(steps: int) -> None:
    bench = Bench()
    scored = make_request([5] * 40, max_tokens=3, prompt_logprobs=True)
    bench.worker.add(scored)
    for _ in range(steps):
        assert bench.worker.step()
    bench.worker.cancel(scored, RequestAborted("gone"))
    assert bench.host.pool.used == 0
    assert bench.worker._long_prompt is None
    bench.run()
    assert recorder(scored).ends == 1
    other = make_request(PROMPT)
    bench.run(other)
    assert generated(other) == generated(ran())


@pytest.mark.parametrize("step", range(1, 9))
def test_a_step_that_fails_while_a_prompt_is_scored(step: int) -> None:
    bench = Bench()
    bench.runner.fail_at = {step}
    scored, other = make_request([5] * 40, max_tokens=3, prompt_logprobs=True), make_request(PROMPT)
    bench.run(scored)
    assert isinstance(recorder(scored).error, StepFailed)
    assert bench.worker._long_prompt is None
    bench.run(other)
    assert generated(other) == generated(ran())


def test_what_was_not_asked_for_is_not_on_the_wire() -> None:
    assert msgspec.json.encode(Token(1, "a", -0.5)) == b'{"id":1,"text":"a","logprob":-0.5}'
