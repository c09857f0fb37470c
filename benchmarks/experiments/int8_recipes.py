"""Ways to multiply by int8 weights in onnxruntime, for docs/decisions/0003-int8-per-token.md.

    python -m benchmarks.experiments.int8_recipes

Builds the projections of a 124M GPT-2 (12 layers of four, and the LM head; no attention, no
norms) once per recipe, with random weights, and times them in turn in one process. Prints
milliseconds for a step over all of them: the median of `--rounds` rounds.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

LAYERS, HIDDEN, VOCABULARY = 12, 768, 50257
SHAPES = ((768, 2304), (768, 768), (768, 3072), (3072, 768))
SIZES = (1, 5, 16, 32)
FUSED = "com.microsoft"
RANDOM = np.random.default_rng(0)


class Graph:
    """A chain of projections in one recipe."""

    def __init__(self, recipe: str, block: int = 0) -> None:
        self.nodes: list[object] = []
        self.weights: list[object] = []
        self.block = block
        project: Callable[[str, int, int], str] = getattr(self, f"_{recipe}")
        for name, value in (("axis", [-1]), ("mid", 128), ("one", 1), ("step", 1 / 127)):
            kind = {"axis": np.int64, "mid": np.uint8}.get(name, np.float32)
            self._weight(name, np.array(value, dtype=kind))
        x = "x"
        for _ in range(LAYERS):
            outputs = [project(x, *shape) for shape in SHAPES[:3]]
            x = project(outputs[2], *SHAPES[3])
            for unused in outputs[:2]:  # keep every projection in the graph's result
                x = self._op("Add", [x, self._op("ReduceMax", [unused, "axis"], keepdims=1)])
        self.output = project(x, HIDDEN, VOCABULARY)

    def session(self) -> ort.InferenceSession:
        info = helper.make_tensor_value_info
        graph = helper.make_graph(
            self.nodes,
            "projections",
            [info("x", TensorProto.FLOAT, ["B", HIDDEN])],
            [info(self.output, TensorProto.FLOAT, ["B", VOCABULARY])],
            self.weights,
        )
        opsets = [helper.make_opsetid("", 21), helper.make_opsetid(FUSED, 1)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.use_per_session_threads = False
        options.log_severity_level = 3
        return ort.InferenceSession(model.SerializeToString(), options)

    def _op(self, op: str, inputs: list[str], domain: str = "", **attributes: object) -> str:
        name = f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [name], domain=domain, **attributes))
        return name

    def _weight(self, name: str, value: np.ndarray) -> str:
        self.weights.append(numpy_helper.from_array(value, name))
        return name

    def _int8(self, rows: int, columns: int) -> tuple[str, str]:
        number = len(self.weights)
        matrix = RANDOM.integers(-127, 128, size=(rows, columns), dtype=np.int8)
        scales = np.full(columns, 1e-4, dtype=np.float32)
        return self._weight(f"w{number}", matrix), self._weight(f"s{number}", scales)

    def _quantised(self, x: str) -> tuple[str, str]:
        peak = self._op("ReduceMax", [self._op("Abs", [x]), "axis"], keepdims=1)
        unit = self._op("Div", [x, peak])
        return self._op("QuantizeLinear", [unit, "step", "mid"]), peak

    def _cast_and_scale(self, x: str, rows: int, columns: int) -> str:
        weight, scale = self._int8(rows, columns)
        quantised, peak = self._quantised(x)
        product = self._op("MatMulInteger", [quantised, weight, "mid"])
        product = self._op("Cast", [product], to=TensorProto.FLOAT)
        return self._op("Mul", [self._op("Mul", [product, peak]), scale])

    def _dequantise(self, x: str, rows: int, columns: int) -> str:
        weight, scale = self._int8(rows, columns)
        quantised, peak = self._quantised(x)
        product = self._op("MatMulInteger", [quantised, weight, "mid"])
        return self._op("Mul", [self._op("DequantizeLinear", [product, scale], axis=1), peak])

    def _to_float(self, x: str, rows: int, columns: int) -> str:
        weight, scale = self._int8(rows, columns)
        quantised, peak = self._quantised(x)
        inputs = [quantised, weight, "one", scale, "mid"]
        return self._op("Mul", [self._op("MatMulIntegerToFloat", inputs, FUSED), peak])

    def _blocks(self, x: str, rows: int, columns: int) -> str:
        number, blocks = len(self.weights), rows // self.block
        shape = (columns, blocks, self.block)
        matrix = self._weight(f"w{number}", RANDOM.integers(0, 256, size=shape, dtype=np.uint8))
        scales = self._weight(f"s{number}", np.full(columns * blocks, 1e-4, dtype=np.float32))
        sizes = {"K": rows, "N": columns, "bits": 8, "block_size": self.block}
        return self._op("MatMulNBits", [x, matrix, scales], FUSED, accuracy_level=4, **sizes)


RECIPES: dict[str, Callable[[], Graph]] = {
    "MatMulInteger, Cast, Mul, Mul": lambda: Graph("cast_and_scale"),
    "MatMulInteger, DequantizeLinear, Mul": lambda: Graph("dequantise"),
    "MatMulIntegerToFloat, Mul": lambda: Graph("to_float"),
    "MatMulNBits, blocks of 32": lambda: Graph("blocks", 32),
    "MatMulNBits, blocks of 128": lambda: Graph("blocks", 128),
    "MatMulNBits, blocks of 256": lambda: Graph("blocks", 256),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    ort.set_global_thread_pool_sizes(args.threads, 1)
    sessions = {name: make().session() for name, make in RECIPES.items()}
    times: dict[tuple[str, int], list[float]] = {}
    for round_number in range(args.rounds + 1):
        for name, session in sessions.items():
            for rows in SIZES:
                seconds = _time(session, rows)
                if round_number:  # the first round warms up
                    times.setdefault((name, rows), []).append(seconds)
    print(f"{'ms per step, rows:':40}" + "".join(f"{rows:>8}" for rows in SIZES))
    for name in RECIPES:
        row = (1e3 * statistics.median(times[name, rows]) for rows in SIZES)
        print(f"{name:40}" + "".join(f"{milliseconds:8.2f}" for milliseconds in row))


def _time(session: ort.InferenceSession, rows: int) -> float:
    x = RANDOM.normal(size=(rows, HIDDEN)).astype(np.float32)
    session.run(None, {"x": x})  # the caches are this session's from here on
    begin = time.perf_counter()
    for _ in range(5):
        session.run(None, {"x": x})
    return (time.perf_counter() - begin) / 5


if __name__ == "__main__":
    main()
