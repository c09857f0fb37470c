"""The checkpoint in PyTorch, eager and in float32: what a package is held to."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from gpt2export.checkpoint import Checkpoint
from gpt2export.smooth import HEAD, Range

if TYPE_CHECKING:
    import torch
    from transformers import GPT2LMHeadModel

#: Bytes of logits that PyTorch makes in one go, beside the array that holds them all.
AT_ONCE = 64_000_000


@dataclass(frozen=True)
class Reading:
    """What the original says to `ids` [rows, length]: everything that is asked of it, at once.

    `logits` are [rows, length, vocab]. `ranges` are of what goes into each projection; the down
    projections are left out: a GELU lies before them, and their input is quantised in a way of
    its own.
    """

    ids: NDArray[np.int64]
    logits: NDArray[np.float32]
    ranges: dict[str, Range]


class Reference:
    """The original model. Shares its weights' memory with the checkpoint."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint
        self._model = _load(checkpoint)

    def read(self, ids: NDArray[np.int64]) -> Reading:
        """One pass over `ids` [rows, length]."""
        low: dict[str, torch.Tensor] = {}
        high: dict[str, torch.Tensor] = {}
        hooks = [
            part.register_forward_pre_hook(_watch(name, low, high))
            for name, part in self._projections().items()
        ]
        try:
            logits = self.logits(ids)
        finally:
            for hook in hooks:
                hook.remove()
        ranges = {name: Range(low[name].numpy(), high[name].numpy()) for name in low}
        return Reading(ids, logits, ranges)

    def logits(self, ids: NDArray[np.int64]) -> NDArray[np.float32]:
        """[rows, length] -> [rows, length, vocab]. A few rows at a time, to hold little at once."""
        import torch

        rows = torch.from_numpy(np.ascontiguousarray(ids))
        out = np.empty((*ids.shape, self._model.config.vocab_size), np.float32)
        step = max(1, AT_ONCE * len(out) // out.nbytes)
        with torch.inference_mode():
            for begin in range(0, len(rows), step):
                part = slice(begin, begin + step)
                out[part] = self._model(rows[part], use_cache=False).logits.numpy()
        return out

    def _projections(self) -> dict[str, Any]:
        found: dict[str, Any] = {HEAD: self._model.lm_head}
        for layer, block in enumerate(self._model.transformer.h):
            found[f"h.{layer}.attn.c_attn"] = block.attn.c_attn
            found[f"h.{layer}.attn.c_proj"] = block.attn.c_proj
            found[f"h.{layer}.mlp.c_fc"] = block.mlp.c_fc
        return found


def _watch(
    name: str, low: dict[str, torch.Tensor], high: dict[str, torch.Tensor]
) -> Callable[[Any, Any], None]:
    """Keeps the smallest and largest value of each channel of a module's input."""
    import torch

    def hook(_module: Any, inputs: Any) -> None:
        flat = inputs[0].flatten(end_dim=-2)
        least, most = flat.amin(0), flat.amax(0)
        low[name] = torch.minimum(low.get(name, least), least)
        high[name] = torch.maximum(high.get(name, most), most)

    return hook


def _load(checkpoint: Checkpoint) -> GPT2LMHeadModel:
    from transformers import GPT2LMHeadModel
    from transformers.modeling_utils import no_init_weights

    config: Any = copy.deepcopy(checkpoint.config.hf)
    config._attn_implementation = "eager"
    with no_init_weights():
        model = GPT2LMHeadModel(config)
    state = {f"transformer.{name}": tensor for name, tensor in checkpoint.tensors.items()}
    state["lm_head.weight"] = checkpoint.tensors["wte.weight"]
    model.load_state_dict(state, strict=True, assign=True)
    return model.eval()
