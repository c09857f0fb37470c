"""A package's weights as inputs of its graph, mapped from their file.

onnxruntime takes a hundred milliseconds to make a model ready, nearly all of it for copying each
matrix into the order in which the processor reads it fastest. A graph whose weights are inputs
needs none of that: it is made once for all models of a shape, and a model's weights are handed
in with each step, from where the file is mapped (docs/decisions/0011-cold-start.md).
"""

from __future__ import annotations

import math
import mmap
import os
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

#: ONNX's names for the element types that weights have.
_TYPES: dict[int, npt.DTypeLike] = {1: np.float32, 3: np.int8, 10: np.float16}

#: Operators that read their second input in an order of their own, if it is constant.
PACKING = frozenset({"MatMulIntegerToFloat"})

#: A graph is cut behind one of these: all that goes on from there is what it puts out.
_CUT_BEHIND = "SkipLayerNormalization"

#: What reads a matrix as it lies takes it by this name if others have it packed.
_UNPACKED = "{name}.unpacked"


@dataclass(frozen=True, slots=True)
class WeightInput:
    """An input that takes its values from `offset` on in the weights file."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    offset: int


@dataclass(frozen=True, slots=True)
class Graph:
    """A serialised ONNX model and those of its inputs that are weights.

    `carried_in` and `carried_out` are what one part of a graph hands to the next:
    [rows, tokens, hidden] float32.
    """

    model: bytes
    weights: tuple[WeightInput, ...]
    carried_in: tuple[str, ...] = ()
    carried_out: tuple[str, ...] = ()


def unpacked(model: bytes) -> Graph:
    """`model` with all weights that lie in its file as inputs.

    Raises whatever onnx raises for bytes that are no model.
    """
    proto = _read(model)
    weights = _weights_as_inputs(proto.graph, keep=set())
    return Graph(proto.SerializeToString(), weights)


def in_parts(model: bytes) -> tuple[Graph, ...]:
    """`model` with those weights as inputs that onnxruntime does not pack, in two parts.

    The parts have about as much to be packed, so that two threads are done at the same time. A
    graph that cannot be cut comes in one. Raises whatever onnx raises.
    """
    proto = _read(model)
    graph = proto.graph
    matrices = {node.input[1] for node in graph.node if node.op_type in PACKING}
    sizes = {t.name: math.prod(t.dims) for t in graph.initializer if t.name in matrices}
    weights = {weight.name: weight for weight in _weights_as_inputs(graph, keep=matrices)}
    cut = _middle(graph.node, sizes)
    if cut is None:
        return (Graph(proto.SerializeToString(), tuple(weights.values())),)
    nodes = list(graph.node)
    carried = tuple(name for name in nodes[cut].output if name)
    return (
        _part(proto, nodes[: cut + 1], weights, carried_out=carried),
        _part(proto, nodes[cut + 1 :], weights, carried_in=carried),
    )


def _read(model: bytes) -> Any:
    # Imported here: not all engines load models on a CPU, and it takes 50 ms.
    import onnx

    return onnx.load_model_from_string(model)


def _weights_as_inputs(graph: Any, keep: set[str]) -> tuple[WeightInput, ...]:
    """Changes `graph`. keep: what stays in it; who does not pack that gets an input besides."""
    from onnx import TensorProto, helper

    inputs = []
    for tensor in [t for t in graph.initializer if t.data_location == TensorProto.EXTERNAL]:
        name = tensor.name
        if name not in keep:
            graph.initializer.remove(tensor)
        else:
            name = _UNPACKED.format(name=name)
            if not _rename(graph, tensor.name, name):
                continue
        place = {entry.key: entry.value for entry in tensor.external_data}
        shape = tuple(tensor.dims)
        graph.input.append(helper.make_tensor_value_info(name, tensor.data_type, shape))
        dtype = np.dtype(_TYPES[tensor.data_type])
        inputs.append(WeightInput(name, dtype, shape, int(place["offset"])))
    return tuple(inputs)


def _rename(graph: Any, old: str, new: str) -> bool:
    """Let whatever does not pack `old` read `new`; False if nothing does."""
    found = False
    for node in graph.node:
        for number, name in enumerate(node.input):
            if name == old and not (node.op_type in PACKING and number == 1):
                node.input[number] = new
                found = True
    return found


def _middle(nodes: Sequence[Any], sizes: Mapping[str, int]) -> int | None:
    """The node behind which about half of `sizes` is still to come."""
    done, total, best, least = 0, sum(sizes.values()), None, sum(sizes.values())
    for number, node in enumerate(nodes):
        done += sizes.get(node.input[1], 0) if node.op_type in PACKING else 0
        imbalance = abs(total - 2 * done)
        if node.op_type == _CUT_BEHIND and imbalance < least:
            best, least = number, imbalance
    return best


def _part(
    whole: Any,
    nodes: Sequence[Any],
    weights: Mapping[str, WeightInput],
    *,
    carried_in: tuple[str, ...] = (),
    carried_out: tuple[str, ...] = (),
) -> Graph:
    from onnx import TensorProto, helper

    graph = whole.graph
    read = {name for node in nodes for name in node.input}
    made = {name for node in nodes for name in node.output}

    def carried(names: tuple[str, ...]) -> list[Any]:
        return [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names]

    part = helper.make_graph(
        nodes,
        graph.name,
        [one for one in graph.input if one.name in read] + carried(carried_in),
        [one for one in graph.output if one.name in made] + carried(carried_out),
        [one for one in graph.initializer if one.name in read],
    )
    model = helper.make_model(part, opset_imports=whole.opset_import, ir_version=whole.ir_version)
    inputs = tuple(weight for name, weight in weights.items() if name in read)
    return Graph(model.SerializeToString(), inputs, carried_in, carried_out)


class MappedFile:
    """A file in memory: pages that the kernel shares with others and can drop."""

    def __init__(self, path: Path) -> None:
        """Raises `OSError`."""
        self._path = path
        # Open for as long as this lives: the number of a folder that is gone goes to another one.
        self._folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        weakref.finalize(self, os.close, self._folder)
        file = os.open(path.name, os.O_RDONLY, dir_fd=self._folder)
        try:
            self._map = mmap.mmap(file, 0, prot=mmap.PROT_READ)
            self._identity = _identity(os.fstat(file))
        finally:
            os.close(file)
        # All of it will be read soon: in one go, not in the order in which a step comes by.
        self._map.madvise(mmap.MADV_WILLNEED)
        self._address = np.frombuffer(self._map, np.uint8).ctypes.data

    def address_of(self, weight: WeightInput) -> int:
        """Raises `ValueError` if it does not lie in the file: beyond it there is other memory."""
        size = math.prod(weight.shape) * weight.dtype.itemsize
        inside = 0 <= weight.offset <= len(self._map) - size
        if not inside or min(weight.shape, default=0) < 0:
            raise ValueError(f"{weight.name} lies outside of {self._path.name}")
        return self._address + weight.offset

    def is_current(self) -> bool:
        """Whether the path has led to this very file ever since, not to one that replaced it.

        A file can be replaced and come back, as a hard link of itself; its folder does not.
        """
        try:
            folder, file = self._path.parent.stat(), self._path.stat()
        except OSError:
            return False
        opened = os.fstat(self._folder)
        return (_identity(folder), _identity(file)) == (_identity(opened), self._identity)

    def drop_pages(self) -> None:
        """Take no memory until it is read again: then from the page cache, or from the disk."""
        self._map.madvise(mmap.MADV_DONTNEED)


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino
