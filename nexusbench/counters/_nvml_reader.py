"""NVML calls with their errors as reasons: one reading of a GPU, and GPM windows."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from nexusbench.core.errors import CounterError
from nexusbench.core.units import NS_PER_MS
from nexusbench.counters.base import CounterSample, why

# Samples closer than 100 ms give invalid numbers on Hopper (NVML's documentation; NVIDIA on DCGM
# issue 310); some room for the jitter of the thread.
GPM_WINDOW_NS = 120 * NS_PER_MS
# NVML_GPM_METRIC_SM_UTIL, SM_OCCUPANCY, ANY_TENSOR_UTIL, DRAM_BW_UTIL (nvml.h), all in percent.
GPM_METRICS = {
    "nvml.sm_util": 2,
    "nvml.sm_occupancy": 3,
    "nvml.tensor_util": 5,
    "nvml.dram_util": 10,
}
_GPM_VERSION = 1
_POWER_INSTANT = 186  # NVML_FI_DEV_POWER_INSTANT; nvmlDeviceGetPowerUsage is a mean over a second
# nvmlClocksEventReason* of nvml.h, formerly nvmlClocksThrottleReason*, with the same bits.
CLOCK_EVENTS = {
    "gpu_idle": (0x1, "the GPU idled"),
    "set_clocks": (0x2, "application clocks had been set"),
    "sw_power_cap": (0x4, "the power cap held the clocks down"),
    "hw_slowdown": (0x8, "the hardware had slowed down (heat, power brake)"),
    "sync_boost": (0x10, "a boost group held the clocks together"),
    "sw_thermal_slowdown": (0x20, "the driver held the clocks down for heat"),
    "hw_thermal_slowdown": (0x40, "the hardware held the clocks down for heat"),
    "hw_power_brake": (0x80, "an external power brake was on"),
    "display_clock": (0x100, "a display held the clocks"),
}
_EVENT_CALLS = (
    "nvmlDeviceGetCurrentClocksEventReasons", "nvmlDeviceGetCurrentClocksThrottleReasons",
)  # fmt: skip
_PROCESS_CALLS = (
    "nvmlDeviceGetComputeRunningProcesses_v3", "nvmlDeviceGetComputeRunningProcesses_v2",
)  # fmt: skip
_EVENT_NAMES = tuple(f"nvml.clock_event.{name}" for name in CLOCK_EVENTS)
_CLOCK_SM, _CLOCK_MEMORY = 1, 2  # nvmlClockType_t
# NVML_VALUE_NOT_AVAILABLE as unsigned 32 and 64 bits, also as a float
_NOT_AVAILABLE = (float(2**32 - 1), float(2**64 - 1))
_FIELDS = ("dVal", "uiVal", "ulVal", "ullVal", "sllVal", "siVal", "usVal")  # by nvmlValueType_t
# nvmlReturn_t: what stays so, and after what no call works any more
_NOT_SUPPORTED, _NO_PERMISSION, _NO_FUNCTION = 3, 4, 13
_LASTING = {
    _NOT_SUPPORTED: "this GPU or driver does not offer it",
    _NO_PERMISSION: "not permitted: the driver keeps it for root",
    _NO_FUNCTION: "this driver is too old for it",
}
_FATAL = {1: "NVML was shut down", 9: "the driver is gone", 15: "the GPU is lost",
          16: "the GPU needs a reset"}  # fmt: skip


def load_nvml() -> Any:
    """The module of nvidia-ml-py, initialised; end with ``nvmlShutdown``.

    Raises CounterError: no module, the wrong one, no driver, not permitted.
    """
    try:
        nvml: Any = import_module("pynvml")
    except ImportError:
        raise CounterError(
            'nvidia-ml-py is not installed; pip install "nexusbench[cuda]"'
        ) from None
    if hasattr(nvml, "__path__") or not hasattr(nvml, "nvmlGpmSampleAlloc"):
        raise CounterError(
            "the module pynvml comes from the retired package of that name, not from nvidia-ml-py "
            "(12.560 or newer); pip uninstall pynvml, then pip install -U nvidia-ml-py"
        )
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as error:
        code = getattr(error, "value", None)
        if code in (nvml.NVML_ERROR_LIBRARY_NOT_FOUND, nvml.NVML_ERROR_DRIVER_NOT_LOADED):
            raise CounterError(f"no NVIDIA driver ({error})") from None
        if code == _NO_PERMISSION:
            raise CounterError(f"not permitted to talk to the NVIDIA driver ({error})") from None
        raise CounterError(f"NVML does not start: {error}") from None
    return nvml


def find_gpu(nvml: Any, device: str) -> Any:
    """The handle of NVML's GPU number, or UUID, ``device``. Raises CounterError if none is."""
    try:
        if device.isdecimal():
            return nvml.nvmlDeviceGetHandleByIndex(int(device))
        return nvml.nvmlDeviceGetHandleByUUID(device)
    except nvml.NVMLError as error:
        raise CounterError(f"no GPU '{device}': {error}") from None


class NvmlReader:
    """Reads one GPU. A metric that cannot be read is None, and ``reasons`` says why.

    What the driver does not offer or permit is asked once and not again.
    """

    def __init__(self, nvml: Any, handle: Any) -> None:
        self._nvml, self._handle = nvml, handle
        self.reasons: dict[str, str] = {}
        self._off: set[str] = set()
        self._older: dict[str, int] = {}  # functions of which the driver has the older one only

    def forget(self) -> None:
        """Drop the reasons of passing failures, for a new run."""
        self.reasons = {name: self.reasons[name] for name in self.reasons if name in self._off}

    def read(self) -> dict[str, float | None]:
        """One reading; energy is the driver's running total. Raises CounterError if the GPU is
        lost.
        """
        events = self._ask(_EVENT_NAMES, self._events)
        values: dict[str, float | None] = {
            "nvml.power": self._ask(("nvml.power",), self._power),
            "nvml.energy": self._ask(("nvml.energy",), self._energy),
            "nvml.sm_clock": self._ask(("nvml.sm_clock",), lambda: self._clock(_CLOCK_SM)),
            "nvml.memory_clock": self._ask(
                ("nvml.memory_clock",), lambda: self._clock(_CLOCK_MEMORY)
            ),
            "nvml.memory_used": self._ask(("nvml.memory_used",), self._memory),
            "nvml.other_processes": self._ask(("nvml.other_processes",), self._others),
        }
        for name, (bit, _) in CLOCK_EVENTS.items():
            held = None if events is None else float(bool(int(events) & bit))
            values[f"nvml.clock_event.{name}"] = held
        return values

    def _ask(self, names: tuple[str, ...], call: Callable[[], float]) -> float | None:
        if names[0] in self._off:
            return None
        try:
            return call()
        except Exception as error:
            # Also what is no NVMLError: nvidia-ml-py has other exceptions, and may gain some.
            code = getattr(error, "value", None)
            if code in _FATAL:
                raise CounterError(f"{_FATAL[code]} ({error})") from error
            if code in _LASTING:
                self._off.update(names)
            reason = _LASTING.get(code, why(error)) if isinstance(code, int) else why(error)
            self.reasons.update(dict.fromkeys(names, reason))
            return None

    def _call(self, function: str, *arguments: Any) -> Any:
        found = getattr(self._nvml, function, None)
        if found is None:
            raise self._nvml.NVMLError(_NO_FUNCTION)
        return found(self._handle, *arguments)

    def _given(self, value: object, what: str, *, zero: bool = False) -> float:
        """A number that the driver did give. Raises CounterError for the values that stand for
        none: the largest unsigned integers, negative ones, and 0 where it cannot be.
        """
        number = float(value)  # type: ignore[arg-type]
        if number in _NOT_AVAILABLE or not 0 <= number < math.inf:
            raise CounterError(f"the driver gave no {what}")
        if number == 0 and not zero:
            raise CounterError(f"the driver says 0 for {what}, which cannot be")
        return number

    def _power(self) -> float:
        (field,) = self._call("nvmlDeviceGetFieldValues", [_POWER_INSTANT])
        if field.nvmlReturn != 0:
            raise self._nvml.NVMLError(field.nvmlReturn)
        value = getattr(field.value, _FIELDS[field.valueType])
        return self._given(value, "power") / 1e3  # mW

    def _energy(self) -> float:
        total = self._call("nvmlDeviceGetTotalEnergyConsumption")
        return self._given(total, "energy") / 1e3  # mJ

    def _clock(self, kind: int) -> float:
        return self._given(self._call("nvmlDeviceGetClockInfo", kind), "clock") * 1e6  # MHz

    def _memory(self) -> float:
        memory = self._call("nvmlDeviceGetMemoryInfo")
        total = self._given(memory.total, "memory in all")
        used = self._given(memory.used, "memory in use", zero=True)
        if used > total:
            raise CounterError("the driver says that more memory is in use than there is")
        return used

    def _events(self) -> float:
        return self._given(self._call_either(_EVENT_CALLS), "clock events", zero=True)

    def _others(self) -> float:
        """Processes other than this one that have a compute context on the GPU."""
        running = {process.pid for process in self._call_either(_PROCESS_CALLS)}
        if os.getpid() in running:
            return len(running) - 1
        # In a container the driver may list ids of the host, this process's own among them.
        known = Path("/proc/self").exists()
        if known and any(not Path(f"/proc/{pid}").exists() for pid in running):
            raise CounterError("the driver lists process ids of another namespace (a container?)")
        return len(running)

    def _call_either(self, functions: tuple[str, str]) -> Any:
        """The newer function, or if the driver lacks it the older one."""
        place = self._older.get(functions[0], 0)
        try:
            return self._call(functions[place])
        except self._nvml.NVMLError as error:
            if error.value != _NO_FUNCTION or place == 1:
                raise
            self._older[functions[0]] = 1
            return self._call(functions[1])


class GpmWindows:
    """GPM metrics (Hopper and newer) over windows of 120 ms or more: call ``poll`` now and then.

    ``reason`` says why there are none, or is empty.
    """

    def __init__(self, nvml: Any, handle: Any) -> None:
        self._nvml, self._handle = nvml, handle
        self._buffers: list[Any] = []
        self._since_ns = 0
        self.reasons: dict[str, str] = {}
        self.reason = self._unsupported()

    def begin(self, now_ns: int) -> None:
        """Open the first window. Raises CounterError if the driver refuses."""
        if self.reason:
            return
        try:
            while len(self._buffers) < 2:
                self._buffers.append(self._nvml.nvmlGpmSampleAlloc())
            self._nvml.nvmlGpmSampleGet(self._handle, self._buffers[0])
        except self._nvml.NVMLError as error:
            self.reason = _LASTING.get(error.value, str(error))
        self._since_ns = now_ns

    def poll(self, now_ns: int) -> CounterSample | None:
        """The window that ends now, and open the next; None while it is shorter than 120 ms."""
        if self.reason or now_ns - self._since_ns < GPM_WINDOW_NS:
            return None
        nvml, (first, second) = self._nvml, self._buffers
        values: dict[str, float | None] = dict.fromkeys(GPM_METRICS)
        try:
            nvml.nvmlGpmSampleGet(self._handle, second)
            request = nvml.c_nvmlGpmMetricsGet_t()
            request.version, request.numMetrics = _GPM_VERSION, len(GPM_METRICS)
            request.sample1, request.sample2 = first, second
            for place, identifier in enumerate(GPM_METRICS.values()):
                request.metrics[place].metricId = identifier
            nvml.nvmlGpmMetricsGet(request)
            for place, name in enumerate(GPM_METRICS):
                values[name] = self._share(name, request.metrics[place])
        except nvml.NVMLError as error:
            if error.value in _FATAL:
                raise CounterError(f"{_FATAL[error.value]} ({error})") from error
            self.reasons.update(dict.fromkeys(GPM_METRICS, str(error)))
        sample = CounterSample(self._since_ns, now_ns, values)
        self._buffers.reverse()
        self._since_ns = now_ns
        return sample

    def close(self) -> None:
        """Free the sample buffers; twice is fine."""
        while self._buffers:
            self._nvml.nvmlGpmSampleFree(self._buffers.pop())

    def _share(self, name: str, metric: Any) -> float | None:
        if metric.nvmlReturn != 0:
            code = int(metric.nvmlReturn)
            self.reasons[name] = _LASTING.get(code, str(self._nvml.NVMLError(code)))
        elif not 0 <= metric.value < math.inf:
            self.reasons[name] = "the driver gave no number"
        else:
            return float(metric.value) / 100
        return None

    def _unsupported(self) -> str:
        try:
            supported = self._nvml.nvmlGpmQueryDeviceSupport(self._handle).isSupportedDevice
        except self._nvml.NVMLError as error:
            if error.value == _NOT_SUPPORTED:
                return "GPM needs a GPU of the Hopper generation or newer"
            return _LASTING.get(error.value, str(error))
        return "" if supported else "GPM needs a GPU of the Hopper generation or newer"
