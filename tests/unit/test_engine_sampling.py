"""Sampling's parts, each against the plainest thing that does the same."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt2serve.engine.defaults import resolve
from gpt2serve.engine.params import SamplingParams
from gpt2serve.engine.randomness import sequence_seed, uniform
from gpt2serve.engine.sampling import NO_TOKEN, BatchSampler
from gpt2serve.engine.sampling_row import SamplingRow, bias_of
from gpt2serve.engine.top_k import GROUP, top_candidates
from gpt2serve.package import GenerationDefaults

QUICK = settings(deadline=None, derandomize=True, max_examples=150)


def plain_row(**changes: object) -> SamplingRow:
    values: dict[str, object] = {
        "do_sample": True,
        "temperature": 1.0,
        "top_k": 0,
        "top_p": 1.0,
        "repetition_penalty": 1.0,
        "no_repeat_ngram_size": 0,
        "min_tokens": 0,
        "seed": 3,
        "eos_token_ids": (0,),
        "wants_logprob": False,
        "history": [1],
    }
    return SamplingRow(**(values | changes))  # type: ignore[arg-type]


# -- the largest logits -----------------------------------------------------------------------


def by_sorting(row: npt.NDArray[np.float32], k: int) -> list[tuple[float, int]]:
    """The k largest and all that equal the last of them, best first, then by id."""
    pairs = sorted(zip((-row).tolist(), range(len(row)), strict=True))
    bound = pairs[min(k, len(row)) - 1][0]
    return [(-value, token) for value, token in pairs if value <= bound]


@QUICK
@given(
    rows=st.integers(1, 4),
    # From 24 on, the bound for the smallest k is looked for among maxima of maxima.
    groups=st.one_of(st.integers(0, 9), st.sampled_from([24, 33, 70, 145])),
    rest=st.integers(-1, 3),
    k=st.sampled_from([1, 2, 3, 7, 8, 9, 31, 32, 33, 64, 5000]),
    kind=st.sampled_from(["normal", "ties", "constant", "mostly banned", "rising", "falling"]),
    seed=st.integers(0, 1000),
)
def test_candidates_are_what_sorting_finds(
    rows: int, groups: int, rest: int, k: int, kind: str, seed: int
) -> None:
    vocabulary = max(1, groups * GROUP + rest)
    random = np.random.default_rng(seed)
    logits = random.normal(size=(rows, vocabulary)).astype(np.float32) * 3
    if kind == "ties":
        logits = np.round(logits)
    elif kind in ("rising", "falling"):
        # The best are the last ids, which end-of-text is among, or the first ones.
        logits = np.sort(logits, axis=1)[:, :: 1 if kind == "rising" else -1].copy()
    elif kind == "constant":
        logits[:] = -1.5
    elif kind == "mostly banned":
        logits[random.random(size=logits.shape) < 0.9] = -np.inf
    values, ids = top_candidates(logits, k)
    for n in range(rows):
        wanted = by_sorting(logits[n], k)
        got = list(zip(values[n].tolist(), ids[n].tolist(), strict=True))
        # More than the k largest may come back, never less, and in order.
        assert got[: len(wanted)] == wanted
        finite = [pair for pair in got if pair[0] > -np.inf]
        assert finite == sorted(finite, key=lambda pair: (-pair[0], pair[1]))
        assert len({token for _, token in finite}) == len(finite)
        assert all(logits[n, token] == value for value, token in finite)


def test_candidates_of_one_row_do_not_depend_on_the_others() -> None:
    random = np.random.default_rng(0)
    logits = random.normal(size=(5, 50257)).astype(np.float32)
    values, ids = top_candidates(logits, 50)
    for n in range(5):
        own_values, own_ids = top_candidates(logits[n : n + 1], 50)
        assert own_values[0, :50].tolist() == values[n, :50].tolist()
        assert own_ids[0, :50].tolist() == ids[n, :50].tolist()


# -- nobody's values hurt a neighbour ---------------------------------------------------------

EXTREMES = [
    {"temperature": 5e-324},
    {"temperature": 1e-310, "top_k": 0},
    {"temperature": 1e-310, "top_k": 0, "top_p": 0.5},
    {"temperature": 1e-310, "top_k": 300},
    {"temperature": 1e308},
    {"temperature": 1e308, "top_k": 0},
    {"top_p": 5e-324},
    {"top_p": 5e-324, "top_k": 0},
    {"top_k": 10**30},
    {"repetition_penalty": 1e308},
    {"repetition_penalty": 5e-324},
    {"repetition_penalty": 1e-38},
    {"no_repeat_ngram_size": 10**30},
    {"seed": 2**63 - 1},
    {"min_p": 5e-324, "top_k": 0},
    {"min_p": 1.0},
    {"typical_p": 5e-324},
    {"typical_p": 1 - 2**-53, "top_k": 0},
    {"typical_p": 0.5, "temperature": 1e-310},
    {"typical_p": 0.5, "temperature": 1e308, "top_k": 0, "min_p": 1.0, "top_p": 0.5},
    {"presence_penalty": 2.0, "frequency_penalty": -2.0},
    {"logit_bias": dict.fromkeys(range(400), 100.0)},
    {"logit_bias": dict.fromkeys(range(399), -100.0)},
]


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("values", EXTREMES, ids=str)
def test_no_accepted_value_fails_the_batch(values: dict[str, float], sign: int) -> None:
    # A failing step ends every request in its batch, so one user's odd value must not fail it.
    params = resolve(
        SamplingParams(do_sample=True, max_new_tokens=4, **values),  # type: ignore[arg-type]
        GenerationDefaults(),
        prompt_tokens=2,
        prefix_tokens=0,
        context_length=64,
        vocab_size=400,
        max_sequences=4,
    )
    odd = plain_row(
        temperature=params.temperature,
        top_k=params.top_k,
        top_p=params.top_p,
        repetition_penalty=params.repetition_penalty,
        no_repeat_ngram_size=params.no_repeat_ngram_size,
        seed=params.seed,
        history=[1, 2],
        min_p=params.min_p,
        typical_p=params.typical_p,
        presence_penalty=params.presence_penalty,
        frequency_penalty=params.frequency_penalty,
        bias=bias_of(params.logit_bias),
    )
    random = np.random.default_rng(1)
    logits = (np.abs(random.normal(size=(2, 400)) * 9 + 30) * sign).astype(np.float32)
    logits[0, 2] = 0.0
    neighbour = plain_row(top_k=50)
    alone, _ = BatchSampler([neighbour]).sample(logits[1:].copy())
    with np.errstate(all="ignore"):
        tokens, _ = BatchSampler([odd, neighbour]).sample(logits.copy())
    assert tokens[1] == alone[0]
    assert 0 <= tokens[0] < 400


@pytest.mark.parametrize("nothing", [np.nan, -np.inf])
@pytest.mark.parametrize("last", [{}, {"min_p": 0.1}, {"typical_p": 0.9}], ids=str)
@pytest.mark.parametrize("top_p", [0.5, 1.0])
@pytest.mark.parametrize("top_k", [0, 5, 300])
@pytest.mark.parametrize("do_sample", [True, False])
def test_a_row_without_a_possible_token_gets_none_and_hurts_no_other(
    top_k: int, do_sample: bool, top_p: float, last: dict[str, float], nothing: float
) -> None:
    logits = np.random.default_rng(0).normal(size=(3, 500)).astype(np.float32)
    rows = [plain_row(top_k=top_k, do_sample=do_sample, top_p=top_p, **last) for _ in range(3)]
    expected, _ = BatchSampler(rows).sample(logits.copy())
    logits[1] = nothing
    tokens, _ = BatchSampler(rows).sample(logits)
    assert tokens.tolist() == [expected[0], NO_TOKEN, expected[2]]


@pytest.mark.parametrize("temperature", [1.0, 1e30])
def test_a_bias_of_minus_100_bans_whatever_the_temperature(temperature: float) -> None:
    logits = np.zeros((64, 5), dtype=np.float32)
    logits[:, 2] = 1000.0
    bans = bias_of({1: -100, 2: -100.0, 3: -99.9})
    rows = [plain_row(seed=n, temperature=temperature, bias=bans) for n in range(64)]
    tokens, _ = BatchSampler(rows).sample(logits)
    assert set(tokens.tolist()) == ({0, 4} if temperature == 1.0 else {0, 3, 4})


def test_a_row_that_bans_every_token_gets_none() -> None:
    rows = [plain_row(bias=bias_of(dict.fromkeys(range(5), -100.0))), plain_row()]
    tokens, _ = BatchSampler(rows).sample(np.zeros((2, 5), dtype=np.float32))
    assert tokens[0] == NO_TOKEN
    assert tokens[1] >= 0


# -- random numbers ---------------------------------------------------------------------------


GOLDEN_NUMBERS = [
    0.6524484863740322,
    0.7012121095215252,
    0.36818951565166946,
    0.7962566426148134,
    0.32433425425915174,
]
GOLDEN_SEEDS = [7, 717299724304143, 2300596357949707, 8125664155929664]
GOLDEN_LAST_SEED = 9003776642903188


def numbers(seeds: list[int], positions: list[int]) -> list[float]:
    drawn: list[float] = uniform(
        np.array(seeds, dtype=np.uint64), np.array(positions, dtype=np.uint64)
    ).tolist()
    return drawn


def test_golden_numbers() -> None:
    # A change here changes the text that every seed has given so far.
    assert numbers([0, 0, 1, 7, 2**63 - 1], [0, 1, 0, 59, 1023]) == GOLDEN_NUMBERS
    assert [sequence_seed(7, n) for n in range(4)] == GOLDEN_SEEDS
    assert sequence_seed(2**63 - 1, 31) == GOLDEN_LAST_SEED


def splitmix(seed: int, count: int) -> list[int]:
    """SplitMix64 as its authors wrote it, in plain integers."""
    mask = 2**64 - 1
    made = []
    for _ in range(count):
        seed = (seed + 0x9E3779B97F4A7C15) & mask
        z = ((seed ^ (seed >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        made.append(z ^ (z >> 31))
    return made


@QUICK
@given(st.integers(0, 2**63 - 1))
def test_numbers_are_those_of_splitmix(seed: int) -> None:
    # The seed's own first output starts its stream.
    stream = splitmix(splitmix(seed, 1)[0], 5)
    assert numbers([seed] * 5, list(range(5))) == [
        bits / 2**53 for bits in (s >> 11 for s in stream)
    ]


@QUICK
@given(st.lists(st.tuples(st.integers(0, 2**63 - 1), st.integers(0, 1023)), min_size=1))
def test_a_number_depends_on_its_key_alone(keys: list[tuple[int, int]]) -> None:
    together = numbers([seed for seed, _ in keys], [at for _, at in keys])
    assert together == [numbers([seed], [at])[0] for seed, at in keys]
    assert all(0 <= number < 1 for number in together)


@pytest.mark.parametrize("across", ["seeds", "positions", "sequences"])
def test_numbers_are_spread_evenly(across: str) -> None:
    count = 40_000
    many = np.arange(count, dtype=np.uint64)
    fixed = np.full(count, 5, dtype=np.uint64)
    if across == "seeds":
        drawn = uniform(many, fixed)
    elif across == "positions":
        drawn = uniform(fixed, many)
    else:
        seeds = np.array([sequence_seed(5, n) for n in range(4000)], dtype=np.uint64)
        drawn = uniform(np.repeat(seeds, 10), np.tile(many[:10], 4000))
    tall = np.bincount((drawn * 100).astype(int), minlength=100)
    # Chi-squared with 99 degrees of freedom is between 60 and 150 but for one time in 2000.
    chi = float(((tall - count / 100) ** 2 / (count / 100)).sum())
    assert 60 < chi < 150
    neighbours = np.corrcoef(drawn[:-1], drawn[1:])[0, 1]
    assert abs(neighbours) < 4 / count**0.5


@QUICK
@given(st.integers(0, 2**63 - 1))
def test_every_sequence_has_a_seed_of_its_own(seed: int) -> None:
    seeds = [sequence_seed(seed, n) for n in range(64)]
    assert seeds[0] == seed
    assert len(set(seeds)) == 64
    # They go through JSON readers that take numbers for doubles.
    assert all(0 <= other < 2**53 for other in seeds[1:])
