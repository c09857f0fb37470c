"""The checkpoint in PyTorch, eager and in float32: what a package is held to."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from gpt2export.checkpoint import Checkpoint
from gpt2export.smooth import HEAD, Range

if TYPE_CHECKING:
    from transformers import GPT2LMHeadModel


class Reference:
    """Logits of the original model. Shares its weights' memory with the checkpoint."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._model = _load(checkpoint)

    def logits(self, ids: NDArray[np.int64]) -> NDArray[np.float32]:
        """[rows, length] -> [rows, length, vocab]. Row by row, to hold little at once."""
        import torch

        rows = torch.from_numpy(np.ascontiguousarray(ids))
        shape = (*ids.shape, self._model.config.vocab_size)
        out = np.empty(shape, np.float32)
        with torch.inference_mode():
            for index in range(len(rows)):
                answer = self._model(rows[index : index + 1], use_cache=False)
                out[index] = answer.logits[0].numpy()
        return out

    def ranges(self, ids: NDArray[np.int64]) -> dict[str, Range]:
        """What goes into each projection while the model reads `ids` [rows, length].

        The down projections are left out: a GELU lies before them, and their input is
        quantised in a way of its own.
        """
        import torch

        low: dict[str, torch.Tensor] = {}
        high: dict[str, torch.Tensor] = {}

        def watch(name: str) -> Callable[[Any, Any], None]:
            def hook(_module: Any, inputs: Any) -> None:
                flat = inputs[0].flatten(end_dim=-2)
                least, most = flat.amin(0), flat.amax(0)
                low[name] = torch.minimum(low.get(name, least), least)
                high[name] = torch.maximum(high.get(name, most), most)

            return hook

        projections = self._projections().items()
        hooks = [part.register_forward_pre_hook(watch(name)) for name, part in projections]
        try:
            with torch.inference_mode():
                for row in torch.from_numpy(np.ascontiguousarray(ids)):
                    self._model(row[None], use_cache=False)
        finally:
            for hook in hooks:
                hook.remove()
        return {name: Range(low[name].numpy(), high[name].numpy()) for name in low}

    def _projections(self) -> dict[str, Any]:
        found: dict[str, Any] = {HEAD: self._model.lm_head}
        for layer, block in enumerate(self._model.transformer.h):
            found[f"h.{layer}.attn.c_attn"] = block.attn.c_attn
            found[f"h.{layer}.attn.c_proj"] = block.attn.c_proj
            found[f"h.{layer}.mlp.c_fc"] = block.mlp.c_fc
        return found


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
