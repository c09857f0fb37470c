"""Running one model's graph. The only module that imports onnxruntime.

A `Runner` is a loaded model. A `Batch` is the memory that a step works in: KV buffers, small
input arrays and the logits, all bound to the session once for each number of rows, because
binding some fifty tensors anew costs as much as sampling does.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from gpt2serve.engine.kv_buffers import CudaKVBuffers, HostKVBuffers, KVBuffers
from gpt2serve.engine.kv_cache import KVShape
from gpt2serve.engine.memory import HostMemory
from gpt2serve.errors import CorruptPackage, DeviceUnavailable
from gpt2serve.package import GRAPH_FILE, Manifest

Floats = npt.NDArray[np.float32]

_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
_thread_pool_lock = threading.Lock()
_thread_pool_size: int | None = None


def share_thread_pool(threads: int) -> int:
    """Let all sessions of this process compute with one pool of `threads` threads.

    Without it each session has a pool of its own, and their spinning threads fight for the
    cores. onnxruntime allows this once per process: the first engine decides. Returns the
    size in force.
    """
    global _thread_pool_size
    with _thread_pool_lock:
        if _thread_pool_size is None:
            ort.set_global_thread_pool_sizes(threads, 1)
            _thread_pool_size = threads
        return _thread_pool_size


def cuda_is_available() -> bool:
    """Whether this onnxruntime was built for CUDA. A GPU may still be missing."""
    return _PROVIDERS["cuda"] in ort.get_available_providers()


class Runner:
    """A model that is loaded and can compute. Not thread-safe."""

    def __init__(self, session: ort.InferenceSession, manifest: Manifest, device: str) -> None:
        self.manifest = manifest
        self.device = device
        self._session = session
        names = manifest.kv
        layers = range(manifest.dimensions.layers)
        self._past = [name.format(layer=n) for n in layers for name in names.past_names]
        self._present = [name.format(layer=n) for n in layers for name in names.present_names]

    @classmethod
    def load(cls, package: Path, manifest: Manifest, *, device: str, threads: int) -> Runner:
        """Load a package; takes about a millisecond per megabyte.

        Raises `DeviceUnavailable` if CUDA is asked for and cannot be used, and
        `CorruptPackage` if onnxruntime refuses the graph.
        """
        share_thread_pool(threads)
        try:
            session = ort.InferenceSession(
                package / GRAPH_FILE, _session_options(), providers=[_PROVIDERS[device]]
            )
        except Exception as error:  # onnxruntime's errors have no common base
            raise CorruptPackage(f"{package}: onnxruntime cannot load it ({error}).") from error
        if session.get_providers()[0] != _PROVIDERS[device]:
            # onnxruntime falls back to the CPU without raising.
            raise DeviceUnavailable(
                "CUDA was asked for, but onnxruntime cannot use it here. Check the driver and "
                "that onnxruntime-gpu is the only onnxruntime installed, or use --device cpu."
            )
        runner = cls(session, manifest, device)
        runner.warm_up()
        return runner

    def warm_up(self) -> None:
        """One step, so that the first request does not pay for what happens once."""
        self.prefill(self.new_batch(KVShape(1, 1), HostMemory()), [[0]], 0)

    def new_batch(self, shape: KVShape, memory: HostMemory) -> Batch:
        """Room for a batch. Raises `OSError` or `MemoryError` without memory."""
        dimensions, dtype = self.manifest.dimensions, self.manifest.kv.dtype
        kv: KVBuffers
        if self.device == "cuda":
            kv = CudaKVBuffers(dimensions, dtype, shape)
        else:
            kv = HostKVBuffers(dimensions, dtype, shape, memory)
        return Batch(kv, dimensions.vocab_size, memory)

    def prefill(self, batch: Batch, prompts: Sequence[Sequence[int]], past: int) -> Floats:
        """Read tokens into slots 0, 1, ...; returns the logits after each row's last token.

        prompts: the tokens to read, at most as many rows as `batch` has slots; rows are
        padded on the right to the longest. past: number of tokens that slot 0 holds already;
        if it is not 0 there must be one row only, as GroupQueryAttention demands.
        """
        lengths = np.array([len(prompt) for prompt in prompts], dtype=np.int32)
        longest = int(lengths.max())
        inputs = StepInputs(len(prompts), longest)
        inputs.ids[:] = 0
        for row, prompt in enumerate(prompts):
            inputs.ids[row, : len(prompt)] = prompt
        # Padding reads token 0 at the row's last position; nothing looks at what it yields.
        positions = past + np.minimum(np.arange(longest), lengths[:, None] - 1)
        inputs.set(positions, past + lengths, past + longest, lengths - 1)
        return self._run(batch, inputs, self._bind(batch, inputs), len(prompts))

    def decode(self, batch: Batch, tokens: Sequence[int], lengths: npt.NDArray[np.int32]) -> Floats:
        """One token for each of the slots 0, 1, ...; returns logits [rows, vocabulary].

        tokens: what each row reads; lengths: tokens of each row, this one included.
        """
        rows = len(tokens)
        inputs = batch.decode_inputs.first(rows)
        inputs.ids[:, 0] = tokens
        inputs.set(lengths[:, None] - 1, lengths, int(lengths.max()), 0)
        binding = batch.bindings.get(rows)
        if binding is None:
            binding = batch.bindings[rows] = self._bind(batch, inputs)
        elif self.device != "cpu":
            _bind_inputs(binding, inputs)  # the values were copied to the device when bound
        return self._run(batch, inputs, binding, rows)

    def _bind(self, batch: Batch, inputs: StepInputs) -> Any:
        binding = self._session.io_binding()
        _bind_inputs(binding, inputs)
        rows = inputs.rows
        kv = batch.kv
        shape = (rows, kv.dimensions.heads, kv.shape.length, kv.dimensions.head_size)
        for n, (past, present) in enumerate(zip(self._past, self._present, strict=True)):
            at = kv.address + n * kv.tensor_bytes
            binding.bind_input(past, kv.device, 0, kv.dtype, shape, at)
            binding.bind_output(present, kv.device, 0, kv.dtype, shape, at)
        logits = batch.logits[:rows]
        binding.bind_output("logits", "cpu", 0, np.float32, logits.shape, logits.ctypes.data)
        return binding

    def _run(self, batch: Batch, inputs: StepInputs, binding: Any, rows: int) -> Floats:
        del inputs  # named so that its memory lives until the run is over
        self._session.run_with_iobinding(binding)
        logits: Floats = batch.logits[:rows]
        return logits


class Batch:
    """What a step works in."""

    def __init__(self, kv: KVBuffers, vocabulary: int, memory: HostMemory) -> None:
        self.kv = kv
        self._memory = memory
        self._block = memory.take(kv.shape.slots * vocabulary * 4)
        self.logits: Floats = np.ndarray(
            (kv.shape.slots, vocabulary), dtype=np.float32, buffer=self._block
        )
        self.decode_inputs = StepInputs(kv.shape.slots, 1)
        #: Bindings of decode steps, by number of rows.
        self.bindings: dict[int, Any] = {}

    @property
    def shape(self) -> KVShape:
        return self.kv.shape

    def release(self) -> None:
        """Give the memory back. Logits that a step returned are part of it."""
        self.bindings.clear()
        del self.logits
        self.kv.release()
        self._memory.give(self._block)


class StepInputs:
    """The small inputs of a step over `rows` rows of `tokens` tokens each."""

    def __init__(self, rows: int, tokens: int) -> None:
        self.rows = rows
        self.ids = np.empty((rows, tokens), dtype=np.int64)
        self.positions = np.empty((rows, tokens), dtype=np.int64)
        self.last_valid = np.empty(rows, dtype=np.int32)
        self.total = np.zeros((), dtype=np.int32)
        self.last_index = np.zeros((rows, 1), dtype=np.int64)

    def first(self, rows: int) -> StepInputs:
        """The same memory, for fewer rows."""
        view = object.__new__(StepInputs)
        view.rows = rows
        view.total = self.total
        for name in ("ids", "positions", "last_valid", "last_index"):
            setattr(view, name, getattr(self, name)[:rows])
        return view

    def set(self, positions: Any, lengths: Any, total: int, last_index: Any) -> None:
        """lengths: valid tokens of each row with those read now; total: their maximum."""
        self.positions[:] = positions
        self.last_valid[:] = lengths - 1
        self.total[...] = total
        self.last_index[:, 0] = last_index

    def named(self) -> dict[str, npt.NDArray[Any]]:
        return {
            "input_ids": self.ids,
            "position_ids": self.positions,
            "seqlens_k": self.last_valid,
            "total_sequence_length": self.total,
            "last_index": self.last_index,
        }


def _bind_inputs(binding: Any, inputs: StepInputs) -> None:
    for name, array in inputs.named().items():
        binding.bind_input(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)


def _session_options() -> ort.SessionOptions:
    options = ort.SessionOptions()
    # Packages are fused already; looking for more takes a second and finds nothing.
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.use_per_session_threads = False
    # The arena never gives memory back, and is no faster here (docs/benchmarks.md).
    options.enable_cpu_mem_arena = False
    # Processors without VNNI add uint8 by int8 products in 16 bits, which saturates; this makes
    # them use the exact way.
    options.add_session_config_entry("session.x64quantprecision", "1")
    options.log_severity_level = 3
    return options
