"""int8 weights: how near they stay, and what holds the GELU's zero point up."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from gpt2export.layout import weights_layout
from gpt2export.quantize import GELU_OFFSET, convert, quantize_columns
from gpt2serve.package import Precision
from tests.export_fixtures import CONFIG, dimensions, random_tensors

matrices = arrays.arrays(
    np.float32,
    st.tuples(st.integers(1, 6), st.integers(1, 6)),
    elements=st.floats(-(2.0**90), 2.0**90, width=32, allow_subnormal=False),
)


@given(matrices)
def test_an_int8_weight_is_within_half_a_step(weight: np.ndarray) -> None:
    quantized, scale = quantize_columns(weight)
    assert quantized.dtype == np.int8
    assert quantized.flags.c_contiguous
    assert np.abs(quantized.astype(int)).max() <= 127
    assert (scale > 0).all()
    error = np.abs(quantized * scale.astype(np.float64) - weight)
    assert (error <= 0.5001 * scale + 1e-37).all()


def test_the_largest_of_a_column_uses_the_whole_range() -> None:
    quantized, scale = quantize_columns(np.array([[1.0, 0.0], [-2.0, 0.0]], np.float32))
    assert quantized.tolist() == [[64, 0], [-127, 0]]
    assert scale[1] == 1


def test_gelu_never_falls_to_the_offset() -> None:
    """In float32, and with the constants as onnxruntime's FastGelu has them."""
    x = np.linspace(-1.5, 0, 1_000_001, dtype=np.float32)
    gelu = 0.5 * x * (1 + np.tanh(x * (0.035677408136300125 * x * x + 0.7978845608028654)))
    assert -0.170042 < gelu.min() < -0.17004
    assert gelu.min() + np.float32(GELU_OFFSET) > 5e-5


@pytest.mark.parametrize("precision", ["int8", "fp32", "fp16"])
def test_conversion_follows_the_layout(precision: Precision) -> None:
    config = {key: value for key, value in CONFIG.items() if key != "architectures"}
    state = random_tensors(config)
    tensors = {name.removeprefix("transformer."): t.numpy() for name, t in state.items()}
    shape = dimensions(vocab_size=320, context_length=48, heads=2, head_size=16, inner_size=128)
    made = [(n, str(a.dtype), a.shape) for n, a in convert(tensors, precision, shape.layers)]
    assert made == [(s.name, s.dtype, s.shape) for s in weights_layout(shape, precision)]
