"""A checkpoint's tensors in the form of one precision, one at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpt2export.layout import LINEARS
from gpt2export.smooth import Ranges, smooth_head, smooth_layer
from gpt2serve.package import Precision

Array = NDArray[Any]
Named = tuple[str, Array]

#: tanh-GELU has its minimum, -0.170041, at -0.7525. This is a little more, so that x + offset is
#: positive for every x, and so is the largest of a row: the row can be divided by it.
GELU_OFFSET = float(np.float32(0.1701))

INT8_MAX = 127


def convert(
    tensors: Mapping[str, Array], precision: Precision, layers: int, ranges: Ranges | None = None
) -> Iterator[Named]:
    """Yield every tensor of `weights_layout`, in its order.

    `tensors` are float32, named as in the checkpoint without `transformer.`. For int8 they are
    smoothed by `ranges`, layer by layer to hold little at once; without, they are taken as
    they are.
    """
    if precision != "int8":
        ranges = None
    around = tensors if ranges is None else smooth_head(tensors, ranges)
    yield from _embeddings(around, tensors["wpe.weight"], precision)
    for layer in range(layers):
        own = tensors if ranges is None else smooth_layer(tensors, ranges, layer)
        yield from _layer(own, precision, f"h.{layer}")
    yield from _norm(around, precision, "ln_f")


def _embeddings(tensors: Mapping[str, Array], wpe: Array, precision: Precision) -> Iterator[Named]:
    weight = tensors["wte.weight"]
    if precision == "int8":
        quantized, scale = quantize_columns(weight.T)
        yield "wte.weight", quantized
        yield "wte.scale", scale
        yield "wte.channel", tensors.get("wte.channel", np.ones(weight.shape[1], np.float32))
        yield "wpe.weight", _plain(wpe, "fp16")
    else:
        yield "wte.weight", _plain(weight, precision)
        yield "wpe.weight", _plain(wpe, precision)


def _layer(tensors: Mapping[str, Array], precision: Precision, name: str) -> Iterator[Named]:
    yield from _norm(tensors, precision, f"{name}.ln_1")
    yield from _linear(tensors, precision, f"{name}.{LINEARS[0]}")
    yield from _linear(tensors, precision, f"{name}.{LINEARS[1]}")
    yield from _norm(tensors, precision, f"{name}.ln_2")
    yield from _linear(tensors, precision, f"{name}.{LINEARS[2]}")
    yield from _linear(tensors, precision, f"{name}.{LINEARS[3]}", after_gelu=True)


def quantize_columns(weight: Array) -> tuple[Array, Array]:
    """[in, out] float32 -> int8 of the same shape, and the scale of each column.

    Symmetric: weight ~ int8 * scale. A column of zeros gets scale 1, so that nothing divides
    by 0.
    """
    peak = np.maximum(weight.max(axis=0), -weight.min(axis=0))
    scale = np.where(peak > 0, peak / INT8_MAX, 1).astype(np.float32)
    steps = np.divide(weight, scale)
    np.rint(steps, out=steps)
    # A subnormal peak makes an inexact scale; hold what it gives to the range.
    return np.clip(steps, -INT8_MAX, INT8_MAX, out=steps).astype(np.int8, order="C"), scale


def _plain(tensor: Array, precision: Precision) -> Array:
    if precision != "fp16":
        return tensor
    # A value beyond float16 becomes infinite; verification then says so.
    with np.errstate(over="ignore"):
        return tensor.astype(np.float16)


def _norm(tensors: Mapping[str, Array], precision: Precision, name: str) -> Iterator[Named]:
    for part in ("weight", "bias"):
        yield f"{name}.{part}", _plain(tensors[f"{name}.{part}"], precision)


def _linear(
    tensors: Mapping[str, Array], precision: Precision, name: str, *, after_gelu: bool = False
) -> Iterator[Named]:
    weight, bias = tensors[f"{name}.weight"], tensors[f"{name}.bias"]
    if precision != "int8":
        yield f"{name}.weight", _plain(weight, precision)
        yield f"{name}.bias", _plain(bias, precision)
        return
    quantized, scale = quantize_columns(weight)
    yield f"{name}.weight", quantized
    yield f"{name}.scale", scale
    if after_gelu:
        # The graph multiplies x + GELU_OFFSET; this takes the offset's share away again.
        columns = quantized.sum(axis=0, dtype=np.int64) * scale.astype(np.float64)
        bias = (bias - GELU_OFFSET * columns).astype(np.float32)
    yield f"{name}.bias", bias
