"""A thin hand on onnx.helper: nodes in order, named outputs, weights that lie in a file."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from gpt2export.layout import DType, TensorSpec

ELEMENT_TYPE: dict[DType, int] = {
    "int8": TensorProto.INT8,
    "float16": TensorProto.FLOAT16,
    "float32": TensorProto.FLOAT,
}

OPSET = 21
IR_VERSION = 10
FUSED = "com.microsoft"


class GraphBuilder:
    """Collects one graph. Names come from a counter, so the same calls give the same bytes."""

    def __init__(self) -> None:
        self._nodes: list[onnx.NodeProto] = []
        self._initializers: list[onnx.TensorProto] = []
        self._inputs: list[onnx.ValueInfoProto] = []
        self._outputs: list[onnx.ValueInfoProto] = []

    def node(self, op: str, inputs: list[str], *, domain: str = "", **attributes: Any) -> str:
        """Add a node of one output and return that output's name."""
        output = f"v{len(self._nodes)}"  # short: names are most of the graph's bytes
        self.node_into(op, inputs, [output], domain=domain, **attributes)
        return output

    def node_into(
        self, op: str, inputs: list[str], outputs: list[str], *, domain: str = "", **attributes: Any
    ) -> None:
        """Add a node whose outputs have the given names; '' leaves an optional output out."""
        name = f"n{len(self._nodes)}"
        self._nodes.append(
            helper.make_node(op, inputs, outputs, name=name, domain=domain, **attributes)
        )

    def constant(self, name: str, value: NDArray[Any] | np.generic) -> str:
        """Embed a tiny constant in the graph itself."""
        self._initializers.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def external(self, specs: Iterable[TensorSpec], location: str) -> None:
        """Declare weights that lie in the file `location`, beside the graph."""
        for spec in specs:
            tensor = TensorProto(
                name=spec.name,
                data_type=ELEMENT_TYPE[spec.dtype],
                dims=spec.shape,
                data_location=TensorProto.EXTERNAL,
            )
            for key, value in (
                ("location", location),
                ("offset", str(spec.offset)),
                ("length", str(spec.nbytes)),
            ):
                tensor.external_data.add(key=key, value=value)
            self._initializers.append(tensor)

    def input(self, name: str, element: int, shape: list[int | str]) -> str:
        self._inputs.append(helper.make_tensor_value_info(name, element, shape))
        return name

    def output(self, name: str, element: int, shape: list[int | str]) -> None:
        self._outputs.append(helper.make_tensor_value_info(name, element, shape))

    def serialize(self, name: str) -> bytes:
        graph = helper.make_graph(
            self._nodes, name, self._inputs, self._outputs, self._initializers
        )
        model = helper.make_model(
            graph,
            producer_name="gpt2export",
            opset_imports=[helper.make_opsetid("", OPSET), helper.make_opsetid(FUSED, 1)],
            ir_version=IR_VERSION,
        )
        data: bytes = model.SerializeToString(deterministic=True)
        return data
