"""Our sampling and transformers' own processors give one and the same distribution.

The reference is the processor list that `generate` itself builds. Our distribution is found
from outside: many rows with equal logits and different seeds are sampled, and the seeds'
random numbers are known. A draw is the inverse of a distribution, so each token owns one
interval of [0, 1), and the numbers that yield the token bound the interval from both sides.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from gpt2serve.engine.randomness import uniform
from gpt2serve.engine.sampling import BatchSampler
from gpt2serve.engine.sampling_row import SamplingRow, bias_of

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

Floats = npt.NDArray[np.float64]

QUICK = settings(deadline=None, derandomize=True, max_examples=120)
#: transformers sums probabilities in float32; where a sum is that near to top_p, either
#: answer is right.
BORDER = 2e-5


@dataclass(frozen=True)
class Case:
    """Settings of one row. `generated` of the history's tokens were generated."""

    vocabulary: int
    logits_seed: int = 0
    ties: bool = False
    do_sample: bool = True
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    no_repeat_ngram_size: int = 0
    min_tokens: int = 0
    history: tuple[int, ...] = (0,)
    generated: int = 0
    eos: tuple[int, ...] = (0,)
    min_p: float = 0.0
    typical_p: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    bias: tuple[tuple[int, float], ...] = ()
    top_logprobs: int = 0

    @property
    def logits(self) -> npt.NDArray[np.float32]:
        random = np.random.default_rng(self.logits_seed)
        logits = random.normal(size=self.vocabulary) * 3 + 0.5
        if self.ties:
            logits = np.round(logits)
        return logits.astype(np.float32)

    def row(self, seed: int, *, wants_logprob: bool = False) -> SamplingRow:
        row = SamplingRow(
            do_sample=self.do_sample,
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            repetition_penalty=self.repetition_penalty,
            no_repeat_ngram_size=self.no_repeat_ngram_size,
            min_tokens=self.min_tokens,
            seed=seed,
            eos_token_ids=self.eos,
            wants_logprob=wants_logprob,
            history=list(self.history[: len(self.history) - self.generated]),
            min_p=self.min_p,
            typical_p=self.typical_p,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            bias=bias_of(dict(self.bias)),
            top_logprobs=self.top_logprobs,
        )
        row.history.extend(self.history[len(self.history) - self.generated :])
        return row


class OpenAIPenalties(transformers.LogitsProcessor):
    """The formula of OpenAI's API reference, over what was generated:

    mu[j] -> mu[j] - c[j] * alpha_frequency - float(c[j] > 0) * alpha_presence
    """

    def __init__(self, case: Case) -> None:
        self.case = case

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        case, scores = self.case, scores.clone()
        for token, count in Counter(case.history[len(case.history) - case.generated :]).items():
            scores[0, token] -= count * case.frequency_penalty + case.presence_penalty
        return scores


def processors_of_transformers(case: Case, *, total_length: bool = False) -> list[Any]:
    """What `generate` would apply, in its order."""
    config = transformers.GenerationConfig(
        do_sample=case.do_sample,
        temperature=case.temperature,
        top_k=case.top_k,
        top_p=case.top_p,
        min_p=case.min_p if case.min_p > 0 else None,
        typical_p=case.typical_p,
        repetition_penalty=case.repetition_penalty,
        no_repeat_ngram_size=case.no_repeat_ngram_size,
        sequence_bias={(token,): float(value) for token, value in case.bias} or None,
    )
    if not case.do_sample:
        config.temperature = config.top_k = config.top_p = config.min_p = config.typical_p = None
    prompt = len(case.history) - case.generated
    if total_length:
        config.min_length = prompt + case.min_tokens
    else:
        config.min_new_tokens = case.min_tokens
    config._eos_token_tensor = torch.tensor(case.eos)
    processors = transformers.GenerationMixin()._get_logits_processor(
        generation_config=config,
        input_ids_seq_length=prompt,
        encoder_input_ids=torch.tensor([case.history]),
        prefix_allowed_tokens_fn=None,
        logits_processor=transformers.LogitsProcessorList(),
        device="cpu",
    )
    return list(processors)


def processed_by_transformers(case: Case, *, total_length: bool = False) -> Floats:
    """Scores after all of that, and OpenAI's penalties where vLLM has them."""
    processors = processors_of_transformers(case, total_length=total_length)
    names = [type(processor).__name__ for processor in processors]
    before = ("SequenceBiasLogitsProcessor", "RepetitionPenaltyLogitsProcessor")
    processors.insert(sum(name in before for name in names), OpenAIPenalties(case))
    return apply(processors, case, case.logits)


def apply(processors: Sequence[Any], case: Case, logits: npt.NDArray[Any]) -> Floats:
    scores = torch.from_numpy(logits[None].copy())
    for processor in processors:
        scores = processor(torch.tensor([case.history]), scores)
    return np.asarray(scores[0].numpy(), dtype=np.float64)


def kept_with(scores: Floats, top_p: float) -> int:
    """How many tokens top-p keeps of `scores`, in exact enough arithmetic."""
    weights = np.sort(np.exp(scores - scores.max()))[::-1]
    weights = weights[weights > 0] / weights.sum()
    return max(1, int((weights.cumsum() - weights < top_p).sum()))


def wanted_distribution(case: Case, *, total_length: bool = False) -> Floats | None:
    """None where there is nothing to compare with."""
    plain = replace(case, min_p=0.0, typical_p=1.0)
    scores = processed_by_transformers(plain, total_length=total_length)
    if not np.isfinite(scores).any():
        return None  # every token is banned, and `generate` raises too
    if case.do_sample and case.top_p < 1:
        unfiltered = processed_by_transformers(replace(plain, top_p=1.0), total_length=total_length)
        low, high = (kept_with(unfiltered, case.top_p + sign * BORDER) for sign in (-1, 1))
        if low != high:
            return None  # float32 rounding decides what top-p keeps
        # Of equally likely tokens at the border transformers keeps whichever its sort, which
        # is not stable, put first; ours are the lowest ids.
        least = scores[np.isfinite(scores)].min()
        tied = np.nonzero(unfiltered == least)[0]
        count = int(np.isfinite(scores[tied]).sum())
        scores[tied] = -np.inf
        scores[tied[:count]] = least
    if case.do_sample and is_at_a_border(case, scores):
        return None
    # The last two filters are `generate`'s own, too, after that repair.
    last = [p for p in processors_of_transformers(case) if type(p) in LAST_FILTERS]
    scores = apply(last, case, scores.astype(np.float32))
    weights: Floats = np.exp(scores - scores.max())
    return weights / weights.sum()


LAST_FILTERS = (transformers.MinPLogitsWarper, transformers.TypicalLogitsWarper)


def is_at_a_border(case: Case, scores: Floats) -> bool:
    """Whether float32 rounding may decide what min-p or typical-p keeps of `scores`."""
    weights = np.exp(scores - scores.max())
    if case.min_p > 0:
        between = np.abs(weights / case.min_p - 1) < BORDER
        if (between & (weights < 1)).any():
            return True
        weights = np.where(weights >= case.min_p, weights, 0.0)
    if case.typical_p >= 1:
        return False
    probability = np.sort(weights[weights > 0]) / weights.sum()
    surprise = -np.log(probability)
    distance = np.abs(surprise - (probability * surprise).sum())
    order = np.argsort(distance, kind="stable")
    distance, reached = distance[order], probability[order].cumsum()
    gaps = np.diff(distance)
    # Tokens that are equally likely are equally typical, whatever the rounding.
    close = (gaps < 1e-4) & (np.diff(probability[order]) != 0)
    return bool((np.abs(reached - case.typical_p) < BORDER).any() or close.any())


def check_intervals(tokens: npt.NDArray[np.int64], draws: Floats, wanted: Floats) -> None:
    order = np.argsort(draws)
    tokens, draws = tokens[order], draws[order]
    assert (wanted[tokens] > 0).all(), "a token was drawn that transformers rules out"
    starts = np.nonzero(np.diff(tokens, prepend=-1))[0]
    owners = tokens[starts]
    assert len(set(owners.tolist())) == len(owners), "a token has two intervals"
    ends = np.append(starts[1:], len(tokens)) - 1
    before = np.append(0.0, draws)[starts]
    after = np.append(draws, 1.0)[ends + 1]
    inner, outer = draws[ends] - draws[starts], after - before
    probability = wanted[owners]
    assert (inner <= probability + 1e-6).all(), "a token is drawn too often"
    assert (outer >= probability - 1e-6).all(), "a token is drawn too rarely"
    unseen = np.delete(wanted, owners)
    widest = np.diff(draws, prepend=0.0, append=1.0).max()
    assert unseen.max(initial=0.0) <= widest + 1e-6, "a token is never drawn"


def check(case: Case, wanted: Floats | None, rows: int) -> None:
    assert wanted is not None
    seeds = np.arange(rows, dtype=np.uint64) + np.uint64(case.logits_seed)
    sampler = BatchSampler([case.row(int(seed)) for seed in seeds])
    tokens, _ = sampler.sample(np.tile(case.logits, (rows, 1)))
    draws = uniform(seeds, np.full(rows, case.generated, dtype=np.uint64))
    check_intervals(tokens, draws, wanted)


@st.composite
def cases(draw: Any, *, do_sample: bool | None = True) -> Case:
    # Around multiples of the group size of the search for the largest, and below it.
    vocabulary = draw(
        st.sampled_from([2, 3, 17, 31, 32, 33, 63, 64, 65, 95, 96, 97, 127, 128, 200, 321, 1024])
    )
    token = st.integers(0, vocabulary - 1)
    history = draw(st.lists(token, min_size=1, max_size=12))
    return Case(
        vocabulary=vocabulary,
        logits_seed=draw(st.integers(0, 10_000)),
        ties=draw(st.booleans()),
        do_sample=draw(st.booleans()) if do_sample is None else do_sample,
        temperature=draw(st.sampled_from([1.0, 0.3, 0.7, 1.9, 12.0])),
        top_k=draw(st.sampled_from([0, 1, 2, 3, 5, 31, 32, 33, 50, 255, 256, 257, 320, 5000])),
        top_p=draw(st.sampled_from([1.0, 1e-9, 0.1, 0.33, 0.5, 0.8, 0.95, 0.999])),
        repetition_penalty=draw(st.sampled_from([1.0, 0.5, 1.2, 3.0])),
        no_repeat_ngram_size=draw(st.sampled_from([0, 0, 1, 2, 3, 4])),
        min_tokens=draw(st.integers(0, 4)),
        history=tuple(history),
        generated=draw(st.integers(0, len(history) - 1)),
        eos=tuple(draw(st.lists(token, min_size=1, max_size=2, unique=True))),
        min_p=draw(st.sampled_from([0.0, 0.0, 1e-9, 0.02, 0.3, 0.9, 1.0])),
        typical_p=draw(st.sampled_from([1.0, 1.0, 1e-9, 0.2, 0.6, 0.95, 0.999])),
        presence_penalty=draw(st.sampled_from([0.0, 0.0, -2.0, 0.7, 2.0])),
        frequency_penalty=draw(st.sampled_from([0.0, 0.0, -1.3, 0.4, 2.0])),
        bias=tuple(
            draw(
                st.dictionaries(token, st.sampled_from([-99.0, -1.5, 2.0, 100.0]), max_size=3)
            ).items()
        ),
        top_logprobs=draw(st.sampled_from([0, 0, 1, 5, 20])),
    )


@QUICK
@given(cases(), st.booleans())
@example(Case(vocabulary=33, ties=True, top_k=5, top_p=0.8), False)
@example(Case(vocabulary=64, ties=True, top_k=0, top_p=0.5), False)
@example(Case(vocabulary=64, history=(1, 2, 1), no_repeat_ngram_size=2), True)
@example(Case(vocabulary=40, min_tokens=3, generated=2, history=(3, 4, 5)), True)
@example(Case(vocabulary=40, min_tokens=2, generated=2, history=(3, 4, 5)), True)
@example(Case(vocabulary=64, top_k=20, min_p=0.1), False)
@example(Case(vocabulary=64, ties=True, top_k=0, top_p=0.9, min_p=0.02), False)
@example(Case(vocabulary=64, top_k=0, top_p=1.0, min_p=0.3), False)
@example(Case(vocabulary=64, ties=True, top_k=9, typical_p=0.2), False)
@example(Case(vocabulary=321, top_k=0, top_p=0.95, min_p=0.02, typical_p=0.6), False)
@example(Case(vocabulary=40, history=(3, 4, 5, 4), generated=3, frequency_penalty=2.0), False)
@example(Case(vocabulary=40, history=(3, 4, 5, 4), generated=3, presence_penalty=-2.0), False)
def test_distribution_is_that_of_transformers(case: Case, total_length: bool) -> None:
    wanted = wanted_distribution(case, total_length=total_length)
    assume(wanted is not None)
    check(case, wanted, rows=400)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize(
    ("top_k", "top_p"), [(50, 0.95), (50, 1.0), (0, 0.9), (0, 1.0), (300, 0.9), (256, 0.5), (1, 1)]
)
@pytest.mark.parametrize("vocabulary", [4096, 50257])
def test_distribution_over_a_large_vocabulary(
    vocabulary: int, top_k: int, top_p: float, ties: bool
) -> None:
    case = Case(vocabulary=vocabulary, ties=ties, top_k=top_k, top_p=top_p, temperature=0.9)
    seeded = (replace(case, logits_seed=seed) for seed in range(5, 10))
    case, wanted = next((c, w) for c in seeded if (w := wanted_distribution(c)) is not None)
    check(case, wanted, rows=24)


def test_top_p_may_need_more_than_the_first_look() -> None:
    # A flat distribution: 95 % of 4096 tokens are far more than are looked at first.
    case = Case(vocabulary=4096, logits_seed=3, top_p=0.95, temperature=50.0)
    check(case, wanted_distribution(case), rows=200)


@QUICK
@given(cases(do_sample=False))
def test_greedy_takes_the_best_of_what_transformers_leaves(case: Case) -> None:
    scores = processed_by_transformers(case)
    assume(np.isfinite(scores).any())
    tokens, logprobs = BatchSampler([case.row(0)]).sample(case.logits[None].copy())
    assert tokens.tolist() == [int(scores.argmax())]
    assert logprobs is None


@QUICK
@given(cases(do_sample=None))
def test_logprobs_are_the_models_own(case: Case) -> None:
    assume(np.isfinite(processed_by_transformers(case)).any())
    rows = [case.row(seed, wants_logprob=True) for seed in range(5)]
    tokens, logprobs = BatchSampler(rows).sample(np.tile(case.logits, (5, 1)))
    raw = torch.log_softmax(torch.from_numpy(case.logits).double(), dim=0).numpy()
    assert logprobs is not None
    np.testing.assert_allclose(logprobs, raw[tokens], atol=2e-5, rtol=1e-6)


@QUICK
@given(cases(do_sample=None))
def test_the_likeliest_are_those_of_the_model_itself(case: Case) -> None:
    assume(np.isfinite(processed_by_transformers(case)).any())
    case = replace(case, top_logprobs=case.top_logprobs or 3)
    rows = [case.row(seed, wants_logprob=True) for seed in range(5)]
    logits = np.tile(case.logits, (5, 1))
    sampler = BatchSampler(rows)
    tops = sampler.likeliest(logits)
    tokens, logprobs = sampler.sample(logits)
    raw = torch.log_softmax(torch.from_numpy(case.logits).double(), dim=0).numpy()
    expected = np.lexsort((np.arange(len(raw)), -case.logits))[: case.top_logprobs].tolist()
    assert logprobs is not None
    for top, token, logprob in zip(tops, tokens.tolist(), logprobs.tolist(), strict=True):
        assert [one.id for one in top] == expected
        np.testing.assert_allclose([one.logprob for one in top], raw[expected], atol=2e-5)
        # A token that is among them has one log-probability, not two that nearly agree.
        assert [one.logprob for one in top if one.id == token] in ([], [logprob])


def test_the_order_of_the_filters_is_that_of_transformers() -> None:
    case = Case(vocabulary=9, temperature=2.0, top_k=5, top_p=0.9, min_p=0.1, typical_p=0.9)
    assert [type(p).__name__ for p in processors_of_transformers(case)] == [
        "TemperatureLogitsWarper",
        "TopKLogitsWarper",
        "TopPLogitsWarper",
        "MinPLogitsWarper",
        "TypicalLogitsWarper",
    ]


@QUICK
@given(st.data())
def test_a_row_does_not_depend_on_the_others(data: st.DataObject) -> None:
    first = data.draw(cases(do_sample=None))
    batch = [first]
    for _ in range(data.draw(st.integers(1, 5))):
        other = data.draw(cases(do_sample=None))
        # One vocabulary; everything else differs.
        clip = first.vocabulary - 1
        batch.append(
            replace(
                other,
                vocabulary=first.vocabulary,
                history=tuple(min(t, clip) for t in other.history),
                eos=tuple({min(t, clip) for t in other.eos}),
                bias=tuple({min(t, clip): value for t, value in other.bias}.items()),
            )
        )
    for case in batch:
        assume(np.isfinite(processed_by_transformers(replace(case, do_sample=False))).any())
    wants = data.draw(st.lists(st.booleans(), min_size=len(batch), max_size=len(batch)))
    logits = np.stack([case.logits for case in batch])

    def rows() -> list[SamplingRow]:
        return [case.row(n, wants_logprob=wants[n]) for n, case in enumerate(batch)]

    sampler = BatchSampler(rows())
    tops = sampler.likeliest(logits)
    together, logprobs = sampler.sample(logits.copy())
    turned, _ = BatchSampler(rows()[::-1]).sample(logits[::-1].copy())
    assert turned[::-1].tolist() == together.tolist()
    for n, row in enumerate(rows()):
        own = BatchSampler([row])
        assert own.likeliest(logits[n : n + 1]) == [tops[n]]
        token, logprob = own.sample(logits[n : n + 1].copy())
        assert token[0] == together[n]
        if wants[n]:
            assert logprob is not None
            assert logprobs is not None
            assert logprob[0] == logprobs[n]


def test_the_neighbours_top_k_changes_nothing() -> None:
    # The batch looks at as many candidates as its largest top-k needs.
    case = Case(vocabulary=50257, logits_seed=9, top_k=7, top_p=0.9, ties=True)
    expected = None
    for other in (1, 7, 40, 256, 0):
        rows = [case.row(seed) for seed in range(8)]
        rows += [replace(case, top_k=other, logits_seed=1).row(99)]
        tokens, _ = BatchSampler(rows).sample(np.tile(case.logits, (9, 1)))
        expected = tokens[:8].tolist() if expected is None else expected
        assert tokens[:8].tolist() == expected


def test_minimum_and_history_follow_the_growing_sequence() -> None:
    # One sampler serves many steps: what it noted when it was made must not go stale.
    logits = np.zeros((1, 8), dtype=np.float32)
    logits[0, 0] = 9.0  # end-of-text is by far the best
    row = Case(
        vocabulary=8, do_sample=False, min_tokens=2, no_repeat_ngram_size=1, history=(5,)
    ).row(0)
    sampler = BatchSampler([row])
    made = []
    for _ in range(3):
        token = int(sampler.sample(logits.copy())[0][0])
        row.history.append(token)
        made.append(token)
    assert made == [1, 2, 0]
