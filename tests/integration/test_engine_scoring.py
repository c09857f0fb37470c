"""Log-probabilities of prompts, by real models: PyTorch's own, and the same whatever the load."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from gpt2serve import Engine, SamplingParams
from gpt2serve.engine.events import PromptToken, PromptTokens
from gpt2serve.engine.prompts import Prompt
from tests.engine_driver import (
    REAGAN,
    SAMPLES,
    Recording,
    Sent,
    assert_idle,
    cancel,
    open_engine,
    send,
)
from tests.waiting import wait_until

CHUNK = 32
TEXT = "The people of our union must have peace and commerce, said Congress in 1802. "
PROMPTS = ("America is", TEXT, TEXT * 4)
SCORED = SamplingParams(
    do_sample=True,
    max_new_tokens=12,
    seed=3,
    num_return_sequences=2,
    prompt_logprobs=True,
    top_logprobs=4,
)


@pytest.fixture(scope="module", params=["int8", "fp32"])
def engine(request: pytest.FixtureRequest, sample_store: Path) -> Iterator[Engine]:
    with open_engine(sample_store, precision=request.param, prefill_chunk=CHUNK) as engine:
        yield engine


@pytest.fixture(scope="module")
def reference() -> Any:
    torch = pytest.importorskip("torch")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from transformers import GPT2LMHeadModel

        torch.set_num_threads(1)
        model = GPT2LMHeadModel.from_pretrained(SAMPLES / REAGAN, dtype=torch.float32).eval()

    def logprobs(ids: list[int]) -> Any:
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0].double()
        return torch.log_softmax(logits, dim=-1).numpy()

    return logprobs


def scores(sent: Sent) -> tuple[PromptToken, ...]:
    (event,) = (e for e in sent.stream.events if isinstance(e, PromptTokens))
    return event.tokens


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("prompt", PROMPTS)
def test_scores_are_those_of_pytorch(engine: Engine, reference: Any, prompt: str) -> None:
    prepared = engine.prepare(REAGAN, prompt)
    # int8 has its own, near ones: a difference of 0.1 is one of a tenth of the probability.
    exact = prepared.package.manifest.precision == "fp32"
    result = engine.generate(REAGAN, prompt, SCORED)
    found, expected = result.prompt_tokens, reference(prepared.prompt_ids)
    assert found is not None
    assert [token.id for token in found] == prepared.prompt_ids
    assert found[0] == PromptToken(prepared.prompt_ids[0], None)
    differences = []
    for n, token in enumerate(found[1:]):
        assert token.logprob is not None
        assert [top.logprob for top in token.top] == sorted(t.logprob for t in token.top)[::-1]
        differences.append(token.logprob - expected[n, token.id])
        differences += [top.logprob - expected[n, top.id] for top in token.top]
        if exact:
            best = np.sort(expected[n])[::-1][:4]
            np.testing.assert_allclose([top.logprob for top in token.top], best, atol=1e-4)
    assert np.abs(differences).max() < (1e-4 if exact else 0.5)
    assert np.abs(differences).mean() < (2e-5 if exact else 0.08)


@pytest.mark.parametrize("prompt", PROMPTS)
def test_the_text_is_the_same_with_and_without(engine: Engine, prompt: str) -> None:
    """To the last bit of every log-probability."""
    scored = send(engine, REAGAN, prompt, SCORED).stream.finish()
    plain = msgspec.structs.replace(SCORED, prompt_logprobs=False)
    assert scored.outcome(2) == send(engine, REAGAN, prompt, plain).stream.finish().outcome(2)


@pytest.mark.parametrize("prompt", PROMPTS)
def test_scores_alone_are_the_same_scores(engine: Engine, prompt: str) -> None:
    whole = engine.generate(REAGAN, prompt, SCORED)
    only = engine.generate(REAGAN, prompt, msgspec.structs.replace(SCORED, max_new_tokens=0))
    assert only.prompt_tokens == whole.prompt_tokens
    assert [(g.text, g.finish_reason) for g in only.generations] == [(prompt, "length")] * 2
    ids = engine.prepare(REAGAN, prompt).prompt_ids
    assert engine.generate(REAGAN, ids, SCORED).prompt_tokens == whole.prompt_tokens


def test_a_prompt_that_fills_the_context_is_scored(engine: Engine, reference: Any) -> None:
    context = engine.describe(REAGAN).dimensions.context_length
    ids = (engine.prepare(REAGAN, TEXT).prompt_ids * context)[:context]
    only = SamplingParams(max_new_tokens=0, prompt_logprobs=True)
    found = engine.generate(REAGAN, ids, only).prompt_tokens
    assert found is not None
    expected = reference(ids)
    differences = [
        token.logprob - expected[n, token.id] for n, token in enumerate(found[1:]) if token.logprob
    ]
    assert len(differences) == context - 1
    assert np.abs(differences).mean() < 0.1


def test_scores_and_texts_do_not_depend_on_what_else_runs(engine: Engine) -> None:
    prompts: list[Prompt] = [*PROMPTS, engine.prepare(REAGAN, TEXT).prompt_ids[3:40]]
    alone = [send(engine, REAGAN, prompt, SCORED) for prompt in prompts]
    for sent in alone:
        sent.stream.finish()
    other = SamplingParams(do_sample=True, max_new_tokens=100, min_new_tokens=100, seed=1)
    running = [send(engine, REAGAN, "We", other) for _ in range(3)]
    together = [send(engine, REAGAN, prompt, SCORED) for prompt in prompts]
    for sent, before in zip(together, alone, strict=True):
        sent.stream.finish()
        assert scores(sent) == scores(before)
        assert sent.stream.outcome(2) == before.stream.outcome(2)
    for sent in running:
        sent.stream.finish()
    assert_idle(engine)


def test_who_leaves_while_being_scored_leaves_nothing_behind(engine: Engine) -> None:
    expected = engine.generate(REAGAN, PROMPTS[2], SCORED).prompt_tokens
    for _ in range(3):
        sent = [send(engine, REAGAN, PROMPTS[2], SCORED) for _ in range(3)]
        wait_until(lambda: sent[0].request.times.prefill_started is not None)  # noqa: B023
        for one in sent[:2]:
            cancel(engine, one)
        for one in sent:
            one.stream.wait()
            assert one.stream.terminals == 1
        assert scores(sent[2]) == expected
        assert_idle(engine)


def test_close_while_a_prompt_is_scored(sample_store: Path) -> None:
    stream = Recording()
    with open_engine(sample_store, prefill_chunk=CHUNK) as engine:
        sent = send(engine, REAGAN, PROMPTS[2], SCORED, stream=stream)
        wait_until(lambda: sent.request.times.prefill_started is not None)
    stream.wait()
    assert stream.terminals == 1
    assert engine._core.pool.used == 0
