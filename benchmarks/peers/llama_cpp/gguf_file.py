"""Writes a GPT-2 checkpoint as a GGUF file in Q8_0.

Names and values as llama.cpp's own converter (convert_hf_to_gguf.py) writes them for GPT-2:
matrices in Q8_0 by the quantiser of the `gguf` package, vectors and position embeddings in fp32,
the LM head left out, because llama.cpp takes the token embeddings for it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

#: GPT-2 keeps these as [inputs, outputs]; GGUF wants [outputs, inputs].
_TRANSPOSED = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")
_NO_WEIGHTS = (".attn.bias", ".attn.masked_bias", "lm_head.weight")
_PRE_TOKENIZER = "gpt-2"
_FILE_TYPE = 7  # mostly Q8_0


def write_gguf(checkpoint: Path, file: Path) -> None:
    from gguf import GGUFWriter

    config = json.loads((checkpoint / "config.json").read_text("utf-8"))
    writer = GGUFWriter(file, "gpt2")
    writer.add_name(checkpoint.name)
    writer.add_block_count(config["n_layer"])
    writer.add_context_length(config["n_positions"])
    writer.add_embedding_length(config["n_embd"])
    writer.add_feed_forward_length(config.get("n_inner") or 4 * config["n_embd"])
    writer.add_head_count(config["n_head"])
    writer.add_layer_norm_eps(config["layer_norm_epsilon"])
    writer.add_file_type(_FILE_TYPE)
    _add_tokenizer(writer, checkpoint, config)
    _add_weights(writer, checkpoint, config["n_layer"])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_tokenizer(writer: Any, checkpoint: Path, config: dict[str, Any]) -> None:
    from gguf import TokenType

    vocabulary = json.loads((checkpoint / "vocab.json").read_text("utf-8"))
    tokens = sorted(vocabulary, key=vocabulary.__getitem__)
    end = config["eos_token_id"]
    merges = (checkpoint / "merges.txt").read_text("utf-8").splitlines()
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(_PRE_TOKENIZER)
    writer.add_token_list(tokens)
    writer.add_token_types(
        [TokenType.CONTROL if n == end else TokenType.NORMAL for n in range(len(tokens))]
    )
    writer.add_token_merges([line for line in merges if line and not line.startswith("#version")])
    writer.add_bos_token_id(config["bos_token_id"])
    writer.add_eos_token_id(end)


def _add_weights(writer: Any, checkpoint: Path, layers: int) -> None:
    from gguf import MODEL_ARCH, GGMLQuantizationType, get_tensor_name_map, quants
    from safetensors.numpy import load_file

    names = get_tensor_name_map(MODEL_ARCH.GPT2, layers)
    for name, tensor in load_file(checkpoint / "model.safetensors").items():
        if name.endswith(_NO_WEIGHTS):
            continue
        new_name = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if new_name is None:
            raise ValueError(f"GGUF has no name for {name}.")
        value = _oriented(name, tensor)
        if value.ndim < 2 or name.endswith("wpe.weight"):
            writer.add_tensor(new_name, value)
        else:
            q8 = GGMLQuantizationType.Q8_0
            writer.add_tensor(new_name, quants.quantize(value, q8), raw_dtype=q8)


def _oriented(name: str, tensor: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    turned = tensor.T if name.endswith(_TRANSPOSED) else tensor
    return np.ascontiguousarray(turned, dtype=np.float32)
