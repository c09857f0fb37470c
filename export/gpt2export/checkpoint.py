"""A checkpoint: a Hugging Face folder of a GPT-2, read and checked."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpt2export import defaults
from gpt2export.card import load_card
from gpt2export.config import ModelConfig, load_config
from gpt2export.errors import CheckpointError
from gpt2export.sources import check_folder
from gpt2export.tensors import load_tensors
from gpt2export.tokenizer import load_tokenizer, to_text
from gpt2serve.package import Dimensions, GenerationDefaults, ModelCard

if TYPE_CHECKING:
    import torch
    from tokenizers import Tokenizer


@dataclass(frozen=True)
class Checkpoint:
    """Everything that a package is made from.

    `tensors` are float32, named without `transformer.`, each of the shape that `dimensions`
    asks for. They may be mapped from the checkpoint's file: do not write to them.
    """

    folder: Path
    config: ModelConfig
    tensors: dict[str, torch.Tensor]
    tokenizer: Tokenizer
    tokenizer_text: str
    bos_token_id: int
    eos_token_ids: tuple[int, ...]
    generation_defaults: GenerationDefaults
    card: ModelCard

    @property
    def dimensions(self) -> Dimensions:
        return self.config.dimensions


def load_checkpoint(folder: Path) -> Checkpoint:
    """Raises `CheckpointError` or `UnsupportedModel`."""
    check_folder(folder)
    config = load_config(folder)
    tokenizer = load_tokenizer(folder, config.dimensions.vocab_size)
    generation = defaults.model_generation_config(folder, config)
    prefix = defaults.prefix_of(config)
    prefix_tokens = len(tokenizer.encode(prefix, add_special_tokens=False).ids)
    bos, eos = _special_ids(generation, config, folder)
    tied = bool(config.raw.get("tie_word_embeddings", True))
    return Checkpoint(
        folder=folder,
        config=config,
        tensors=load_tensors(folder, config.dimensions, tied=tied),
        tokenizer=tokenizer,
        tokenizer_text=to_text(tokenizer),
        bos_token_id=bos,
        eos_token_ids=eos,
        generation_defaults=defaults.generation_defaults(
            vars(generation), defaults.task_params(config), prefix, prefix_tokens
        ),
        card=load_card(folder),
    )


def _special_ids(generation: Any, config: ModelConfig, folder: Path) -> tuple[int, tuple[int, ...]]:
    """bos and eos, from the generation config or else from config.json.

    A model that names no bos begins an empty prompt with its eos. Ids outside the vocabulary are
    left out: GPT-2's own 50256 stays in the configs of models that were trained with a smaller
    one, and can never be generated.
    """
    size = config.dimensions.vocab_size
    bos, eos = generation.bos_token_id, generation.eos_token_id
    bos = config.hf.bos_token_id if bos is None else bos
    eos = config.hf.eos_token_id if eos is None else eos
    inside = tuple(number for number in _as_list(eos) if _is_id(number, size))
    if _is_id(bos, size):
        return bos, inside
    if not inside:
        raise CheckpointError(
            f"{folder}: neither bos_token_id ({bos}) nor eos_token_id ({eos}) is in the "
            f"vocabulary of {size}; set them in config.json."
        )
    return inside[0], inside


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _is_id(number: Any, vocab_size: int) -> bool:
    return isinstance(number, int) and 0 <= number < vocab_size
