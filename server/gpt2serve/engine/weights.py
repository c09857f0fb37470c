"""A package's weights as inputs of its graph, mapped from their file.

onnxruntime takes a hundred milliseconds to make a model ready, nearly all of it for copying each
matrix into the order in which the processor reads it fastest. A graph whose weights are inputs
needs none of that: it is made once for all models of a shape, and a model's weights are handed
in with each step, from where the file is mapped (docs/decisions/0011-cold-start.md).
"""

from __future__ import annotations

import mmap
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

#: ONNX's names for the element types that weights have.
_TYPES: dict[int, npt.DTypeLike] = {1: np.float32, 3: np.int8, 10: np.float16}

#: Operators that read their second input in an order of their own, if it is constant.
PACKING = frozenset({"MatMulIntegerToFloat"})

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
    """A serialised ONNX model and those of its inputs that are weights."""

    model: bytes
    weights: tuple[WeightInput, ...]


def weights_as_inputs(model: bytes, *, packed: bool) -> Graph:
    """Turn the weights of `model` that lie in a file into inputs.

    packed: leave those in the graph that onnxruntime packs. Raises whatever onnx raises for
    bytes that are no model.
    """
    # Imported here: half of the engine's users never load a model on a CPU, and it takes 50 ms.
    import onnx
    from onnx import helper

    proto = onnx.load_model_from_string(model)
    graph = proto.graph
    constant = {n.input[1] for n in graph.node if n.op_type in PACKING} if packed else set()
    inputs = []
    for tensor in [t for t in graph.initializer if t.data_location == onnx.TensorProto.EXTERNAL]:
        name = tensor.name
        if name not in constant:
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
    return Graph(proto.SerializeToString(), tuple(inputs))


def _rename(graph: Any, old: str, new: str) -> bool:
    """Let whatever does not pack `old` read `new`; False if nothing does."""
    found = False
    for node in graph.node:
        for number, name in enumerate(node.input):
            if name == old and not (node.op_type in PACKING and number == 1):
                node.input[number] = new
                found = True
    return found


class MappedFile:
    """A file in memory: pages that the kernel shares with others and can drop."""

    def __init__(self, path: Path) -> None:
        """Raises `OSError`."""
        self._path = path
        with path.open("rb") as file:
            self._map = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
            self._identity = _identity(os.fstat(file.fileno()))
        self.address = np.frombuffer(self._map, np.uint8).ctypes.data

    def is_current(self) -> bool:
        """Whether the path still leads to this very file, not to one that replaced it."""
        try:
            return _identity(self._path.stat()) == self._identity
        except OSError:
            return False

    def drop_pages(self) -> None:
        """Take no memory until it is read again: then from the page cache, or from the disk."""
        self._map.madvise(mmap.MADV_DONTNEED)


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino
