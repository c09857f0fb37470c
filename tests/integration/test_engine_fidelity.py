"""The same words as transformers: `generate` on fp32 packages, the pipeline on the samples."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gpt2serve import Engine, SamplingParams
from tests.engine_driver import JEFFERSON, REAGAN, SAMPLES, WASHINGTON, open_engine

MODELS = (WASHINGTON, JEFFERSON, REAGAN)
PROMPTS = (
    "The people of our union",
    "America is",
    "Commerce , peace and honest friendship with all nations , we",
    "Caf\u00e9 \u2014 don't you think so? I 'm",
    "1801",
)

# transformers and torch warn about each other's and their own next versions.
pytestmark = pytest.mark.filterwarnings("default")


@pytest.fixture(scope="module")
def engine(sample_store: Path) -> Iterator[Engine]:
    # Small chunks, so that most prompts are read in several.
    with open_engine(sample_store, precision="fp32", prefill_chunk=8) as engine:
        yield engine


class Reference:
    """transformers' pipeline on a sample, on one thread as it is small.

    Of the pipeline's own defaults its 256 new tokens are taken away: they came long after
    the models that name a `max_length` as the samples do, and override it by a slip (see
    gpt2export/defaults.py).
    """

    def __init__(self, name: str) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import torch
            from transformers import pipeline
            from transformers.utils import logging

            logging.set_verbosity_error()
            torch.set_num_threads(1)
            folder = str(SAMPLES / name)
            self.pipeline = pipeline("text-generation", model=folder, dtype=torch.float32)
        self.pipeline.generation_config.max_new_tokens = None
        self.torch = torch
        self.model = self.pipeline.model
        self.tokenizer = self.pipeline.tokenizer

    def generate(self, prompt: str, **options: Any) -> list[int]:
        """New tokens of `model.generate` alone: no pipeline, no task parameters."""
        ids = self.tokenizer(prompt, return_tensors="pt")["input_ids"]
        eos = self.model.config.eos_token_id
        made = self.model.generate(
            ids, attention_mask=self.torch.ones_like(ids), pad_token_id=eos, **options
        )
        return made[0, ids.shape[1] :].tolist()


_references: dict[str, Reference] = {}


def reference(name: str) -> Reference:
    if name not in _references:
        _references[name] = Reference(name)
    return _references[name]


GREEDY_OPTIONS = (
    {},
    {"repetition_penalty": 1.3},
    {"repetition_penalty": 0.8, "no_repeat_ngram_size": 3},
    {"no_repeat_ngram_size": 2},
    {"no_repeat_ngram_size": 1},
    {"min_new_tokens": 25},
    {"repetition_penalty": 1.1, "no_repeat_ngram_size": 3, "min_new_tokens": 20},
)


@pytest.mark.parametrize(
    ("name", "options"),
    [(MODELS[n % 3], options) for n, options in enumerate(GREEDY_OPTIONS)],
    ids=str,
)
def test_greedy_tokens_equal_generate(engine: Engine, name: str, options: dict[str, Any]) -> None:
    transformer = reference(name)
    prefix = engine.describe(name).generation_defaults.prefix
    lengths = {"max_new_tokens": 30, "min_new_tokens": 0} | options
    for prompt in PROMPTS:
        expected = transformer.generate(prefix + prompt, do_sample=False, **lengths)
        params = SamplingParams(do_sample=False, details=True, **lengths)
        (got,) = engine.generate(name, prompt, params).generations
        assert got.details is not None
        assert [token.id for token in got.details] == expected, prompt
        assert got.tokens == len(expected)


@pytest.mark.parametrize(("minimum", "maximum"), [(5, 30), (40, 60), (0, 15)])
def test_total_lengths_equal_the_pipeline(engine: Engine, minimum: int, maximum: int) -> None:
    """`max_length` and `min_length` count the prompt; the pipeline adds the prefix to them."""
    transformer = reference(REAGAN)
    for prompt in PROMPTS[:2]:
        lengths = {"min_length": minimum, "max_length": maximum}
        expected = transformer.pipeline(prompt, do_sample=False, **lengths)[0]["generated_text"]
        (got,) = engine.generate(
            REAGAN, prompt, SamplingParams(do_sample=False, **lengths)
        ).generations
        assert got.text == expected


@pytest.mark.parametrize("name", MODELS)
def test_the_pipelines_own_defaults_are_reproduced(engine: Engine, name: str) -> None:
    """Prompt, prefix, lengths and the clean-up of spaces, with nothing said but "greedy"."""
    transformer = reference(name)
    for prompt in (PROMPTS[MODELS.index(name)], PROMPTS[3]):
        expected = transformer.pipeline(prompt, do_sample=False)[0]["generated_text"]
        (got,) = engine.generate(name, prompt, SamplingParams(do_sample=False)).generations
        assert got.text == expected
        only_new = transformer.pipeline(prompt, do_sample=False, return_full_text=False)
        (got,) = engine.generate(
            name, prompt, SamplingParams(do_sample=False, return_full_text=False)
        ).generations
        assert got.text == only_new[0]["generated_text"]


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(
    "asked",
    [
        {},
        {"max_new_tokens": 17},
        {"min_new_tokens": 9},
        {"max_length": 50},
        {"max_length": 50, "min_length": 20},
        {"temperature": 0.6, "top_k": 7},
        {"do_sample": False, "top_p": 0.4},
    ],
    ids=str,
)
def test_effective_values_equal_what_the_pipeline_gives_to_generate(
    engine: Engine, name: str, asked: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    transformer = reference(name)
    prompt = PROMPTS[0]
    ours = engine.prepare(name, prompt, SamplingParams(**asked)).params
    theirs = effective(transformer, prompt, asked, monkeypatch)
    assert ours.max_tokens == theirs["max_tokens"]
    assert ours.min_tokens == theirs["min_tokens"]
    for field in ("do_sample", "top_k", "top_p", "temperature", "repetition_penalty"):
        assert getattr(ours, field) == theirs[field], field
    assert ours.no_repeat_ngram_size == theirs["no_repeat_ngram_size"]
    assert ours.sequences == theirs["num_return_sequences"]


class _SeenEnough(Exception):
    pass


def effective(
    transformer: Reference, prompt: str, asked: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> dict[str, Any]:
    """What the pipeline's `generate` works with, caught where it has decided on everything."""
    seen: dict[str, Any] = {}
    model = transformer.pipeline.model

    def sample(input_ids: Any, **kwargs: Any) -> None:
        seen.update(kwargs["generation_config"].to_dict())
        seen["prompt"] = input_ids.shape[1]
        raise _SeenEnough

    monkeypatch.setattr(type(model), "_sample", lambda _, ids, **kwargs: sample(ids, **kwargs))
    with pytest.raises(_SeenEnough):
        transformer.pipeline(prompt, **asked)
    tokens = seen["prompt"]
    seen["max_tokens"] = seen["max_length"] - tokens
    # transformers keeps both bounds; the larger one holds.
    by_length = (seen["min_length"] or 0) - tokens
    seen["min_tokens"] = max(by_length, seen["min_new_tokens"] or 0, 0)
    return seen
