"""`config.json`: is this a plain GPT-2, and of what shape?"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpt2export.errors import CheckpointError, UnsupportedModel
from gpt2serve.package import Dimensions

if TYPE_CHECKING:
    from transformers import GPT2Config

ARCHITECTURE = "GPT2LMHeadModel"

#: Two names of the tanh approximation, which is onnxruntime's FastGelu.
ACTIVATIONS = ("gelu_new", "gelu_pytorch_tanh")

#: GroupQueryAttention takes head sizes that are a multiple of this.
HEAD_STEP = 8


@dataclass(frozen=True)
class ModelConfig:
    """`hf` is the parsed config with transformers' defaults filled in; `raw` is the file."""

    hf: GPT2Config
    raw: dict[str, Any]
    dimensions: Dimensions
    epsilon: float


def read_json(path: Path) -> dict[str, Any]:
    """Raises `CheckpointError` unless `path` holds a JSON object."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} is missing.") from error
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} is not readable JSON ({error}).") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} does not hold a JSON object.")
    return value


def load_config(folder: Path) -> ModelConfig:
    """Raises `CheckpointError`, or `UnsupportedModel` naming all that is not plain GPT-2."""
    from transformers import GPT2Config

    raw = read_json(folder / "config.json")
    _check_family(raw)
    try:
        hf = GPT2Config.from_dict(dict(raw))
        dimensions = _dimensions(hf)
        epsilon = float(hf.layer_norm_epsilon)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{folder / 'config.json'}: {error}") from error
    problems = _unsupported(hf)
    if problems:
        raise UnsupportedModel("Not a plain GPT-2: " + "; ".join(problems) + ".")
    return ModelConfig(hf, raw, dimensions, epsilon)


def _check_family(raw: dict[str, Any]) -> None:
    architectures = raw.get("architectures") or [ARCHITECTURE]
    if raw.get("model_type", "gpt2") != "gpt2":
        raise UnsupportedModel(
            f"Not a plain GPT-2: model_type is {raw['model_type']!r}, only 'gpt2' is supported."
        )
    if architectures != [ARCHITECTURE]:
        raise UnsupportedModel(
            f"Not a plain GPT-2: architectures is {architectures}, only ['{ARCHITECTURE}'] is "
            "supported."
        )


def _unsupported(hf: GPT2Config) -> list[str]:
    problems = []
    if hf.scale_attn_by_inverse_layer_idx:
        problems.append("scale_attn_by_inverse_layer_idx is set")
    if hf.add_cross_attention:
        problems.append("add_cross_attention is set")
    if not hf.scale_attn_weights:
        problems.append("scale_attn_weights is false")
    if hf.activation_function not in ACTIVATIONS:
        problems.append(
            f"activation_function is {hf.activation_function!r}, not one of "
            + ", ".join(ACTIVATIONS)
        )
    if getattr(hf, "quantization_config", None) is not None:
        problems.append("quantization_config is set: export the checkpoint it was made from")
    return problems


def _dimensions(hf: GPT2Config) -> Dimensions:
    sizes = {
        "vocab_size": hf.vocab_size,
        "n_positions": hf.n_positions,
        "n_layer": hf.n_layer,
        "n_head": hf.n_head,
        "n_embd": hf.n_embd,
        "n_inner": 4 * hf.n_embd if hf.n_inner is None else hf.n_inner,
    }
    wrong = [f"{key} is {size!r}" for key, size in sizes.items() if not _positive(size)]
    if wrong:
        raise CheckpointError("config.json: " + ", ".join(wrong) + "; sizes are positive integers.")
    if hf.n_embd % hf.n_head:
        raise UnsupportedModel(
            f"Not a plain GPT-2: n_embd ({hf.n_embd}) is not a multiple of n_head ({hf.n_head})."
        )
    head_size = hf.n_embd // hf.n_head
    if head_size % HEAD_STEP:
        raise UnsupportedModel(
            f"n_embd / n_head is {head_size}: onnxruntime's attention needs a multiple of "
            f"{HEAD_STEP}."
        )
    return Dimensions(
        vocab_size=hf.vocab_size,
        context_length=hf.n_positions,
        layers=hf.n_layer,
        heads=hf.n_head,
        head_size=head_size,
        inner_size=sizes["n_inner"],
    )


def _positive(size: Any) -> bool:
    return isinstance(size, int) and not isinstance(size, bool) and size > 0
