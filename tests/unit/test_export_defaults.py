"""Generation defaults, held to what a real text-generation pipeline hands to generate()."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import transformers
from transformers import GenerationConfig

from gpt2export.checkpoint import load_checkpoint
from gpt2serve.package import GenerationDefaults
from tests.export_fixtures import END, write_checkpoint

PROMPT = "My fellow citizens"

HUGGINGTWEETS = {
    "do_sample": True,
    "min_length": 10,
    "max_length": 160,
    "temperature": 1.0,
    "top_p": 0.95,
    "prefix": END,
}

#: config.json's additions, then generation_config.json.
CASES: dict[str, tuple[dict[str, Any], dict[str, Any] | None]] = {
    "plain gpt2": (
        {"task_specific_params": {"text-generation": {"do_sample": True, "max_length": 50}}},
        None,
    ),
    "nothing": ({}, None),
    "huggingtweets": ({"task_specific_params": {"text-generation": HUGGINGTWEETS}}, None),
    "huggingtweets with a file": (
        {"task_specific_params": {"text-generation": HUGGINGTWEETS}},
        {"eos_token_id": 319, "top_k": 20, "repetition_penalty": 1.2},
    ),
    "a file": ({}, {"do_sample": True, "temperature": 1.3, "top_k": 7, "top_p": 0.8}),
    "a file with max_length": ({}, {"max_length": 33, "min_length": 5}),
    "a file with max_new_tokens": ({}, {"max_new_tokens": 9, "min_new_tokens": 2}),
    "a file that says greedy": ({}, {"do_sample": False, "no_repeat_ngram_size": 3}),
    "new tokens in the task": (
        {"task_specific_params": {"text-generation": {"max_new_tokens": 11, "do_sample": False}}},
        None,
    ),
    "both lengths in the task": (
        {
            "task_specific_params": {
                "text-generation": {
                    "max_new_tokens": 11,
                    "max_length": 40,
                    "num_return_sequences": 3,
                }
            }
        },
        None,
    ),
    "prefix alone": ({"task_specific_params": {"text-generation": {"prefix": END + END}}}, None),
    "prefix in the config": ({"prefix": END}, {"max_length": 40, "min_length": 1}),
    "another task": ({"task_specific_params": {"summarization": {"max_length": 5}}}, None),
    "values in the config": ({"top_k": 9, "max_length": 44, "repetition_penalty": 1.1}, None),
}


class Seen(Exception):
    """Carries what generate() would work with."""


def pipeline_values(folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[GenerationConfig, int]:
    """The config that the pipeline's generate() ends up with, and the prompt's token count."""
    generator = transformers.pipeline("text-generation", model=str(folder), device=-1)

    def stop(**values: Any) -> None:
        raise Seen(prepare(**values), values["input_ids_length"])

    prepare = generator.model._prepare_generated_length
    monkeypatch.setattr(generator.model, "_prepare_generated_length", stop)
    with pytest.raises(Seen) as caught:
        generator(PROMPT)
    return caught.value.args


@pytest.mark.filterwarnings("ignore::UserWarning:transformers")
@pytest.mark.parametrize("name", CASES)
def test_defaults_are_the_pipelines(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes, file = CASES[name]
    folder = write_checkpoint(tmp_path / "tiny", **changes)
    if file is not None:
        (folder / "generation_config.json").write_text(json.dumps(file))
    theirs, prompt = pipeline_values(folder, monkeypatch)
    checkpoint = load_checkpoint(folder)
    ours = checkpoint.generation_defaults
    for field in (
        "do_sample",
        "temperature",
        "top_k",
        "top_p",
        "repetition_penalty",
        "no_repeat_ngram_size",
        "num_return_sequences",
    ):
        assert getattr(ours, field) == getattr(theirs, field), field
    prefix = len(checkpoint.tokenizer.encode(ours.prefix).ids)
    assert prompt == prefix + len(checkpoint.tokenizer.encode(PROMPT).ids)
    assert shortest(ours, prompt, prefix) == max(theirs.min_length, prefix)
    if not forgotten_length(changes):
        assert longest(ours, prompt, prefix) == theirs.max_length


def longest(defaults: GenerationDefaults, prompt: int, prefix: int) -> int:
    """In the pipeline's way of counting: prefix, prompt and new tokens."""
    if defaults.max_new_tokens is not None:
        return prompt + defaults.max_new_tokens
    assert defaults.max_length is not None
    return defaults.max_length + prefix


def shortest(defaults: GenerationDefaults, prompt: int, prefix: int) -> int:
    if defaults.min_new_tokens is not None:
        return prompt + defaults.min_new_tokens
    return defaults.min_length + prefix


def forgotten_length(changes: dict[str, Any]) -> bool:
    """Where the pipeline forgets to let go of its own 256: see `gpt2export.defaults`."""
    task = changes.get("task_specific_params", {}).get("text-generation", {})
    return "max_length" in task and "max_new_tokens" not in task


def test_the_models_own_length_counts(tmp_path: Path) -> None:
    changes = CASES["huggingtweets"][0]
    found = load_checkpoint(write_checkpoint(tmp_path / "tiny", **changes)).generation_defaults
    assert found == GenerationDefaults(
        do_sample=True, temperature=1.0, top_p=0.95, max_length=160, min_length=9, prefix=END
    )


def test_a_task_specific_value_wins_even_if_it_is_a_default(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "tiny", **CASES["huggingtweets"][0])
    file = {"do_sample": True, "temperature": 0.5, "top_p": 0.5, "top_k": 3}
    (folder / "generation_config.json").write_text(json.dumps(file))
    found = load_checkpoint(folder).generation_defaults
    assert (found.temperature, found.top_p, found.top_k) == (1.0, 0.95, 3)


def test_without_a_length_it_is_the_pipelines_256(tmp_path: Path) -> None:
    found = load_checkpoint(write_checkpoint(tmp_path / "tiny")).generation_defaults
    assert found == GenerationDefaults(do_sample=True, temperature=0.7, max_new_tokens=256)
