"""onnxruntime's sessions, and the threads that they share. The only module that imports it."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import TypeAlias

import onnxruntime as ort

from gpt2serve.errors import DeviceUnavailable

Session: TypeAlias = ort.InferenceSession

_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
_WEIGHTS_FOLDER = "session.model_external_initializers_file_folder_path"

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


def open_session(model: Path | bytes, device: str, *, weights_in: Path | None = None) -> Session:
    """A session for the graph in a file, or for a serialised one.

    `weights_in`: the folder of the weights file, for a graph that is not in a file itself.
    Raises what onnxruntime raises for what is no graph; its errors have no common base.
    """
    options = _session_options()
    if weights_in is not None:
        options.add_session_config_entry(_WEIGHTS_FOLDER, str(weights_in))
    return Session(model, options, providers=[_PROVIDERS[device]])


def check_device(session: Session, device: str) -> None:
    """Raises `DeviceUnavailable` if onnxruntime has fallen back to the CPU, as it does silently."""
    if session.get_providers()[0] != _PROVIDERS[device]:
        raise DeviceUnavailable(
            "CUDA was asked for, but onnxruntime cannot use it here. Check the driver and "
            "that onnxruntime-gpu is the only onnxruntime installed, or use --device cpu."
        )


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
