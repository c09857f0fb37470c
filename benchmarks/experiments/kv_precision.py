"""Attention over an int8 KV cache in onnxruntime, for docs/decisions/0009-costs-of-a-step.md.

    python -m benchmarks.experiments.kv_precision

Twelve `GroupQueryAttention` nodes as in a 124M GPT-2 and nothing else: one decode step, with keys
and values in float32, and in int8 with one scale a tensor or one a channel. Times each in turn in
one process and prints milliseconds: the median of `--rounds` rounds.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import numpy as np
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

LAYERS, HEADS, HEAD_SIZE = 12, 12, 64
#: Sequences, and tokens of each in the cache.
CASES = ((1, 64), (1, 250), (16, 16), (16, 64), (16, 250), (64, 64))
KINDS = ("float32", "int8, PER_TENSOR", "int8, PER_CHANNEL")
RANDOM = np.random.default_rng(0)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    ort.set_global_thread_pool_sizes(args.threads, 1)
    sessions = {kind: _session(kind) for kind in KINDS}
    print(f"{'ms, sequences x tokens:':24}" + "".join(f"{f'{b} x {n}':>10}" for b, n in CASES))
    rows = [_times(sessions, *case, args.rounds) for case in CASES]
    for kind in KINDS:
        print(f"{kind:24}" + "".join(f"{1e3 * row[kind]:10.2f}" for row in rows))


def _times(
    sessions: dict[str, ort.InferenceSession], batch: int, tokens: int, rounds: int
) -> dict[str, float]:
    bound = {kind: _bind(session, kind, batch, tokens) for kind, session in sessions.items()}
    seconds: dict[str, list[float]] = {kind: [] for kind in sessions}
    for _ in range(rounds):
        for kind, (binding, _memory) in bound.items():
            begin = time.perf_counter()
            sessions[kind].run_with_iobinding(binding)
            seconds[kind].append(time.perf_counter() - begin)
    return {kind: statistics.median(values) for kind, values in seconds.items()}


def _session(kind: str) -> ort.InferenceSession:
    info, element = helper.make_tensor_value_info, _element(kind)
    nodes, inputs, outputs, constants = [], [], [], []
    scaling: dict[str, Any] = {}
    if kind != "float32":
        scheme = kind.split(", ")[1]
        shape = (1,) if scheme == "PER_TENSOR" else (HEADS, 1, HEAD_SIZE)
        constants.append(numpy_helper.from_array(np.full(shape, 0.02, np.float32), "scale"))
        scaling = {"k_quant_type": scheme, "v_quant_type": scheme, "kv_cache_bit_width": 8}
    cache = ["B", HEADS, "P", HEAD_SIZE]
    for layer in range(LAYERS):
        past, present = ([f"{when}.{layer}.{kv}" for kv in "kv"] for when in ("past", "present"))
        scales = ["", "", "", "", "", "scale", "scale"] if scaling else []
        node = helper.make_node(
            "GroupQueryAttention",
            ["x", "", "", *past, "seqlens_k", "total", *scales],
            [f"y.{layer}", *present],
            domain="com.microsoft",
            num_heads=HEADS,
            kv_num_heads=HEADS,
            **scaling,
        )
        nodes.append(node)
        inputs += [info(name, element, cache) for name in past]
        outputs += [info(name, element, cache) for name in present]
        outputs.append(info(f"y.{layer}", TensorProto.FLOAT, None))
    inputs.append(info("x", TensorProto.FLOAT, ["B", "S", 3 * HEADS * HEAD_SIZE]))
    inputs += [info("seqlens_k", TensorProto.INT32, ["B"]), info("total", TensorProto.INT32, [])]
    graph = helper.make_graph(nodes, "attention", inputs, outputs, constants)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    options = ort.SessionOptions()
    options.use_per_session_threads = False
    options.enable_cpu_mem_arena = False
    options.log_severity_level = 3
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    return ort.InferenceSession(model.SerializeToString(), options)


def _element(kind: str) -> int:
    return int(TensorProto.FLOAT if kind == "float32" else TensorProto.INT8)


def _bind(
    session: ort.InferenceSession, kind: str, batch: int, tokens: int
) -> tuple[Any, list[np.ndarray]]:
    """A binding, and the memory that must live as long as it."""
    dtype = np.dtype("float32" if kind == "float32" else "int8")
    room = (batch, HEADS, 1 << tokens.bit_length(), HEAD_SIZE)
    small = {
        "x": RANDOM.normal(size=(batch, 1, 3 * HEADS * HEAD_SIZE)).astype(np.float32),
        "seqlens_k": np.full(batch, tokens - 1, np.int32),
        "total": np.array(tokens, np.int32),
    }
    binding, memory = session.io_binding(), list(small.values())
    for name, array in small.items():
        binding.bind_input(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
    for layer in range(LAYERS):
        for kv in "kv":
            array = (RANDOM.normal(size=room) * (1 if kind == "float32" else 30)).astype(dtype)
            at = ("cpu", 0, dtype, room, array.ctypes.data)
            binding.bind_input(f"past.{layer}.{kv}", *at)
            binding.bind_output(f"present.{layer}.{kv}", *at)
            memory.append(array)
        y = np.empty((batch, 1, HEADS * HEAD_SIZE), np.float32)
        binding.bind_output(f"y.{layer}", "cpu", 0, y.dtype, y.shape, y.ctypes.data)
        memory.append(y)
    return binding, memory


if __name__ == "__main__":
    main()
