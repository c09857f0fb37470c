"""What the machine's memory and arithmetic allow, measured, and what a token of a model needs."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common.model import MODEL

_BANDWIDTH_BYTES = 512 * 1024 * 1024
_BANDWIDTH_TRIES = 5

#: Rows, inputs and outputs of the product: everything together is 0.8 MB, which fits into a
#: core's L2 cache, and each side is long enough for the fastest kernels.
_INT8_SHAPE = (256, 1024, 256)
_INT8_TRIES, _INT8_REPEATS = 15, 20


def read_bandwidth(threads: int) -> float:
    """Bytes a second that `threads` threads read from memory together; the best of several tries.

    Each takes the maximum of its part of an array that fits into no cache. One vector comparison
    for each vector read is far less work than the read, and numpy lets go of the interpreter
    lock, so the reads are what takes the time. Touching the pages first keeps page faults out.
    """
    parts = np.array_split(np.ones(_BANDWIDTH_BYTES // 4, dtype=np.float32), threads)
    with ThreadPoolExecutor(threads) as pool:
        seconds = _fastest(_BANDWIDTH_TRIES, lambda: list(pool.map(np.max, parts)))
    return _BANDWIDTH_BYTES / seconds


def int8_rate(threads: int) -> float:
    """Multiply-accumulates a second, uint8 by int8 into int32; the best of several tries.

    Each thread multiplies matrices of its own that stay in its core's cache, with onnxruntime's
    MatMulInteger on one thread. It has kernels for the processor's int8 instructions (VNNI, AMX,
    dot product); of those at hand it was the fastest at this size.
    """
    rows, inputs, outputs = _INT8_SHAPE
    products = [_product() for _ in range(threads)]

    def repeat(product: Callable[[], object]) -> None:
        for _ in range(_INT8_REPEATS):
            product()

    with ThreadPoolExecutor(threads) as pool:
        seconds = _fastest(_INT8_TRIES, lambda: list(pool.map(repeat, products)))
    return threads * _INT8_REPEATS * rows * inputs * outputs / seconds


def _fastest(tries: int, work: Callable[[], object]) -> float:
    """Seconds."""
    best = float("inf")
    for _ in range(tries):
        begin = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - begin)
    return best


def _product() -> Callable[[], object]:
    """A product of two matrices, on one thread, that allocates nothing."""
    import onnxruntime

    rows, inputs, outputs = _INT8_SHAPE
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(_int8_graph(), options)
    binding = session.io_binding()
    left = np.random.default_rng(0).integers(0, 256, size=(rows, inputs), dtype=np.uint8)
    made = np.empty((rows, outputs), dtype=np.int32)
    # onnxruntime keeps the addresses only; the function below keeps the arrays.
    binding.bind_input("x", "cpu", 0, np.uint8, left.shape, left.ctypes.data)
    binding.bind_output("y", "cpu", 0, np.int32, made.shape, made.ctypes.data)

    def run(_arrays: Any = (left, made)) -> object:
        return session.run_with_iobinding(binding)

    return run


def _int8_graph() -> bytes:
    from onnx import TensorProto, helper, numpy_helper

    rows, inputs, outputs = _INT8_SHAPE
    weights = np.random.default_rng(0).integers(-127, 128, size=(inputs, outputs), dtype=np.int8)
    graph = helper.make_graph(
        [helper.make_node("MatMulInteger", ["x", "w", "middle"], ["y"])],
        "product",
        [helper.make_tensor_value_info("x", TensorProto.UINT8, [rows, inputs])],
        [helper.make_tensor_value_info("y", TensorProto.INT32, [rows, outputs])],
        [
            numpy_helper.from_array(weights, "w"),
            numpy_helper.from_array(np.array(128, dtype=np.uint8), "middle"),
        ],
    )
    opsets = [helper.make_opsetid("", 21)]
    content: bytes = helper.make_model(
        graph, opset_imports=opsets, ir_version=10
    ).SerializeToString()
    return content


def weight_bytes_per_token(store: Path, precision: str) -> int:
    """Bytes of weights that one decode step must read: all but the unused position embeddings.

    The token embedding counts in full, because it is the LM head too.
    """
    from gpt2serve.package import WEIGHTS_FILE

    manifest = _manifest(store, precision)
    size = manifest.dimensions
    positions = size.context_length * size.hidden_size * (4 if precision == "fp32" else 2)
    return int(manifest.files[WEIGHTS_FILE].bytes - positions)


def macs_per_token(store: Path, precision: str) -> int:
    """Multiply-accumulates with weights that a token needs, LM head included, attention not."""
    size = _manifest(store, precision).dimensions
    layer = size.hidden_size * (4 * size.hidden_size + 2 * size.inner_size)
    return int(size.layers * layer + size.vocab_size * size.hidden_size)


def head_macs(store: Path, precision: str) -> int:
    """The LM head's share of `macs_per_token`."""
    size = _manifest(store, precision).dimensions
    return int(size.vocab_size * size.hidden_size)


def _manifest(store: Path, precision: str) -> Any:
    from gpt2serve.package import package_path, read_manifest

    return read_manifest(package_path(store, MODEL, "cpu", precision))
