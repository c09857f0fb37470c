"""Moves outliers from activations into weights before quantising, without changing the model.

int8 activations share one scale per token. In a trained GPT-2 few channels are many times
larger than the others, mostly with the same sign, and would leave few steps for the rest. Both
are undone at export, exactly in real numbers and at no run-time cost:

- shift: the middle of a channel's range is subtracted where the channel is made (the bias of
  the norm, or of the values) and added back through the bias of the projection that reads it
  (Wei et al., "Outlier Suppression+", EMNLP 2023);
- scale: the channel is divided by s and its row of the projection is multiplied by s, with
  s = sqrt(reach of the channel / reach of its weights) (Xiao et al., "SmoothQuant", ICML 2023,
  with alpha = 1/2).

The output of the last norm is scaled only: a shift would need a bias on the logits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Tensors = Mapping[str, Array]

#: Channels that calibration hardly used must not be blown up by what it did not see: none is
#: taken to reach less far than this share of the farthest.
LEAST_REACH = 1e-2

HEAD = "head"


@dataclass(frozen=True)
class Range:
    """Smallest and largest value of each channel [n] of an activation, on calibration text."""

    low: Array
    high: Array

    @property
    def middle(self) -> Array:
        return (self.high.astype(np.float64) + self.low) / 2

    @property
    def half(self) -> Array:
        return (self.high.astype(np.float64) - self.low) / 2

    @property
    def peak(self) -> Array:
        return np.maximum(np.abs(self.low), np.abs(self.high))


#: Of the inputs of the projections, by the projections' names; the LM head's is `HEAD`.
Ranges = Mapping[str, Range]


def smooth_layer(tensors: Tensors, ranges: Ranges, layer: int) -> dict[str, Array]:
    """The tensors of one layer that change."""
    name = f"h.{layer}"
    done = {key: value for key, value in tensors.items() if key.startswith(f"{name}.")}
    for norm, linear in (("ln_1", "attn.c_attn"), ("ln_2", "mlp.c_fc")):
        reader = f"{name}.{linear}"
        seen = ranges[reader]
        scale = _scale(seen.half, done[f"{reader}.weight"])
        weight, bias = f"{name}.{norm}.weight", f"{name}.{norm}.bias"
        done[weight] = _single(done[weight] / scale)
        done[bias] = _single((done[bias] - seen.middle) / scale)
        _compensate(done, reader, seen.middle, scale)
    _smooth_values(done, ranges, name)
    return done


def smooth_head(tensors: Tensors, ranges: Ranges) -> dict[str, Array]:
    """Last norm and embedding, and `wte.channel` [hidden], which undoes it in the embedding.

    The embedding matrix is the LM head too, so it cannot be scaled for one of them alone.
    """
    scale = _scale(ranges[HEAD].peak, tensors["wte.weight"].T)
    return {
        "ln_f.weight": _single(tensors["ln_f.weight"] / scale),
        "ln_f.bias": _single(tensors["ln_f.bias"] / scale),
        "wte.weight": tensors["wte.weight"] * _single(scale),
        "wte.channel": _single(1 / scale),
    }


def _smooth_values(done: dict[str, Array], ranges: Ranges, name: str) -> None:
    """Attention only averages values, so what is done to them is done to its output."""
    reader, maker = f"{name}.attn.c_proj", f"{name}.attn.c_attn"
    seen = ranges[reader]
    scale = _scale(seen.half, done[f"{reader}.weight"])
    values = slice(-len(scale), None)  # c_attn makes queries, keys and values, in this order
    weight, bias = done[f"{maker}.weight"].copy(), done[f"{maker}.bias"].copy()
    weight[:, values] /= scale
    bias[values] = (bias[values] - seen.middle) / scale
    done[f"{maker}.weight"], done[f"{maker}.bias"] = weight, bias
    _compensate(done, reader, seen.middle, scale)


def _scale(reach: Array, weight: Array) -> Array:
    """What channels that go as far as `reach` [n] are divided by before `weight` [n, out]."""
    scale: Array = np.sqrt(_floored(reach) / _floored(np.abs(weight).max(axis=1)))
    return scale


def _floored(reach: Array) -> Array:
    farthest = float(reach.max())
    return np.maximum(reach.astype(np.float64), LEAST_REACH * farthest) if farthest else reach + 1.0


def _compensate(done: dict[str, Array], reader: str, shift: Array, scale: Array) -> None:
    weight = done[f"{reader}.weight"].astype(np.float64)
    done[f"{reader}.bias"] = _single(done[f"{reader}.bias"] + shift @ weight)
    done[f"{reader}.weight"] = _single(weight * scale[:, None])


def _single(array: Array) -> Array:
    return array.astype(np.float32)
