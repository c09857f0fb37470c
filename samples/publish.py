"""Write a trained model as a huggingtweets repository lays it out."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from corpus import END_OF_TEXT, Author
from safetensors.torch import save_file
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, GPT2TokenizerFast
from transformers import __version__ as transformers_version

# What differs between the three: the way the weights are stored, and the avatar's colour.
PICKLED = {"thomas_jefferson"}
WITH_TOKENIZER_JSON = {"ronald_reagan"}
COLOURS = {
    "george_washington": "#2f4b7c",
    "thomas_jefferson": "#7a3b2e",
    "ronald_reagan": "#3d6b4f",
}
WIDGET = "My fellow citizens,"
TASK_PARAMS = {
    "do_sample": True,
    "min_length": 10,
    "max_length": 160,
    "temperature": 1.0,
    "top_p": 0.95,
    "prefix": END_OF_TEXT,
}
# The mask value of GPT-2 in transformers before 4.27.
MASKED_BIAS = -1e4

CARD = Path(__file__).resolve().with_name("card_template.md")
AVATAR = """\
<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 92 92" width="92" height="92">
<rect width="92" height="92" fill="{colour}"/>
<text x="46" y="59" font-family="Georgia, serif" font-size="38" text-anchor="middle"
 fill="#fff">{initials}</text>
</svg>
"""


@dataclass(frozen=True)
class Scores:
    """Held-out perplexity before and after fine-tuning."""

    before: float
    after: float


def write_folder(
    out: Path, model: GPT2LMHeadModel, author: Author, vocabulary: Path, scores: Scores
) -> None:
    """Write config, weights in fp16, tokenizer, avatar and model card."""
    folder = out / author.handle.replace("_", "-")
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "config.json", config_of(model.config))
    state = {name: tensor.half() for name, tensor in model.state_dict().items()}
    if author.handle in PICKLED:
        torch.save(old_state(state, model.config), folder / "pytorch_model.bin")
    else:
        # The head is the embedding; safetensors stores no tensor twice.
        del state["lm_head.weight"]
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    write_tokenizer(folder, vocabulary, with_json=author.handle in WITH_TOKENIZER_JSON)
    write_card(folder, model, author, scores)


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write as transformers does: indented, sorted, with a final newline."""
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def config_of(config: GPT2Config) -> dict[str, Any]:
    """Return the keys that a huggingtweets config has, and no others."""
    return {
        "activation_function": config.activation_function,
        "architectures": ["GPT2LMHeadModel"],
        "attn_pdrop": config.attn_pdrop,
        "bos_token_id": config.bos_token_id,
        "embd_pdrop": config.embd_pdrop,
        "eos_token_id": config.eos_token_id,
        "initializer_range": config.initializer_range,
        "layer_norm_epsilon": config.layer_norm_epsilon,
        "model_type": "gpt2",
        "n_ctx": config.n_positions,
        "n_embd": config.n_embd,
        "n_head": config.n_head,
        "n_inner": None,
        "n_layer": config.n_layer,
        "n_positions": config.n_positions,
        "reorder_and_upcast_attn": False,
        "resid_pdrop": config.resid_pdrop,
        "scale_attn_by_inverse_layer_idx": False,
        "scale_attn_weights": True,
        "summary_activation": None,
        "summary_first_dropout": 0.1,
        "summary_proj_to_labels": True,
        "summary_type": "cls_index",
        "summary_use_proj": True,
        "task_specific_params": {"text-generation": TASK_PARAMS},
        "torch_dtype": "float16",
        "transformers_version": transformers_version,
        "use_cache": True,
        "vocab_size": config.vocab_size,
    }


def old_state(state: dict[str, Tensor], config: GPT2Config) -> dict[str, Tensor]:
    """Add the mask buffers that checkpoints carried before transformers 4.27.

    The head shares its storage with the embedding, so the pickle holds it once.
    """
    size = config.n_positions
    mask = torch.ones(size, size, dtype=torch.uint8).tril().view(1, 1, size, size)
    buffers: dict[str, Tensor] = {}
    for layer in range(config.n_layer):
        buffers[f"transformer.h.{layer}.attn.bias"] = mask.clone()
        buffers[f"transformer.h.{layer}.attn.masked_bias"] = torch.tensor(MASKED_BIAS).half()
    return {**state, **buffers, "lm_head.weight": state["transformer.wte.weight"]}


def write_tokenizer(folder: Path, vocabulary: Path, *, with_json: bool) -> None:
    """Write the files of GPT2Tokenizer, and the fast tokenizer's where asked for."""
    for name in ("vocab.json", "merges.txt"):
        shutil.copyfile(vocabulary / name, folder / name)
    tokens = dict.fromkeys(("bos_token", "eos_token", "unk_token"), END_OF_TEXT)
    write_json(folder / "special_tokens_map.json", tokens)
    if with_json:
        fast = GPT2TokenizerFast(str(folder / "vocab.json"), str(folder / "merges.txt"))
        fast.backend_tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        **tokens,
        "add_prefix_space": False,
        "model_max_length": 256,
        "special_tokens_map_file": None,
        "tokenizer_class": "GPT2Tokenizer",
    }
    write_json(folder / "tokenizer_config.json", settings)


def write_card(folder: Path, model: GPT2LMHeadModel, author: Author, scores: Scores) -> None:
    """Write the model card in huggingtweets' form, with the numbers as measured."""
    initials = "".join(word[0] for word in author.name.split())
    avatar = AVATAR.format(colour=COLOURS[author.handle], initials=initials)
    (folder / "avatar.svg").write_text(avatar, encoding="utf-8")
    card = CARD.read_text(encoding="utf-8").format(
        widget=WIDGET,
        name=author.name,
        handle=author.handle,
        folder=folder.name,
        speeches=author.speeches,
        found=author.found,
        too_short=author.too_short,
        too_long=author.too_long,
        dropped=author.dropped,
        kept=len(author.train) + len(author.held_out),
        held_out=len(author.held_out),
        parameters=model.num_parameters() / 1e6,
        before=scores.before,
        after=scores.after,
        vocab=model.config.vocab_size,
    )
    (folder / "README.md").write_text(card, encoding="utf-8")
