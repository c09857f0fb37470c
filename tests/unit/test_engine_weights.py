"""Weights as inputs of a graph, and a graph in two parts: on graphs as the exporter builds them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from gpt2export.graph import build_graph
from gpt2export.layout import weights_layout
from gpt2serve.engine.weights import (
    PACKING,
    Graph,
    MappedFile,
    WeightInput,
    in_parts,
    unpacked,
)
from gpt2serve.package import Dimensions


def dimensions(layers: int = 4, vocab: int = 500) -> Dimensions:
    return Dimensions(
        vocab_size=vocab, context_length=32, layers=layers, heads=2, head_size=8, inner_size=64
    )


def build(shape: Dimensions) -> bytes:
    return build_graph(shape, "int8", 1e-5)


def inputs_of(graph: Graph) -> set[str]:
    return {one.name for one in onnx.load_model_from_string(graph.model).graph.input}


def packed_bytes(graph: Graph) -> int:
    proto = onnx.load_model_from_string(graph.model).graph
    matrices = {node.input[1] for node in proto.node if node.op_type in PACKING}
    return sum(int(np.prod(one.dims)) for one in proto.initializer if one.name in matrices)


def test_unpacked_every_weight_is_an_input_where_it_lies_in_the_file() -> None:
    shape = dimensions()
    graph = unpacked(build(shape))
    layout = {spec.name: spec for spec in weights_layout(shape, "int8")}
    found = {one.name: (str(one.dtype), one.shape, one.offset) for one in graph.weights}
    assert found == {n: (s.dtype, s.shape, s.offset) for n, s in layout.items()}
    assert found.keys() <= inputs_of(graph)


@pytest.mark.parametrize("vocab", [100, 5000])
def test_the_parts_hold_every_matrix_once_and_about_half_each(vocab: int) -> None:
    shape = dimensions(layers=12, vocab=vocab)
    first, second = in_parts(build(shape))
    matrices = [s for s in weights_layout(shape, "int8") if s.dtype == "int8"]
    whole = sum(spec.nbytes for spec in matrices)
    assert packed_bytes(first) + packed_bytes(second) == whole
    largest = max(spec.nbytes for spec in matrices)
    layer = sum(spec.nbytes for spec in matrices if spec.name.startswith("h.0."))
    assert abs(packed_bytes(first) - packed_bytes(second)) <= max(largest, layer)


def test_one_part_hands_over_what_the_other_reads() -> None:
    first, second = in_parts(build(dimensions()))
    assert first.carried_out == second.carried_in
    assert len(second.carried_in) == 2
    assert set(second.carried_in) <= inputs_of(second)
    assert first.carried_in == second.carried_out == ()
    # The embedding reads the LM head's matrix as it lies; the head itself has it packed.
    assert "wte.weight.unpacked" in inputs_of(first)
    assert "wte.weight" not in inputs_of(first) | inputs_of(second)


def test_keys_and_values_go_with_their_layers() -> None:
    shape = dimensions(layers=6, vocab=64)
    first, second = (inputs_of(part) for part in in_parts(build(shape)))
    layers = {f"past.{n}.{kind}" for n in range(6) for kind in ("key", "value")}
    assert first & layers
    assert second & layers
    assert (first | second) & layers == layers
    assert not first & second & layers


def test_a_graph_without_a_place_to_cut_stays_whole() -> None:
    proto = onnx.load_model_from_string(build(dimensions(layers=1)))
    for node in proto.graph.node:
        if node.op_type == "SkipLayerNormalization":
            node.op_type = "AnotherNormalization"
    (whole,) = in_parts(proto.SerializeToString())
    assert whole.carried_in == whole.carried_out == ()


def test_bytes_that_are_no_model() -> None:
    with pytest.raises(Exception, match=r"."):
        unpacked(b"not a model")


def test_a_mapped_file_knows_when_it_was_replaced(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    path.write_bytes(bytes(range(256)) * 64)
    mapped = MappedFile(path)
    assert mapped.is_current()
    mapped.drop_pages()
    assert mapped.is_current()
    path.unlink()
    assert not mapped.is_current()
    path.write_bytes(b"other")
    assert not mapped.is_current()


def test_what_lies_in_the_file_has_an_address_and_nothing_else_has(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    path.write_bytes(bytes(4096))
    file = MappedFile(path)

    def at(offset: int, *shape: int) -> int:
        return file.address_of(WeightInput("w", np.dtype(np.float32), shape, offset))

    assert at(4096 - 24, 2, 3) - at(0, 1024) == 4096 - 24
    for offset, shape in (
        (4096 - 23, (2, 3)),
        (-1, (1,)),
        (10**12, (1,)),
        (0, (1025,)),
        (0, (-1, 9)),
    ):
        with pytest.raises(ValueError, match="outside"):
            at(offset, *shape)
