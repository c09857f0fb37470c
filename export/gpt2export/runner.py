"""Runs a package with onnxruntime, the way the server does, for verification."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpt2export import graph
from gpt2export.layout import DType
from gpt2serve.package import GRAPH_FILE, Dimensions, KVLayout

Ids = NDArray[np.int64]
Logits = NDArray[np.float32]

#: 3 is "error": onnxruntime warns where it inserts casts, which is what the fp16 check is for.
_LOG_ERRORS = 3


class PackageRunner:
    """One package and KV buffers for `rows` sequences of `length` tokens, on the CPU."""

    def __init__(
        self,
        package: Path,
        dimensions: Dimensions,
        kv_dtype: DType,
        *,
        rows: int,
        length: int,
        threads: int,
    ) -> None:
        self._session = _session(package / GRAPH_FILE, threads)
        self._dimensions = dimensions
        self.length = length
        shape = (rows, dimensions.heads, length, dimensions.head_size)
        kv, count = KVLayout(), range(dimensions.layers)
        self._pairs = [
            (past.format(layer=layer), present.format(layer=layer), np.zeros(shape, kv_dtype))
            for layer in count
            for past, present in zip(kv.past_names, kv.present_names, strict=True)
        ]
        self._lengths = np.zeros(rows, np.int64)

    def prefill(self, prompts: Sequence[Sequence[int]]) -> Logits:
        """Run the prompts as one padded batch; logits [rows, vocab] after each one's last token."""
        self._lengths = np.array([len(prompt) for prompt in prompts], np.int64)
        ids = np.zeros((len(prompts), self._lengths.max()), np.int64)
        for row, prompt in enumerate(prompts):
            ids[row, : len(prompt)] = prompt
        positions = np.broadcast_to(np.arange(ids.shape[1], dtype=np.int64), ids.shape)
        return self._run(ids, positions, self._lengths[:, None] - 1)

    def step(self, tokens: NDArray[np.integer[Any]]) -> Logits:
        """Append one token to each row; logits [rows, vocab] after it."""
        ids = tokens.astype(np.int64).reshape(-1, 1)
        positions = self._lengths[:, None].copy()
        self._lengths = self._lengths + 1
        return self._run(ids, positions, np.zeros_like(ids))

    def _run(self, ids: Ids, positions: Ids, last: Ids) -> Logits:
        binding = self._session.io_binding()
        feeds = {
            graph.IDS: ids,
            graph.POSITIONS: np.ascontiguousarray(positions),
            graph.SEQLENS: (self._lengths - 1).astype(np.int32),
            graph.TOTAL: np.array(self._lengths.max(), np.int32),
            graph.LAST: last,
        }
        for name, value in feeds.items():
            binding.bind_cpu_input(name, value)
        for past, present, buffer in self._pairs:
            used = buffer[: len(ids)]
            place = (used.dtype, used.shape, used.ctypes.data)  # in place: one memory for both
            binding.bind_input(past, "cpu", 0, *place)
            binding.bind_output(present, "cpu", 0, *place)
        logits = np.empty((len(ids), self._dimensions.vocab_size), np.float32)
        binding.bind_output(graph.LOGITS, "cpu", 0, logits.dtype, logits.shape, logits.ctypes.data)
        self._session.run_with_iobinding(binding)
        return logits


def _session(path: Path, threads: int) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = threads
    # Threads that spin for work take the processor from whoever shares the machine.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = _LOG_ERRORS
    # Processors without a dot-product instruction would saturate uint8 by int8 sums; this makes
    # onnxruntime take the exact way there, and changes nothing elsewhere.
    options.add_session_config_entry("session.x64quantprecision", "1")
    try:
        return onnxruntime.InferenceSession(path, options)
    except RuntimeError as error:
        # With an engine in this process all sessions must use the thread pool that it shares.
        if "use_per_session_threads" not in str(error):
            raise
        options.use_per_session_threads = False
        return onnxruntime.InferenceSession(path, options)
