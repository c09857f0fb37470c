"""Where models run: what was asked for, held against onnxruntime and NVIDIA's driver."""

from __future__ import annotations

import ctypes

from gpt2serve.engine.sessions import cuda_is_available
from gpt2serve.errors import DeviceUnavailable

#: The driver's own library. It is there wherever the driver is, in containers and WSL too.
_DRIVER = "libcuda.so.1"


def choose_device(wanted: str) -> str:
    """cpu or cuda, of auto, cpu or cuda.

    Raises `DeviceUnavailable` for cuda that cannot be had: at start, not with the first model.
    """
    if wanted == "auto":
        return "cuda" if cuda_is_available() and why_no_gpu() is None else "cpu"
    if wanted == "cuda":
        if not cuda_is_available():
            raise DeviceUnavailable(
                "CUDA was asked for, but this onnxruntime has no CUDA support: replace it with "
                "onnxruntime-gpu as docs/gpu.md says, or use --device cpu."
            )
        if (reason := why_no_gpu()) is not None:
            raise DeviceUnavailable(f"CUDA was asked for, but {reason}. Or use --device cpu.")
    return wanted


def why_no_gpu() -> str | None:
    """What keeps this process from a GPU, with what to do; None if it may use one."""
    try:
        driver = ctypes.CDLL(_DRIVER)
    except OSError:
        return (
            f"NVIDIA's driver is not here ({_DRIVER}): install it, or give the container its GPU "
            "(docker run --gpus all)"
        )
    count = ctypes.c_int()
    status = driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count))
    if status:
        return f"NVIDIA's driver answers with error {status}: see what nvidia-smi says"
    if count.value == 0:
        return "NVIDIA's driver has no GPU for this process: see CUDA_VISIBLE_DEVICES"
    return None
