"""Ways to read columns of an int8 matrix (docs/decisions/0009-costs-of-a-step.md).

    python -m benchmarks.experiments.embedding

The token embedding lies as the LM head wants it, [768, 50257], so a token is a column: one byte in
each of 768 places. Times each way in turn in one process, after other data went through the
caches, and prints milliseconds for the tokens of a step: the median of `--rounds` rounds.
"""

from __future__ import annotations

import argparse
import statistics
import time

import numpy as np
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

HIDDEN, VOCABULARY = 768, 50257
SIZES = (1, 16, 64, 512)
RANDOM = np.random.default_rng(0)
_OTHER_BYTES = 32 * 1024 * 1024


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    ort.set_global_thread_pool_sizes(args.threads, 1)
    matrix = RANDOM.integers(-127, 128, size=(HIDDEN, VOCABULARY), dtype=np.int8)
    sessions = {
        name: _session(name, matrix) for name in ("Gather", "flat Gather", "GatherElements")
    }
    print(f"{'ms, tokens:':20}" + "".join(f"{size:>8}" for size in SIZES))
    rows = [_times(sessions, matrix, size, args.rounds) for size in SIZES]
    for name in sessions:
        print(f"{name:20}" + "".join(f"{1e3 * row[name]:8.2f}" for row in rows))


def _times(
    sessions: dict[str, ort.InferenceSession],
    matrix: np.ndarray,
    size: int,
    rounds: int,
) -> dict[str, float]:
    """Median seconds of each; that all give the same is checked."""
    other = np.ones(_OTHER_BYTES, dtype=np.uint8)
    seconds: dict[str, list[float]] = {name: [] for name in sessions}
    for _ in range(rounds):
        ids = RANDOM.integers(VOCABULARY, size=(size, 1))
        wanted = matrix[:, ids[:, 0]].T
        for name, session in sessions.items():
            other += 1  # the matrix is not in the caches after a step
            begin = time.perf_counter()
            made = session.run(None, {"ids": ids})[0]
            seconds[name].append(time.perf_counter() - begin)
            assert np.array_equal(made.reshape(size, HIDDEN), wanted), name
    return {name: statistics.median(values) for name, values in seconds.items()}


def _session(name: str, matrix: np.ndarray) -> ort.InferenceSession:
    node = helper.make_node
    constants = {
        "end": np.array([-1]),
        "column": np.array([HIDDEN, 1]),
        "rows": np.arange(HIDDEN) * VOCABULARY,
        "matrix": matrix.reshape(-1) if name == "flat Gather" else matrix,
    }
    nodes = {
        "Gather": [
            node("Gather", ["matrix", "ids"], ["columns"], axis=1),
            node("Transpose", ["columns"], ["tokens"], perm=[1, 2, 0]),
        ],
        "flat Gather": [
            node("Unsqueeze", ["ids", "end"], ["unsqueezed"]),
            node("Add", ["unsqueezed", "rows"], ["places"]),
            node("Gather", ["matrix", "places"], ["tokens"]),
        ],
        "GatherElements": [
            node("Reshape", ["ids", "end"], ["flat"]),
            node("Expand", ["flat", "column"], ["places"]),
            node("GatherElements", ["matrix", "places"], ["columns"], axis=1),
            node("Transpose", ["columns"], ["tokens"], perm=[1, 0]),
        ],
    }[name]
    graph = helper.make_graph(
        nodes,
        "embedding",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, ["B", "S"])],
        [helper.make_tensor_value_info("tokens", TensorProto.INT8, None)],
        [numpy_helper.from_array(value, key) for key, value in constants.items()],
    )
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.use_per_session_threads = False
    options.log_severity_level = 3
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    return ort.InferenceSession(model.SerializeToString(), options)


if __name__ == "__main__":
    main()
