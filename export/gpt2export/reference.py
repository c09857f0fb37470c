"""The checkpoint in PyTorch, eager and in float32: what a package is held to."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from gpt2export.checkpoint import Checkpoint

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
