"""What a model generates with when a request names only a prompt.

The same as `transformers.pipeline("text-generation", model)` of 4.57 takes: in rising order of
precedence transformers' defaults, the pipeline's own, `generation_config.json` (or, without one,
generation values in `config.json`), and `task_specific_params["text-generation"]`. A test holds
`generation_defaults` to a real pipeline.

Two differences are meant; both are slips of the pipeline in which the model's own word is lost.

- The pipeline falls back to 256 new tokens, and lets go of that for a `max_length` from
  `generation_config.json`, but forgets to for one from `task_specific_params`, where
  huggingtweets models have it: they would run on past the 160 tokens that they ask for.
- A task-specific value that happens to equal transformers' default (temperature 1.0) gives way
  to `generation_config.json`, though any other would not.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpt2export.config import ModelConfig, read_json
from gpt2export.errors import CheckpointError
from gpt2serve.package import GenerationDefaults

if TYPE_CHECKING:
    from transformers import GenerationConfig

GENERATION_FILE = "generation_config.json"
TASK = "text-generation"

#: TextGenerationPipeline._default_generation_config of transformers 4.57.
PIPELINE_DEFAULTS: dict[str, Any] = {"max_new_tokens": 256, "do_sample": True, "temperature": 0.7}

#: GenerationConfig's own max_length, which means that nobody has set one.
UNSET_MAX_LENGTH = 20

_FIELDS = (
    "do_sample",
    "temperature",
    "top_k",
    "top_p",
    "repetition_penalty",
    "no_repeat_ngram_size",
    "num_return_sequences",
    "max_length",
    "max_new_tokens",
    "min_length",
    "min_new_tokens",
)


def model_generation_config(folder: Path, config: ModelConfig) -> GenerationConfig:
    """What `from_pretrained` would set as the model's `generation_config`."""
    from transformers import GenerationConfig

    if not (folder / GENERATION_FILE).is_file():
        return GenerationConfig.from_model_config(config.hf)
    try:
        return GenerationConfig.from_dict(read_json(folder / GENERATION_FILE))
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{folder / GENERATION_FILE}: {error}") from error


def generation_defaults(
    own: Mapping[str, Any], task: Mapping[str, Any], prefix: str, prefix_tokens: int
) -> GenerationDefaults:
    """`own` are the model's generation values, `task` its task-specific ones."""
    values = _merged(own, task)
    min_length = int(values.get("min_length") or 0)
    known = {field: values[field] for field in _FIELDS if values.get(field) is not None}
    # The pipeline adds the prefix to a default max_length, but not to a default min_length:
    # there the prefix counts as text. The manifest's lengths are both without the prefix.
    known["min_length"] = max(min_length - prefix_tokens, 0)
    return _checked(known, prefix)


def task_params(config: ModelConfig) -> dict[str, Any]:
    """`task_specific_params["text-generation"]`, or nothing."""
    tasks = getattr(config.hf, "task_specific_params", None)
    params = tasks.get(TASK) if isinstance(tasks, dict) else None
    return dict(params) if isinstance(params, dict) else {}


def prefix_of(config: ModelConfig) -> str:
    prefix = task_params(config).get("prefix", getattr(config.hf, "prefix", None))
    return prefix if isinstance(prefix, str) else ""


def _merged(own: Mapping[str, Any], task: Mapping[str, Any]) -> dict[str, Any]:
    from transformers import GenerationConfig

    unset = GenerationConfig()
    values = {field: getattr(unset, field) for field in _FIELDS} | PIPELINE_DEFAULTS
    for field in _FIELDS:
        # As in transformers, a value equal to the global default counts as not set, and the
        # pipeline's own value stands before the model's wherever it has one that is no default.
        is_set = own.get(field) != getattr(unset, field)
        if is_set and values[field] == getattr(unset, field):
            values[field] = own[field]
    if values["temperature"] == 0.0:
        values["do_sample"] = False
    values |= {field: task[field] for field in _FIELDS if field in task}
    if task.get("max_new_tokens") is None and values["max_length"] != UNSET_MAX_LENGTH:
        if values["max_new_tokens"] == PIPELINE_DEFAULTS["max_new_tokens"]:
            values["max_new_tokens"] = None
    elif values["max_new_tokens"] is not None:
        values["max_length"] = None
    return values


def _checked(values: Mapping[str, Any], prefix: str) -> GenerationDefaults:
    import msgspec

    try:
        return msgspec.convert(dict(values) | {"prefix": prefix}, GenerationDefaults, strict=False)
    except msgspec.ValidationError as error:
        raise CheckpointError(f"The model's generation defaults are not valid: {error}.") from error
