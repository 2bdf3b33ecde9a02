"""A driver library in Python: the real nvidia-ml-py runs on top of it, no GPU needed.

Its methods get what ctypes passes to libnvidia-ml.so: byref objects, whose ``_obj`` they fill in.
"""

from __future__ import annotations

import ctypes
import os
import time
from typing import Any

import pynvml
import pytest

WATTS = 431.0
NOT_SUPPORTED, NO_PERMISSION = pynvml.NVML_ERROR_NOT_SUPPORTED, pynvml.NVML_ERROR_NO_PERMISSION
NO_FUNCTION, GPU_IS_LOST = pynvml.NVML_ERROR_FUNCTION_NOT_FOUND, pynvml.NVML_ERROR_GPU_IS_LOST
GPM = {2: 61.5, 3: 18.2, 5: 30.1, 10: 44.0}


def address(pointer: Any) -> int:
    return ctypes.cast(pointer, ctypes.c_void_p).value or 0


class FakeDriver:
    """``fails``: function -> code that it returns; ``missing``: functions that it lacks."""

    def __init__(self) -> None:
        self.fails: dict[str, int] = {}
        self.missing: set[str] = set()
        self.calls: dict[str, int] = {}
        self.events = 0x4
        self.hopper = True
        self.gpm_fails: dict[int, int] = {}
        self.pids = [os.getpid()]
        # One entry for each GPU: UUID, name, instances of it that compute (MIG), watts.
        self.gpus: list[tuple[str, str, bool, float]] = [("GPU-1", "NVIDIA H100", False, WATTS)]
        self.memory = (150 * 10**9, 40 * 10**9)  # in all and in use
        self.megahertz = {1: 1755, 2: 3201}
        self.milliwatts: int | None = None
        self.open = 0
        self.buffers: dict[int, float] = {}
        self.freed = 0
        self.joules = lambda: time.perf_counter() * WATTS

    def __getattr__(self, function: str) -> Any:
        if not function.startswith("nvml") or function in self.missing:
            raise AttributeError(function)
        body = getattr(type(self), "do_" + function.removesuffix("_v2").removesuffix("_v3"), None)
        if body is None:
            raise AttributeError(function)

        def call(*arguments: Any) -> int:
            self.calls[function] = self.calls.get(function, 0) + 1
            code = self.fails.get(function, 0)
            return code or body(self, *arguments) or 0

        return call

    def do_nvmlInitWithFlags(self, flags: int) -> None:
        self.open += 1

    def do_nvmlShutdown(self) -> None:
        self.open -= 1

    def do_nvmlErrorString(self, code: Any) -> bytes:
        return b"error"

    def do_nvmlDeviceGetCount(self, count: Any) -> None:
        count._obj.value = len(self.gpus)

    def do_nvmlDeviceGetHandleByIndex(self, index: Any, handle: Any) -> int | None:
        number = getattr(index, "value", index)
        if not 0 <= number < len(self.gpus):
            return int(pynvml.NVML_ERROR_INVALID_ARGUMENT)
        ctypes.cast(handle, ctypes.POINTER(ctypes.c_void_p))[0] = 0x1000 + number
        return None

    def do_nvmlDeviceGetHandleByUUID(self, uuid: Any, handle: Any) -> int | None:
        for number, gpu in enumerate(self.gpus):
            if uuid.value == gpu[0].encode():
                return self.do_nvmlDeviceGetHandleByIndex(number, handle)
        return int(pynvml.NVML_ERROR_NOT_FOUND)

    def do_nvmlDeviceGetUUID(self, handle: Any, text: Any, size: Any) -> None:
        text.value = self.gpu(handle)[0].encode()

    def do_nvmlDeviceGetName(self, handle: Any, text: Any, size: Any) -> None:
        text.value = self.gpu(handle)[1].encode()

    def do_nvmlDeviceGetMigMode(self, handle: Any, current: Any, pending: Any) -> None:
        current._obj.value = pending._obj.value = int(self.gpu(handle)[2])

    def gpu(self, handle: Any) -> tuple[str, str, bool, float]:
        return self.gpus[address(handle) - 0x1000]

    def do_nvmlDeviceGetFieldValues(self, handle: Any, count: Any, fields: Any) -> None:
        for field in fields._obj:
            field.nvmlReturn = 0 if field.fieldId == 186 else NOT_SUPPORTED
            field.valueType = pynvml.NVML_VALUE_TYPE_UNSIGNED_INT
            watts = int(self.gpu(handle)[3] * 1e3)
            field.value.uiVal = watts if self.milliwatts is None else self.milliwatts

    def do_nvmlDeviceGetTotalEnergyConsumption(self, handle: Any, millijoules: Any) -> None:
        millijoules._obj.value = int(self.joules() * 1e3)

    def do_nvmlDeviceGetClockInfo(self, handle: Any, kind: Any, megahertz: Any) -> None:
        megahertz._obj.value = self.megahertz[getattr(kind, "value", kind)]

    def do_nvmlDeviceGetCurrentClocksEventReasons(self, handle: Any, bits: Any) -> None:
        bits._obj.value = self.events

    do_nvmlDeviceGetCurrentClocksThrottleReasons = do_nvmlDeviceGetCurrentClocksEventReasons

    def do_nvmlDeviceGetMemoryInfo(self, handle: Any, memory: Any) -> None:
        memory._obj.total, memory._obj.used = self.memory

    def do_nvmlDeviceGetComputeRunningProcesses(self, handle: Any, count: Any, room: Any) -> int:
        if room is None:
            count._obj.value = len(self.pids)
            return int(pynvml.NVML_ERROR_INSUFFICIENT_SIZE) if self.pids else 0
        count._obj.value = len(self.pids)
        for place, pid in enumerate(self.pids):
            room[place].pid = pid
        return 0

    def do_nvmlGpmQueryDeviceSupport(self, handle: Any, support: Any) -> None:
        support._obj.isSupportedDevice = int(self.hopper)

    def do_nvmlGpmSampleAlloc(self, sample: Any) -> None:
        place = 0x2000 + 16 * len(self.buffers)
        self.buffers[place] = 0.0
        ctypes.cast(sample, ctypes.POINTER(ctypes.c_void_p))[0] = place

    def do_nvmlGpmSampleFree(self, sample: Any) -> None:
        self.freed += 1

    def do_nvmlGpmSampleGet(self, handle: Any, sample: Any) -> None:
        self.buffers[address(sample)] = time.perf_counter()

    def do_nvmlGpmMetricsGet(self, request: Any) -> int | None:
        wanted = request._obj
        window = self.buffers[address(wanted.sample2)] - self.buffers[address(wanted.sample1)]
        if wanted.version != 1 or window < 0.1:
            return int(pynvml.NVML_ERROR_INVALID_ARGUMENT)
        for metric in wanted.metrics[: wanted.numMetrics]:
            metric.nvmlReturn = self.gpm_fails.get(metric.metricId, 0)
            metric.value = GPM[metric.metricId]
        return None


def install(monkeypatch: pytest.MonkeyPatch) -> FakeDriver:
    """Put it in the place of libnvidia-ml.so until the test ends."""
    driver = FakeDriver()
    monkeypatch.setattr(pynvml, "nvmlLib", driver)
    monkeypatch.setattr(pynvml, "_nvmlGetFunctionPointer_cache", {})
    return driver
