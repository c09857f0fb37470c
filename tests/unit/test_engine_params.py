"""What a request may ask for: every field wrong in turn, lengths as transformers means them."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from gpt2serve.engine.defaults import resolve
from gpt2serve.engine.params import MAX_SEED, ResolvedParams, SamplingParams
from gpt2serve.errors import InvalidRequest
from gpt2serve.package import GenerationDefaults

INFINITY, NAN = float("inf"), float("nan")

WRONG: dict[str, list[Any]] = {
    "num_return_sequences": [0, -1, 9, True, 1.0, "1"],
    "max_new_tokens": [0, -1, 55, True, 2.5, "5"],
    "min_new_tokens": [-1, 55, True, 1.5, "5", False, ""],
    "max_length": [0, -1, 10, 65, True, 2.5, "5"],
    "min_length": [-1, True, 1.5, "5", False, ""],
    "do_sample": [1, 0, "true"],
    "temperature": [0, 0.0, -1.0, INFINITY, NAN, True, "1"],
    "top_k": [-1, True, 5.0, "5"],
    "top_p": [0, 0.0, -0.1, 1.0001, NAN, INFINITY, True, "0.5"],
    "repetition_penalty": [0, -1.0, INFINITY, NAN, True, "1"],
    "no_repeat_ngram_size": [-1, True, 2.0, "2"],
    "stop": [None, 5, ("",), ("a" * 257,), ("a",) * 17, (1,), ["a", b"b"], {"a": 1}],
    "seed": [-1, 2**63, True, 1.0, "1"],
    "return_full_text": [1, "yes", None],
    "details": [1, "yes", None],
    "min_p": [-0.1, 1.1, NAN, INFINITY, True, "0.5"],
    "typical_p": [0, 0.0, -0.1, 1.0001, NAN, INFINITY, True, "0.5"],
    "presence_penalty": [-2.1, 2.1, NAN, INFINITY, True, "1"],
    "frequency_penalty": [-2.1, 2.1, NAN, -INFINITY, True, "1"],
    "logit_bias": [
        {29: 1.0},
        {-1: 1.0},
        {True: 1.0},
        {1.0: 1.0},
        {"5": 1.0},
        {5: 100.1},
        {5: -100.1},
        {5: NAN},
        {5: 10**400},
        {5: None},
        {5: True},
        [5],
        "5",
    ],
    "ignore_eos": [1, "yes", None],
    "max_time": [0, 0.0, -1.0, INFINITY, NAN, 10**400, True, "1"],
    "top_logprobs": [-1, 21, True, 1.0, "1", None],
    "prompt_logprobs": [1, "yes", None],
    "truncate": [0, -1, True, 1.0, "1"],
}


def settle(params: SamplingParams, **changes: Any) -> ResolvedParams:
    """`resolve` for ten tokens of prompt in a context of 64."""
    defaults = changes.pop("defaults", GenerationDefaults(do_sample=True))
    values: dict[str, Any] = {
        "prompt_tokens": 10,
        "prefix_tokens": 0,
        "context_length": 64,
        "vocab_size": 29,
        "max_sequences": 8,
    }
    return resolve(params, defaults, **(values | changes))


def test_every_field_is_tried() -> None:
    assert set(WRONG) == set(SamplingParams.__struct_fields__)


@pytest.mark.parametrize(("field", "value"), [(f, v) for f, vs in WRONG.items() for v in vs])
def test_a_wrong_value_is_refused_by_name(field: str, value: Any) -> None:
    with pytest.raises(InvalidRequest) as caught:
        settle(SamplingParams(**{field: value}))
    assert caught.value.field == field
    assert str(caught.value).startswith(f"{field}: ")


RIGHT: dict[str, list[Any]] = {
    "num_return_sequences": [1, 8],
    "max_new_tokens": [1, 54],
    "min_new_tokens": [0, 54],
    "max_length": [11, 64],
    "min_length": [0, 5, 10_000],
    "do_sample": [True, False],
    "temperature": [0.01, 1, 100.0],
    "top_k": [0, 1, 10**6],
    "top_p": [1, 1e-6, 0.5],
    "repetition_penalty": [0.1, 1, 5.0],
    "no_repeat_ngram_size": [0, 1, 10**6],
    "stop": [(), "x", ["a", "b"], ("a" * 256,), ("a",) * 16],
    "seed": [0, MAX_SEED],
    "return_full_text": [True, False],
    "details": [True, False],
    "min_p": [0, 1, 0.05],
    "typical_p": [1e-6, 1, 0.9],
    "presence_penalty": [-2, 0, 2.0],
    "frequency_penalty": [-2.0, 0, 2],
    "logit_bias": [{}, {0: -100, 28: 100.0}],
    "ignore_eos": [True, False],
    "max_time": [1e-6, 1, 1e9],
    "top_logprobs": [0, 20],
    "prompt_logprobs": [True, False],
    "truncate": [1, 10, 10**6],
}


@pytest.mark.parametrize(("field", "value"), [(f, v) for f, vs in RIGHT.items() for v in vs])
def test_a_value_at_the_border_is_accepted(field: str, value: Any) -> None:
    settle(SamplingParams(**{field: value}))


@pytest.mark.parametrize(
    ("field", "resolved_field", "default", "other"),
    [
        ("num_return_sequences", "sequences", 3, 4),
        ("do_sample", "do_sample", True, False),
        ("temperature", "temperature", 0.7, 1.5),
        ("top_k", "top_k", 7, 0),
        ("top_p", "top_p", 0.9, 0.5),
        ("repetition_penalty", "repetition_penalty", 1.3, 1.1),
        ("no_repeat_ngram_size", "no_repeat_ngram_size", 3, 0),
        ("max_new_tokens", "max_tokens", 9, 11),
        ("min_new_tokens", "min_tokens", 4, 0),
    ],
)
def test_a_field_left_out_takes_the_models_default(
    field: str, resolved_field: str, default: Any, other: Any
) -> None:
    defaults = GenerationDefaults(**{"do_sample": True, field: default})
    left_out = settle(SamplingParams(), defaults=defaults)
    assert getattr(left_out, resolved_field) == default
    given_value = settle(SamplingParams(**{field: other}), defaults=defaults)
    assert getattr(given_value, resolved_field) == other


def test_wrong_defaults_of_a_model_are_refused_by_name_too() -> None:
    with pytest.raises(InvalidRequest) as caught:
        settle(SamplingParams(), defaults=GenerationDefaults(temperature=0.0))
    assert caught.value.field == "temperature"


def test_equal_sequences_are_refused() -> None:
    with pytest.raises(InvalidRequest) as caught:
        settle(SamplingParams(do_sample=False, num_return_sequences=2))
    assert caught.value.field == "num_return_sequences"


def test_seeds_are_drawn_within_what_json_can_carry() -> None:
    seeds = {settle(SamplingParams()).seed for _ in range(20)}
    assert len(seeds) == 20
    assert all(0 <= seed < 2**53 for seed in seeds)
    assert settle(SamplingParams(seed=5)).seed == 5


def test_stop_may_be_one_string() -> None:
    assert settle(SamplingParams(stop="END")).stop == ("END",)  # type: ignore[arg-type]
    assert settle(SamplingParams(stop=["a", "b"])).stop == ("a", "b")  # type: ignore[arg-type]


# -- lengths ----------------------------------------------------------------------------------


def test_without_any_length_the_context_is_the_bound() -> None:
    params = settle(SamplingParams())
    assert (params.max_tokens, params.min_tokens) == (54, 0)


@pytest.mark.parametrize("prompt", [64, 65, 1000])
def test_a_prompt_that_fills_the_context_is_refused(prompt: int) -> None:
    with pytest.raises(InvalidRequest) as caught:
        settle(SamplingParams(max_new_tokens=1), prompt_tokens=prompt)
    assert caught.value.field == "prompt"
    assert settle(SamplingParams(), prompt_tokens=63).max_tokens == 1


def test_a_models_default_length_gives_way_to_the_context() -> None:
    defaults = GenerationDefaults(max_new_tokens=1000, do_sample=True)
    assert settle(SamplingParams(), defaults=defaults).max_tokens == 54
    defaults = GenerationDefaults(max_length=1000, do_sample=True)
    assert settle(SamplingParams(), defaults=defaults).max_tokens == 54


def test_a_prompt_beyond_the_models_default_length_is_the_prompts_fault() -> None:
    defaults = GenerationDefaults(max_length=10, do_sample=True)
    with pytest.raises(InvalidRequest) as caught:
        settle(SamplingParams(), defaults=defaults)
    assert caught.value.field == "prompt"
    # The prefix is not counted.
    assert settle(SamplingParams(), defaults=defaults, prefix_tokens=1).max_tokens == 1


def test_a_default_minimum_never_exceeds_what_may_be_generated() -> None:
    defaults = GenerationDefaults(min_length=50, do_sample=True)
    params = settle(SamplingParams(max_new_tokens=3), defaults=defaults)
    assert (params.min_tokens, params.max_tokens) == (3, 3)


def by_transformers(
    chosen: dict[str, int | None], prompt_tokens: int, prefix_tokens: int
) -> tuple[int, int]:
    """(max, min) generated tokens: the pipeline's treatment of the prefix, then `generate`'s."""
    transformers = pytest.importorskip("transformers")
    config = transformers.GenerationConfig()
    for name, value in chosen.items():
        if value is not None:
            setattr(config, name, value)
    if chosen["max_new_tokens"] is None:
        config.max_length += prefix_tokens
    if chosen["min_new_tokens"] is None and chosen["min_length"] is not None:
        config.min_length += prefix_tokens
    ready = transformers.GenerationMixin()._prepare_generated_length(
        generation_config=copy.copy(config),
        has_default_max_length=True and chosen["max_length"] is None,
        has_default_min_length=chosen["min_length"] is None,
        model_input_name="input_ids",
        input_ids_length=prompt_tokens,
        inputs_tensor=None,
    )
    return ready.max_length - prompt_tokens, max(ready.min_length - prompt_tokens, 0)


maybe = st.none() | st.integers(1, 60)


@settings(deadline=None, derandomize=True, max_examples=400)
@given(
    asked=st.fixed_dictionaries(
        dict.fromkeys(("max_new_tokens", "max_length", "min_new_tokens", "min_length"), maybe)
    ),
    model=st.fixed_dictionaries(
        dict.fromkeys(("max_new_tokens", "max_length", "min_new_tokens"), maybe)
        | {"min_length": st.integers(0, 60)}
    ),
    prompt_tokens=st.integers(1, 30),
    prefix_share=st.integers(0, 3),
)
def test_lengths_are_those_of_transformers(
    asked: dict[str, int | None], model: dict[str, Any], prompt_tokens: int, prefix_share: int
) -> None:
    # What a request asks for in one way wins over what the model's defaults say in another.
    # transformers would let the defaults win here, which no user can mean.
    chosen: dict[str, int | None] = {}
    for new, total in (("max_new_tokens", "max_length"), ("min_new_tokens", "min_length")):
        source = model if asked[new] is None and asked[total] is None else asked
        chosen |= {new: source[new], total: source[total]}
    assume(chosen["max_new_tokens"] is not None or chosen["max_length"] is not None)
    prefix_tokens = min(prefix_share, prompt_tokens)
    most, least = by_transformers(chosen, prompt_tokens, prefix_tokens)
    params = SamplingParams(do_sample=True, **asked)  # type: ignore[arg-type]
    numbers = {
        "prompt_tokens": prompt_tokens,
        "prefix_tokens": prefix_tokens,
        "context_length": 1000,
        "vocab_size": 29,
        "max_sequences": 1,
    }
    if most < 1 or (asked["min_new_tokens"] is not None and least > most):
        with pytest.raises(InvalidRequest):
            resolve(params, GenerationDefaults(**model), **numbers)
        return
    resolved = resolve(params, GenerationDefaults(**model), **numbers)
    assert (resolved.max_tokens, resolved.min_tokens) == (most, min(least, most))
