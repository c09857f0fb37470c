"""Where models run, with drivers that answer as NVIDIA's does where something is missing."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from gpt2serve.engine import device
from gpt2serve.errors import DeviceUnavailable


@dataclass
class Driver:
    """libcuda, as far as it is asked."""

    gpus: int = 1
    status: int = 0

    def cuInit(self, flags: int) -> int:
        assert flags == 0
        return self.status

    def cuDeviceGetCount(self, count: Any) -> int:
        count._obj.value = self.gpus
        return 0


Machine = Callable[..., None]


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    def make(driver: Driver | None, *, built_for_cuda: bool = True) -> None:
        def load(name: str) -> Driver:
            assert name == "libcuda.so.1"
            if driver is None:
                raise OSError(f"{name}: cannot open shared object file")
            return driver

        monkeypatch.setattr(ctypes, "CDLL", load)
        monkeypatch.setattr(device, "cuda_is_available", lambda: built_for_cuda)

    return make


@pytest.mark.parametrize(
    ("driver", "reason"),
    [
        (None, r"driver is not here \(libcuda.so.1\)"),
        (Driver(status=100), "error 100"),  # CUDA_ERROR_NO_DEVICE
        (Driver(gpus=0), "CUDA_VISIBLE_DEVICES"),
    ],
)
def test_cuda_that_cannot_be_had_is_told_with_the_reason(
    machine: Machine, driver: Driver | None, reason: str
) -> None:
    machine(driver)
    with pytest.raises(DeviceUnavailable, match=reason):
        device.choose_device("cuda")
    assert device.choose_device("auto") == "cpu"


def test_cuda_is_taken_where_it_is(machine: Machine) -> None:
    machine(Driver(gpus=2))
    assert device.choose_device("cuda") == device.choose_device("auto") == "cuda"
    assert device.choose_device("cpu") == "cpu"


def test_onnxruntime_must_have_been_built_for_it(machine: Machine) -> None:
    machine(Driver(), built_for_cuda=False)
    with pytest.raises(DeviceUnavailable, match="onnxruntime-gpu"):
        device.choose_device("cuda")
    assert device.choose_device("auto") == "cpu"
