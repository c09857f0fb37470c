"""Where each tensor lies in `model.onnx.data`.

The layout follows from the dimensions and the precision alone, never from values. So the graph,
which names the offsets, is the same for all models of one shape, and a server can share it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from gpt2serve.package import Dimensions, Precision

DType = Literal["int8", "float16", "float32"]

ITEM_SIZE: dict[DType, int] = {"int8": 1, "float16": 2, "float32": 4}

#: A cache line, so that vector loads never straddle two.
ALIGNMENT = 64
#: A memory page: a large tensor that begins on one can be mapped without its neighbours.
PAGE = 4096
LARGE = 16 * PAGE

#: One layer's matrices, as GPT-2 checkpoints name them; stored [in, out], MatMul's layout.
LINEARS = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")


@dataclass(frozen=True)
class TensorSpec:
    """One tensor of the weights file; `offset` and `nbytes` are in bytes."""

    name: str
    dtype: DType
    shape: tuple[int, ...]
    offset: int

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * ITEM_SIZE[self.dtype]


def linear_shape(dimensions: Dimensions, linear: str) -> tuple[int, int]:
    """[in, out] of one of `LINEARS`."""
    hidden, inner = dimensions.hidden_size, dimensions.inner_size
    return {
        "attn.c_attn": (hidden, 3 * hidden),
        "attn.c_proj": (hidden, hidden),
        "mlp.c_fc": (hidden, inner),
        "mlp.c_proj": (inner, hidden),
    }[linear]


def weights_layout(dimensions: Dimensions, precision: Precision) -> tuple[TensorSpec, ...]:
    """Every tensor of the weights file, in file order."""
    specs, end = [], 0
    for name, dtype, shape in _tensors(dimensions, precision):
        spec = TensorSpec(name, dtype, shape, 0)
        alignment = PAGE if spec.nbytes >= LARGE else ALIGNMENT
        offset = -(-end // alignment) * alignment
        specs.append(TensorSpec(name, dtype, shape, offset))
        end = offset + spec.nbytes
    return tuple(specs)


def _tensors(
    dimensions: Dimensions, precision: Precision
) -> Iterator[tuple[str, DType, tuple[int, ...]]]:
    hidden, vocab = dimensions.hidden_size, dimensions.vocab_size
    plain: DType = "float16" if precision == "fp16" else "float32"
    if precision == "int8":
        # The LM head multiplies by this matrix as it lies; the embedding gathers its columns.
        yield "wte.weight", "int8", (hidden, vocab)
        yield "wte.scale", "float32", (vocab,)
        # Undoes in the embedding what smooths the LM head's input.
        yield "wte.channel", "float32", (hidden,)
        # Rows of position embeddings have outliers that int8 would not keep; float16 does.
        yield "wpe.weight", "float16", (dimensions.context_length, hidden)
    else:
        yield "wte.weight", plain, (vocab, hidden)
        yield "wpe.weight", plain, (dimensions.context_length, hidden)
    for layer in range(dimensions.layers):
        yield from _norm(f"h.{layer}.ln_1", plain, hidden)
        yield from _linear(dimensions, precision, plain, layer, "attn.c_attn")
        yield from _linear(dimensions, precision, plain, layer, "attn.c_proj")
        yield from _norm(f"h.{layer}.ln_2", plain, hidden)
        yield from _linear(dimensions, precision, plain, layer, "mlp.c_fc")
        yield from _linear(dimensions, precision, plain, layer, "mlp.c_proj")
    yield from _norm("ln_f", plain, hidden)


def _norm(name: str, plain: DType, hidden: int) -> Iterator[tuple[str, DType, tuple[int, ...]]]:
    yield f"{name}.weight", plain, (hidden,)
    yield f"{name}.bias", plain, (hidden,)


def _linear(
    dimensions: Dimensions, precision: Precision, plain: DType, layer: int, linear: str
) -> Iterator[tuple[str, DType, tuple[int, ...]]]:
    name, shape = f"h.{layer}.{linear}", linear_shape(dimensions, linear)
    if precision == "int8":
        yield f"{name}.weight", "int8", shape
        yield f"{name}.scale", "float32", shape[1:]
    else:
        yield f"{name}.weight", plain, shape
    yield f"{name}.bias", plain, shape[1:]
