"""The weights of a checkpoint: both file formats, checked against the config's shape."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from gpt2export.config import read_json
from gpt2export.errors import CheckpointError, UnsupportedModel
from gpt2export.layout import LINEARS, linear_shape
from gpt2serve.package import Dimensions

if TYPE_CHECKING:
    import torch

#: In order of preference. An index names the files of a sharded checkpoint.
WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)

#: Causal masks that old versions of transformers saved; they are no parameters.
_BUFFER = re.compile(r"h\.\d+\.attn\.(bias|masked_bias)")

_PREFIX = "transformer."
_HEAD = "lm_head.weight"


def expected_shapes(dimensions: Dimensions) -> dict[str, tuple[int, ...]]:
    hidden = dimensions.hidden_size
    shapes: dict[str, tuple[int, ...]] = {
        "wte.weight": (dimensions.vocab_size, hidden),
        "wpe.weight": (dimensions.context_length, hidden),
    }
    norms = ["ln_f"]
    for layer in range(dimensions.layers):
        norms += [f"h.{layer}.ln_1", f"h.{layer}.ln_2"]
        for linear in LINEARS:
            shape = linear_shape(dimensions, linear)
            shapes[f"h.{layer}.{linear}.weight"] = shape
            shapes[f"h.{layer}.{linear}.bias"] = shape[1:]
    for norm in norms:
        shapes[f"{norm}.weight"] = shapes[f"{norm}.bias"] = (hidden,)
    return shapes


def weight_files(folder: Path) -> list[Path]:
    """The files that hold the weights, index first. Raises `CheckpointError` if there are none."""
    for name in WEIGHT_FILES:
        path = folder / name
        if path.is_file():
            return [path, *_shards(path)] if name.endswith(".index.json") else [path]
    raise CheckpointError(f"{folder} holds no weights: looked for {', '.join(WEIGHT_FILES)}.")


def load_tensors(
    folder: Path, dimensions: Dimensions, *, tied: bool = True
) -> dict[str, torch.Tensor]:
    """The float32 tensors of `expected_shapes`, without `transformer.` in their names.

    `tied` is false for a config that says that the LM head has weights of its own. Every
    missing, unexpected and misshapen tensor is named in one `CheckpointError`.
    """
    import torch

    found: dict[str, torch.Tensor] = {}
    for path in weight_files(folder):
        if path.suffix != ".json":
            found.update(_read(path))
    found = {name.removeprefix(_PREFIX): tensor for name, tensor in found.items()}
    found = {name: tensor for name, tensor in found.items() if not _BUFFER.fullmatch(name)}
    head = found.pop(_HEAD, None)
    _check_shapes(found, expected_shapes(dimensions), folder)
    if head is None and not tied:
        raise CheckpointError(f"{folder}: tie_word_embeddings is false, but {_HEAD} is missing.")
    if head is not None and not torch.equal(head, found["wte.weight"]):
        raise UnsupportedModel(
            f"{_HEAD} differs from wte.weight: a GPT-2 whose LM head is not tied to its token "
            "embedding is not supported."
        )
    return {name: _float32(name, found[name]) for name in expected_shapes(dimensions)}


def _shards(index: Path) -> list[Path]:
    names = read_json(index).get("weight_map")
    if not isinstance(names, dict) or not names:
        raise CheckpointError(f"{index} has no weight_map.")
    shards = [index.parent / str(name) for name in sorted(set(names.values()))]
    outside = [shard.name for shard in shards if shard.parent != index.parent]
    missing = [shard.name for shard in shards if not shard.is_file()]
    if outside or missing:
        raise CheckpointError(
            f"{index} names files that are not there: {', '.join(outside + missing)}."
        )
    return shards


def _read(path: Path) -> Mapping[str, torch.Tensor]:
    try:
        return _read_safetensors(path) if path.suffix == ".safetensors" else _read_pickle(path)
    except Exception as error:  # what a damaged file raises depends on where it is damaged
        raise CheckpointError(f"{path} is not a readable weights file ({error}).") from error


def _read_safetensors(path: Path) -> Mapping[str, torch.Tensor]:
    from safetensors.torch import load_file

    tensors: dict[str, torch.Tensor] = load_file(path)
    return tensors


def _read_pickle(path: Path) -> Mapping[str, torch.Tensor]:
    """weights_only: a pickle from a stranger must not be able to run code."""
    import torch
    from torch.serialization import _is_zipfile

    with path.open("rb") as file:
        mappable = _is_zipfile(file)  # the format before torch 1.6 can not be mapped
    loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=mappable)
    if not isinstance(loaded, dict):
        raise CheckpointError(f"it holds a {type(loaded).__name__}, not a state dict")
    tensors = {name: value for name, value in loaded.items() if isinstance(value, torch.Tensor)}
    strangers = sorted(str(name) for name in loaded.keys() - tensors.keys())
    if strangers:
        raise CheckpointError(f"not tensors: {', '.join(strangers)}")
    return tensors


def _check_shapes(
    found: Mapping[str, torch.Tensor], expected: Mapping[str, tuple[int, ...]], folder: Path
) -> None:
    problems = [f"missing: {name} {expected[name]}" for name in expected if name not in found]
    problems += [
        f"unexpected: {name} {tuple(found[name].shape)}" for name in found if name not in expected
    ]
    problems += [
        f"wrong shape: {name} is {tuple(found[name].shape)}, the config says {shape}"
        for name, shape in expected.items()
        if name in found and tuple(found[name].shape) != shape
    ]
    problems += [
        f"not floating point: {name} is {tensor.dtype}"
        for name, tensor in found.items()
        if name in expected and not tensor.is_floating_point()
    ]
    if problems:
        raise CheckpointError(
            f"{folder}: the tensors do not fit the config:\n  " + "\n  ".join(problems)
        )


def _float32(name: str, tensor: torch.Tensor) -> torch.Tensor:
    import torch

    tensor = tensor.detach().to(torch.float32).contiguous()
    # A sum is finite only if every element is, bar overflow; that case gets the slow look.
    if not math.isfinite(tensor.sum().item()) and not bool(torch.isfinite(tensor).all()):
        raise CheckpointError(f"{name} holds NaN or infinity.")
    return tensor
