"""The memory that holds keys and values, on the CPU or on a CUDA device.

One buffer is a block of `2 * layers` tensors [slots, heads, length, head_size]: keys and
values of layer 0, of layer 1, and so on. A step reads and writes the first rows of each
tensor in place; nothing is copied except when a prompt joins, a sequence moves into a freed
slot, or the block grows.
"""

from __future__ import annotations

import ctypes
import mmap
from abc import ABC, abstractmethod
from typing import Any

import numpy as np
import numpy.typing as npt

from gpt2serve.engine.kv_cache import KVShape
from gpt2serve.errors import DeviceUnavailable
from gpt2serve.package import Dimensions

CUDA_LIBRARIES = ("libcudart.so.13", "libcudart.so.12", "libcudart.so")
CUDA_MEMCPY_DEFAULT = 4


def bytes_per_token(dimensions: Dimensions, dtype: str) -> int:
    """Keys and values of one token in all layers, in bytes."""
    return 2 * dimensions.layers * dimensions.hidden_size * np.dtype(dtype).itemsize


class KVBuffers(ABC):
    """Room for `shape.slots` sequences of `shape.length` tokens each."""

    device: str

    def __init__(self, dimensions: Dimensions, dtype: str, shape: KVShape) -> None:
        self.dimensions = dimensions
        self.dtype = np.dtype(dtype)
        self.shape = shape
        self.tensors = 2 * dimensions.layers
        row = shape.length * dimensions.head_size * self.dtype.itemsize
        self.slot_bytes = dimensions.heads * row
        self.tensor_bytes = shape.slots * self.slot_bytes

    @property
    @abstractmethod
    def address(self) -> int:
        """Where tensor 0 begins; tensor n begins `n * tensor_bytes` later."""

    @abstractmethod
    def copy(self, source: KVBuffers, from_slot: int, to_slots: list[int], tokens: int) -> None:
        """Copy the first `tokens` tokens of a sequence; `source` may be self."""


class HostKVBuffers(KVBuffers):
    """In this process's memory. Pages that are never written take no memory.

    The block is mapped without huge pages: numpy's own allocations ask for them, and then
    the first token of each row zeroes two megabytes (353 ms instead of 18 for 32 slots of a
    124M model, see docs/decisions/0004-kv-cache.md).
    """

    device = "cpu"

    def __init__(self, dimensions: Dimensions, dtype: str, shape: KVShape) -> None:
        super().__init__(dimensions, dtype, shape)
        self._memory = mmap.mmap(-1, self.tensors * self.tensor_bytes)
        self._memory.madvise(mmap.MADV_NOHUGEPAGE)
        self.array: npt.NDArray[Any] = np.frombuffer(self._memory, dtype=dtype).reshape(
            self.tensors, shape.slots, dimensions.heads, shape.length, dimensions.head_size
        )

    @property
    def address(self) -> int:
        return self.array.ctypes.data

    def copy(self, source: KVBuffers, from_slot: int, to_slots: list[int], tokens: int) -> None:
        assert isinstance(source, HostKVBuffers)  # noqa: S101
        rows = source.array[:, from_slot, :, :tokens]
        for slot in to_slots:
            self.array[:, slot, :, :tokens] = rows


class CudaKVBuffers(KVBuffers):
    """In the memory of CUDA device 0, through the CUDA runtime that onnxruntime has loaded."""

    device = "cuda"

    def __init__(self, dimensions: Dimensions, dtype: str, shape: KVShape) -> None:
        super().__init__(dimensions, dtype, shape)
        self._cuda = _cuda_runtime()
        pointer = ctypes.c_void_p()
        self._check(
            self._cuda.cudaMalloc(
                ctypes.byref(pointer), ctypes.c_size_t(self.tensors * self.tensor_bytes)
            )
        )
        self._pointer = pointer

    @property
    def address(self) -> int:
        return self._pointer.value or 0

    def copy(self, source: KVBuffers, from_slot: int, to_slots: list[int], tokens: int) -> None:
        token_bytes = self.dimensions.head_size * self.dtype.itemsize
        for tensor in range(self.tensors):
            begin = source.address + tensor * source.tensor_bytes + from_slot * source.slot_bytes
            for slot in to_slots:
                end = self.address + tensor * self.tensor_bytes + slot * self.slot_bytes
                # One row of the two-dimensional copy is one head.
                self._check(
                    self._cuda.cudaMemcpy2D(
                        ctypes.c_void_p(end),
                        ctypes.c_size_t(self.shape.length * token_bytes),
                        ctypes.c_void_p(begin),
                        ctypes.c_size_t(source.shape.length * token_bytes),
                        ctypes.c_size_t(tokens * token_bytes),
                        ctypes.c_size_t(self.dimensions.heads),
                        ctypes.c_int(CUDA_MEMCPY_DEFAULT),
                    )
                )

    def __del__(self) -> None:
        pointer = getattr(self, "_pointer", None)
        if pointer is not None:
            self._cuda.cudaFree(pointer)

    @staticmethod
    def _check(status: int) -> None:
        if status:
            raise MemoryError(f"the CUDA runtime answered with error {status}")


def _cuda_runtime() -> ctypes.CDLL:
    for name in CUDA_LIBRARIES:
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    raise DeviceUnavailable("The CUDA runtime library (libcudart) was not found.")
