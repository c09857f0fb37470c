"""Layout and graph: what follows from a model's shape alone."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto

from gpt2export import package_files
from gpt2export.checkpoint import load_checkpoint
from gpt2export.graph import build_graph, input_names, output_names
from gpt2export.layout import ALIGNMENT, LARGE, PAGE, weights_layout
from gpt2serve.package import GRAPH_FILE, WEIGHTS_FILE, Dimensions, Precision
from tests.export_fixtures import dimensions, write_checkpoint

PRECISIONS: tuple[Precision, ...] = ("int8", "fp32", "fp16")

GPT2 = dimensions(
    vocab_size=50257, context_length=1024, layers=12, heads=12, head_size=64, inner_size=3072
)
GPT2_XL = dimensions(
    vocab_size=50257, context_length=1024, layers=48, heads=25, head_size=64, inner_size=6400
)

#: Bytes of the weights file, for the sizes that the documentation promises.
MOST_BYTES = {"int8": 127_000_000, "fp16": 249_100_000, "fp32": 498_000_000}

KERNELS = json.loads((Path(__file__).parents[1] / "data" / "cuda_kernels.json").read_text())

sizes = st.builds(
    dimensions,
    vocab_size=st.integers(1, 5000),
    context_length=st.integers(1, 300),
    layers=st.integers(1, 3),
    heads=st.integers(1, 5),
    head_size=st.sampled_from([8, 40, 64]),
    inner_size=st.integers(1, 900),
)


def graph_of(shape: Dimensions, precision: Precision) -> onnx.GraphProto:
    return onnx.load_model_from_string(build_graph(shape, precision, 1e-5)).graph


@given(sizes, st.sampled_from(PRECISIONS))
def test_tensors_are_aligned_and_do_not_overlap(shape: Dimensions, precision: Precision) -> None:
    end = 0
    for spec in weights_layout(shape, precision):
        assert spec.offset >= end
        assert spec.offset % (PAGE if spec.nbytes >= LARGE else ALIGNMENT) == 0
        assert spec.offset - end < PAGE
        end = spec.offset + spec.nbytes
    names = [spec.name for spec in weights_layout(shape, precision)]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_sizes_for_124m(precision: Precision) -> None:
    last = weights_layout(GPT2, precision)[-1]
    assert last.offset + last.nbytes <= MOST_BYTES[precision]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_graph_is_small_even_for_the_largest(precision: Precision) -> None:
    assert len(build_graph(GPT2_XL, precision, 1e-5)) < 200_000


@pytest.mark.parametrize("precision", PRECISIONS)
def test_models_of_one_shape_have_one_graph(tmp_path: Path, precision: Precision) -> None:
    graphs, weights = set(), set()
    for seed in (1, 2):
        folder = tmp_path / f"out-{seed}"
        folder.mkdir()
        checkpoint = load_checkpoint(write_checkpoint(tmp_path / f"tiny-{seed}", seed=seed))
        package_files.write_model(folder, checkpoint, precision)
        graphs.add((folder / GRAPH_FILE).read_bytes())
        weights.add((folder / WEIGHTS_FILE).read_bytes())
    assert (len(graphs), len(weights)) == (1, 2)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_graph_is_valid_onnx(precision: Precision) -> None:
    model = onnx.load_model_from_string(build_graph(dimensions(), precision, 1e-5))
    assert model.ir_version == 10
    assert {entry.domain: entry.version for entry in model.opset_import} == {
        "": 21,
        "com.microsoft": 1,
    }
    assert [value.name for value in model.graph.input] == list(input_names(dimensions()))
    assert [value.name for value in model.graph.output] == list(output_names(dimensions()))
    made = {value.name for value in (*model.graph.input, *model.graph.initializer)} | {""}
    for node in model.graph.node:  # every name is made before it is used, and only once
        assert set(node.input) <= made
        fresh = {name for name in node.output if name}
        assert not fresh & made
        made |= fresh


@pytest.mark.parametrize("precision", PRECISIONS)
def test_weights_lie_outside_and_constants_inside(precision: Precision) -> None:
    specs = {spec.name: spec for spec in weights_layout(dimensions(), precision)}
    for tensor in graph_of(dimensions(), precision).initializer:
        if tensor.data_location != TensorProto.EXTERNAL:
            assert len(tensor.raw_data) <= 16
            continue
        entry = {item.key: item.value for item in tensor.external_data}
        spec = specs.pop(tensor.name)
        assert entry == {
            "location": WEIGHTS_FILE,
            "offset": str(spec.offset),
            "length": str(spec.nbytes),
        }
        assert tuple(tensor.dims) == spec.shape
    assert specs == {}


@pytest.mark.parametrize(("precision", "most"), [("int8", 30), ("fp32", 10), ("fp16", 10)])
def test_nodes_per_layer(precision: Precision, most: int) -> None:
    two, three = (len(graph_of(dimensions(layers=layers), precision).node) for layers in (2, 3))
    assert three - two <= most


@pytest.mark.parametrize("precision", PRECISIONS)
def test_head_and_embedding_share_one_copy(precision: Precision) -> None:
    graph = graph_of(dimensions(), precision)
    users = Counter(node.op_type for node in graph.node if "wte.weight" in node.input)
    int8 = precision == "int8"
    embedding, head = ("GatherElements", "MatMulIntegerToFloat") if int8 else ("Gather", "Gemm")
    assert users == {embedding: 1, head: 1}
    vocabulary = [t for t in graph.initializer if 97 in t.dims and len(t.dims) == 2]
    assert [tensor.name for tensor in vocabulary] == ["wte.weight"]


def test_every_node_of_fp16_has_an_fp16_cuda_kernel() -> None:
    """Holds op, opset and the type of the data to the list of the CUDA provider."""
    model = onnx.load_model_from_string(build_graph(GPT2, "fp16", 1e-5))
    for node in model.graph.node:
        kernels = KERNELS["kernels"][node.domain or "ai.onnx"].get(node.op_type)
        assert kernels, f"{node.op_type} has no CUDA kernel"
        fitting = [kernel for kernel in kernels if covers(kernel["opset"], node.domain)]
        assert fitting, f"{node.op_type}: no kernel for opset 21"
        types = {
            name
            for kernel in fitting
            for name in kernel["types"]["T1" if node.op_type == "Cast" else "T"]
        }
        assert "float16" in types, f"{node.op_type} has no float16 kernel"


def covers(opsets: str, domain: str) -> bool:
    """'14+' or '[21, 22]' against the opset of our graphs."""
    opset = 21 if not domain else 1
    if opsets.endswith("+"):
        return opset >= int(opsets[:-1])
    first, last = json.loads(opsets)
    return first <= opset <= last


def test_fp16_holds_nothing_in_float32_but_the_logits() -> None:
    graph = graph_of(GPT2, "fp16")
    assert {t.data_type for t in graph.initializer} == {TensorProto.FLOAT16}
    casts = [node for node in graph.node if node.op_type == "Cast"]
    assert [list(node.output) for node in casts] == [["logits"]]


@pytest.mark.parametrize("epsilon", [1e-5, 1e-6])
def test_epsilon_comes_from_the_config(epsilon: float) -> None:
    graph = onnx.load_model_from_string(build_graph(dimensions(), "fp32", epsilon)).graph
    found = {a.f for node in graph.node for a in node.attribute if a.name == "epsilon"}
    assert found == {float(np.float32(epsilon))}
