"""How one precision multiplies: the part of the graph that differs between the variants."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from onnx import TensorProto

from gpt2export.builder import FUSED, GraphBuilder
from gpt2export.quantize import GELU_OFFSET


class Recipe(Protocol):
    """Embedding, projections and LM head of one precision."""

    def embed(self, ids: str, positions: str) -> str:
        """[B, S] token ids and positions -> [B, S, hidden]."""

    def linear(self, x: str, name: str) -> str:
        """x @ weight, without the bias."""

    def linear_of_gelu(self, x: str, name: str) -> str:
        """The same, where x came out of a GELU."""

    def head(self, x: str, logits: str) -> None:
        """[B, hidden] -> `logits` [B, vocab] float32."""


class FloatRecipe:
    """fp32 and fp16: plain matrix products."""

    def __init__(self, graph: GraphBuilder, *, half: bool) -> None:
        self._graph = graph
        self._half = half

    def embed(self, ids: str, positions: str) -> str:
        token = self._graph.node("Gather", ["wte.weight", ids])
        position = self._graph.node("Gather", ["wpe.weight", positions])
        return self._graph.node("Add", [token, position])

    def linear(self, x: str, name: str) -> str:
        return self._graph.node("MatMul", [x, f"{name}.weight"])

    def linear_of_gelu(self, x: str, name: str) -> str:
        return self.linear(x, name)

    def head(self, x: str, logits: str) -> None:
        if not self._half:
            self._graph.node_into("Gemm", [x, "wte.weight"], [logits], transB=1)
            return
        half = self._graph.node("Gemm", [x, "wte.weight"], transB=1)
        self._graph.node_into("Cast", [half], [logits], to=TensorProto.FLOAT)


class Int8Recipe:
    """int8 weights per output channel, activations quantised to uint8 per row at run time.

    Every op here works row by row and the integer accumulation is exact, so a row's result
    cannot depend on what else is in the batch. (One scale for the whole batch, as
    DynamicQuantizeMatMul has it, would break that.)

    uint8 by int8 is the fast path of the processors' dot-product instructions; int8 by int8 is
    many times slower.
    """

    def __init__(self, graph: GraphBuilder, *, hidden_size: int) -> None:
        self._graph = graph
        graph.constant("axis", np.array([-1], np.int64))
        graph.constant("hidden", np.array([hidden_size], np.int64))
        graph.constant("column", np.array([hidden_size, 1], np.int64))
        graph.constant("middle", np.uint8(128))
        graph.constant("zero", np.uint8(0))
        graph.constant("step", np.float32(1 / 127))
        graph.constant("gelu_step", np.float32(1 / 255))
        graph.constant("gelu_offset", np.float32(GELU_OFFSET))

    def embed(self, ids: str, positions: str) -> str:
        graph = self._graph
        # The matrix lies as the LM head wants it, [hidden, vocab]; its columns are the tokens.
        # GatherElements takes a third of the time that Gather takes for columns, although it
        # wants an index for each value (docs/decisions/0009-costs-of-a-step.md).
        flat = graph.node("Reshape", [ids, "axis"])
        indices = graph.node("Expand", [flat, "column"])
        columns = graph.node("GatherElements", ["wte.weight", indices], axis=1)
        rows = graph.node("Transpose", [columns], perm=[1, 0])
        rows = graph.node("Cast", [rows], to=TensorProto.FLOAT)
        scale = graph.node("Gather", ["wte.scale", flat])
        scale = graph.node("Unsqueeze", [scale, "axis"])
        token = graph.node("Mul", [rows, scale])
        token = graph.node("Mul", [token, "wte.channel"])
        size = graph.node("Shape", [ids])
        size = graph.node("Concat", [size, "hidden"], axis=0)
        token = graph.node("Reshape", [token, size])
        position = graph.node("Gather", ["wpe.weight", positions])
        position = graph.node("Cast", [position], to=TensorProto.FLOAT)
        return graph.node("Add", [token, position])

    def linear(self, x: str, name: str) -> str:
        quantized, peak = self._quantize(x)
        product = self._product(quantized, name, "step", "middle")
        return self._graph.node("Mul", [product, peak])

    def linear_of_gelu(self, x: str, name: str) -> str:
        """GELU's output is never below -GELU_OFFSET, so all 256 steps can lie above that.

        What the offset adds to the product is constant per column; the stored bias has it
        subtracted already.
        """
        graph = self._graph
        peak = graph.node("ReduceMax", [x, "axis"], keepdims=1)
        peak = graph.node("Add", [peak, "gelu_offset"])  # above 0, see GELU_OFFSET
        shifted = graph.node("Add", [x, "gelu_offset"])
        shifted = graph.node("Div", [shifted, peak])
        quantized = graph.node("QuantizeLinear", [shifted, "gelu_step", "zero"])
        product = self._product(quantized, name, "gelu_step", "zero")
        return graph.node("Mul", [product, peak])

    def head(self, x: str, logits: str) -> None:
        quantized, peak = self._quantize(x)
        product = self._product(quantized, "wte", "step", "middle")
        self._graph.node_into("Mul", [product, peak], [logits])

    def _quantize(self, x: str) -> tuple[str, str]:
        """x [.., n] -> uint8 of the same shape around 128, and the row's peak [.., 1].

        A row of zeros has peak 0 and is divided by it. Whatever bytes the NaNs become, the
        product is finite and is multiplied by the peak again: the result is the right one, 0.
        """
        graph = self._graph
        magnitude = graph.node("Abs", [x])
        peak = graph.node("ReduceMax", [magnitude, "axis"], keepdims=1)
        unit = graph.node("Div", [x, peak])
        return graph.node("QuantizeLinear", [unit, "step", "middle"]), peak

    def _product(self, quantized: str, name: str, step: str, zero_point: str) -> str:
        inputs = [quantized, f"{name}.weight", step, f"{name}.scale", zero_point]
        return self._graph.node("MatMulIntegerToFloat", inputs, domain=FUSED)
