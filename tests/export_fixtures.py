"""Tiny random checkpoints for the exporter's tests. Plain functions, no fixtures."""

from __future__ import annotations

import functools
import json
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GPT2Config, GPT2LMHeadModel

from gpt2serve.package import Dimensions

END = "<|endoftext|>"
VOCAB_SIZE = 320

CONFIG: dict[str, Any] = {
    "model_type": "gpt2",
    "architectures": ["GPT2LMHeadModel"],
    "activation_function": "gelu_new",
    "vocab_size": VOCAB_SIZE,
    "n_positions": 48,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 2,
    "n_inner": None,
    "layer_norm_epsilon": 1e-5,
    "bos_token_id": VOCAB_SIZE - 1,
    "eos_token_id": VOCAB_SIZE - 1,
}

Tensors = dict[str, torch.Tensor]


def calibration_text() -> str:
    return (resources.files("gpt2export") / "data" / "calibration.txt").read_text("utf-8")


@functools.cache
def small_bpe() -> Tokenizer:
    """A byte-level BPE of `VOCAB_SIZE` tokens, the last of which ends a text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE - 1,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator([calibration_text()], trainer)
    return tokenizer


def write_tokenizer(folder: Path) -> None:
    """`vocab.json` and `merges.txt`, as of old."""
    small_bpe().model.save(str(folder))
    path = folder / "vocab.json"
    vocabulary = json.loads(path.read_text("utf-8")) | {END: VOCAB_SIZE - 1}
    path.write_text(json.dumps(vocabulary), "utf-8")
    names = dict.fromkeys(("bos_token", "eos_token", "unk_token"), END)
    (folder / "special_tokens_map.json").write_text(json.dumps(names), "utf-8")


def random_tensors(config: dict[str, Any], seed: int = 0) -> Tensors:
    """A state dict without the LM head, with `transformer.` in its names.

    Weights are larger than at the start of a training, so that logits differ clearly.
    """
    torch.manual_seed(seed)
    model = GPT2LMHeadModel(GPT2Config(**config, initializer_range=0.15))
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for name in state:
        if name.endswith(".bias") or ".ln_" in name:
            state[name] = state[name] + 0.1 * torch.randn_like(state[name])
    del state["lm_head.weight"]
    return state


def write_checkpoint(
    folder: Path, *, seed: int = 0, tensors: Tensors | None = None, **changes: Any
) -> Path:
    """A whole checkpoint; `changes` go into its config."""
    folder.mkdir(parents=True, exist_ok=True)
    config = CONFIG | changes
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    write_tokenizer(folder)
    if tensors is None:
        known = {key: value for key, value in config.items() if key != "architectures"}
        tensors = random_tensors(known, seed)
    save_file(
        {name: tensor.contiguous() for name, tensor in tensors.items()},
        folder / "model.safetensors",
        metadata={"format": "pt"},
    )
    return folder


def dimensions(**changes: int) -> Dimensions:
    sizes = {
        "vocab_size": 97,
        "context_length": 32,
        "layers": 2,
        "heads": 3,
        "head_size": 16,
        "inner_size": 192,
    }
    return Dimensions(**(sizes | changes))
