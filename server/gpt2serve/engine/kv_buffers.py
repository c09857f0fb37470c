"""The memory that holds keys and values, on the CPU or on a CUDA device.

One buffer is a block of `2 * layers` tensors [slots, heads, length, head_size]: keys and
values of layer 0, of layer 1, and so on. A step reads and writes the first rows of each
tensor in place; nothing is copied except when a prompt joins, a sequence moves into a freed
slot, or the block grows.
"""

from __future__ import annotations

import ctypes
from abc import ABC, abstractmethod
from typing import Any

import numpy as np
import numpy.typing as npt

from gpt2serve.engine.kv_cache import KVShape
from gpt2serve.engine.memory import HostMemory
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
    def release(self) -> None:
        """Give the memory back; the buffers must not be used any more."""

    @abstractmethod
    def copy(self, source: KVBuffers, from_slot: int, to_slots: list[int], tokens: int) -> None:
        """Copy the first `tokens` tokens of a sequence; `source` may be self."""


class HostKVBuffers(KVBuffers):
    """In this process's memory."""

    device = "cpu"

    def __init__(
        self, dimensions: Dimensions, dtype: str, shape: KVShape, memory: HostMemory
    ) -> None:
        super().__init__(dimensions, dtype, shape)
        axes = (self.tensors, shape.slots, dimensions.heads, shape.length, dimensions.head_size)
        self._memory = memory
        self._block = memory.take(self.tensors * self.tensor_bytes)
        self.array: npt.NDArray[Any] = np.ndarray(axes, dtype=dtype, buffer=self._block)

    @property
    def address(self) -> int:
        return self.array.ctypes.data

    def release(self) -> None:
        del self.array
        self._memory.give(self._block)

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

    def release(self) -> None:
        if self._pointer:
            self._cuda.cudaFree(self._pointer)
            self._pointer = ctypes.c_void_p()

    def __del__(self) -> None:
        if hasattr(self, "_pointer"):
            self.release()

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
