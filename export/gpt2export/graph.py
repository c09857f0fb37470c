"""The ONNX graph of a GPT-2, built layer by layer from its dimensions.

Not traced: a traced GPT-2 has thousands of nodes, and its attention no longer fuses. This one
uses onnxruntime's fused kernels directly and works on KV buffers in place: `present.*` are bound
to the memory of `past.*`.

B sequences, S new tokens each, room for P tokens in the KV buffers. Rows are padded on the
right. S > 1 with a past needs B = 1; that is a limit of GroupQueryAttention.
"""

from __future__ import annotations

from onnx import TensorProto

from gpt2export.builder import ELEMENT_TYPE, FUSED, GraphBuilder
from gpt2export.layout import DType, weights_layout
from gpt2export.recipes import FloatRecipe, Int8Recipe, Recipe
from gpt2serve.package import WEIGHTS_FILE, Dimensions, KVLayout, Precision

IDS, POSITIONS, SEQLENS = "input_ids", "position_ids", "seqlens_k"
TOTAL, LAST = "total_sequence_length", "last_index"
LOGITS = "logits"


def build_graph(dimensions: Dimensions, precision: Precision, epsilon: float) -> bytes:
    """The serialised model; its weights are those of `weights_layout`, in `WEIGHTS_FILE`."""
    graph = GraphBuilder()
    graph.external(weights_layout(dimensions, precision), WEIGHTS_FILE)
    _declare(graph, dimensions, kv_layout(precision).dtype)
    _Body(graph, _recipe(graph, dimensions, precision), dimensions, epsilon).build()
    return graph.serialize(f"gpt2-{precision}")


def kv_layout(precision: Precision) -> KVLayout:
    return KVLayout(dtype="float16" if precision == "fp16" else "float32")


def input_names(dimensions: Dimensions) -> tuple[str, ...]:
    return (IDS, POSITIONS, SEQLENS, TOTAL, LAST, *_kv_names(dimensions, KVLayout().past_names))


def output_names(dimensions: Dimensions) -> tuple[str, ...]:
    return (LOGITS, *_kv_names(dimensions, KVLayout().present_names))


def _kv_names(dimensions: Dimensions, patterns: tuple[str, str]) -> list[str]:
    return [
        pattern.format(layer=layer) for layer in range(dimensions.layers) for pattern in patterns
    ]


def _recipe(graph: GraphBuilder, dimensions: Dimensions, precision: Precision) -> Recipe:
    if precision == "int8":
        return Int8Recipe(graph, hidden_size=dimensions.hidden_size)
    return FloatRecipe(graph, half=precision == "fp16")


def _declare(graph: GraphBuilder, dimensions: Dimensions, kv_dtype: DType) -> None:
    graph.input(IDS, TensorProto.INT64, ["B", "S"])
    graph.input(POSITIONS, TensorProto.INT64, ["B", "S"])
    graph.input(SEQLENS, TensorProto.INT32, ["B"])
    graph.input(TOTAL, TensorProto.INT32, [])
    graph.input(LAST, TensorProto.INT64, ["B", 1])
    graph.output(LOGITS, TensorProto.FLOAT, ["B", dimensions.vocab_size])
    shape: list[int | str] = ["B", dimensions.heads, "P", dimensions.head_size]
    for name in _kv_names(dimensions, KVLayout().past_names):
        graph.input(name, ELEMENT_TYPE[kv_dtype], shape)
    for name in _kv_names(dimensions, KVLayout().present_names):
        graph.output(name, ELEMENT_TYPE[kv_dtype], shape)


class _Body:
    """The nodes between inputs and outputs."""

    def __init__(
        self, graph: GraphBuilder, recipe: Recipe, dimensions: Dimensions, epsilon: float
    ) -> None:
        self._graph = graph
        self._recipe = recipe
        self._dimensions = dimensions
        self._epsilon = epsilon

    def build(self) -> None:
        graph, layers = self._graph, self._dimensions.layers
        x = self._recipe.embed(IDS, POSITIONS)
        normed = graph.node(
            "LayerNormalization", [x, *_norm("h.0.ln_1")], axis=-1, epsilon=self._epsilon
        )
        for layer in range(layers):
            following = f"h.{layer + 1}.ln_1" if layer + 1 < layers else "ln_f"
            x, normed = self._layer(layer, x, normed, following)
        last = graph.node("GatherND", [normed, LAST], batch_dims=1)
        self._recipe.head(last, LOGITS)

    def _layer(self, layer: int, x: str, normed: str, following: str) -> tuple[str, str]:
        """Residual stream and its norm in; the same, normed for `following`, out."""
        graph, recipe, name = self._graph, self._recipe, f"h.{layer}"
        attended = self._attention(layer, normed)
        attended = recipe.linear(attended, f"{name}.attn.c_proj")
        x, normed = self._add_and_norm(x, attended, f"{name}.ln_2", f"{name}.attn.c_proj.bias")
        up = recipe.linear(normed, f"{name}.mlp.c_fc")
        up = graph.node("FastGelu", [up, f"{name}.mlp.c_fc.bias"], domain=FUSED)
        down = recipe.linear_of_gelu(up, f"{name}.mlp.c_proj")
        return self._add_and_norm(x, down, following, f"{name}.mlp.c_proj.bias")

    def _attention(self, layer: int, x: str) -> str:
        graph, heads = self._graph, self._dimensions.heads
        kv = KVLayout()
        past = [pattern.format(layer=layer) for pattern in kv.past_names]
        present = [pattern.format(layer=layer) for pattern in kv.present_names]
        name = f"h.{layer}.attn.c_attn"
        packed = graph.node("Add", [self._recipe.linear(x, name), f"{name}.bias"])
        graph.node_into(
            "GroupQueryAttention",
            [packed, "", "", *past, SEQLENS, TOTAL],
            [f"h.{layer}.attn", *present],
            domain=FUSED,
            num_heads=heads,
            kv_num_heads=heads,
            do_rotary=0,
        )
        return f"h.{layer}.attn"

    def _add_and_norm(self, x: str, y: str, norm: str, bias: str) -> tuple[str, str]:
        """x + y + bias, and that normed."""
        total, normed = f"{norm}.in", f"{norm}.out"
        self._graph.node_into(
            "SkipLayerNormalization",
            [x, y, *_norm(norm), bias],
            [normed, "", "", total],
            domain=FUSED,
            epsilon=self._epsilon,
        )
        return total, normed


def _norm(name: str) -> list[str]:
    return [f"{name}.weight", f"{name}.bias"]
