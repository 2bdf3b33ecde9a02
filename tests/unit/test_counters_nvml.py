"""The NVML source: the real nvidia-ml-py on a fake driver library."""

from __future__ import annotations

import os
import sys
import threading
import time
import types
from itertools import pairwise

import pynvml
import pytest
from nvml_fake import (
    GPU_IS_LOST,
    NO_FUNCTION,
    NO_PERMISSION,
    NOT_SUPPORTED,
    WATTS,
    FakeDriver,
    install,
)

from nexusbench.core.errors import CounterError
from nexusbench.counters._nvml_reader import CLOCK_EVENTS, GPM_METRICS
from nexusbench.counters.base import Counters, Reading, busy, counters, summarise, throttled
from nexusbench.counters.nvml import NvmlCounters
from tests.examples import sample

EVENTS = [f"nvml.clock_event.{name}" for name in CLOCK_EVENTS]


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> FakeDriver:
    return install(monkeypatch)


def read(seconds: float = 0.0, source: NvmlCounters | None = None) -> Reading:
    with source or NvmlCounters() as nvml:
        nvml.start()
        time.sleep(seconds)
        return summarise(nvml.stop(), nvml.metrics, nvml.reasons)


@pytest.mark.slow
def test_everything_in_our_units(driver: FakeDriver) -> None:
    with NvmlCounters() as nvml:
        assert nvml.probe().ok
        assert not nvml.reasons
        begin = driver.joules()
        nvml.start()
        time.sleep(0.45)
        samples = nvml.stop()
        used = driver.joules() - begin
        reading = summarise(samples, nvml.metrics, nvml.reasons)
    assert not reading.reasons
    values = reading.values
    assert values["nvml.power"] == WATTS
    assert values["nvml.energy"] == pytest.approx(used, rel=0.1)
    assert values["nvml.sm_clock"] == 1.755e9
    assert values["nvml.memory_clock"] == 3.201e9
    assert values["nvml.memory_used"] == 40e9
    assert values["nvml.other_processes"] == 0
    assert [values[name] for name in GPM_METRICS] == pytest.approx([0.615, 0.182, 0.301, 0.44])
    assert {name for name in EVENTS if values[name]} == {"nvml.clock_event.sw_power_cap"}
    plain = [sample for sample in samples if "nvml.power" in sample.values]
    assert len(plain) >= 4  # 10 Hz, and the last one
    assert all(a.end_ns == b.start_ns for a, b in pairwise(plain))
    windows = [sample for sample in samples if "nvml.sm_util" in sample.values]
    assert len(windows) >= 2
    assert all(window.end_ns - window.start_ns >= 120_000_000 for window in windows)
    assert driver.open == 0
    assert driver.freed == 2
    assert not [thread for thread in threading.enumerate() if thread.name == "nvml"]


def test_a_second_run_starts_from_nothing(driver: FakeDriver) -> None:
    with NvmlCounters() as nvml:
        for _ in range(2):
            nvml.start()
            with pytest.raises(CounterError, match="running already"):
                nvml.start()
            assert len(nvml.stop()) == 1
        with pytest.raises(CounterError, match="not started"):
            nvml.stop()
        assert driver.open == 1


def test_a_short_period_has_no_gpm_and_says_why(driver: FakeDriver) -> None:
    reading = read()
    assert reading.values["nvml.power"] == WATTS
    for name in GPM_METRICS:
        assert reading.values[name] is None
        assert "120 ms" in reading.reasons[name]


@pytest.mark.parametrize("spelling", ["Event", "Throttle"])
def test_both_spellings_of_the_event_reasons(driver: FakeDriver, spelling: str) -> None:
    other = {"Event": "Throttle", "Throttle": "Event"}[spelling]
    driver.missing = {f"nvmlDeviceGetCurrentClocks{other}Reasons"}
    driver.events = 0x40 | 0x8 | 0x1
    reading = read()
    assert {name.rpartition(".")[2] for name in EVENTS if reading.values[name]} == {
        "gpu_idle", "hw_slowdown", "hw_thermal_slowdown",
    }  # fmt: skip
    assert throttled(reading) == (
        "thermal slowdown 100% of the time, hardware slowdown 100% of the time"
    )


def test_neither_spelling(driver: FakeDriver) -> None:
    driver.missing = {
        "nvmlDeviceGetCurrentClocksEventReasons", "nvmlDeviceGetCurrentClocksThrottleReasons",
    }  # fmt: skip
    reading = read()
    assert all(reading.values[name] is None for name in EVENTS)
    assert all("too old" in reading.reasons[name] for name in EVENTS)
    assert throttled(reading) is None


def test_the_bits_are_those_of_the_library() -> None:
    bits = {bit for bit, _ in CLOCK_EVENTS.values()}
    assert sum(bits) == pynvml.nvmlClocksEventReasonAll
    assert CLOCK_EVENTS["hw_power_brake"][0] == pynvml.nvmlClocksEventReasonHwPowerBrakeSlowdown
    assert pynvml.NVML_FI_DEV_POWER_INSTANT == 186
    assert list(GPM_METRICS.values()) == [
        pynvml.NVML_GPM_METRIC_SM_UTIL, pynvml.NVML_GPM_METRIC_SM_OCCUPANCY,
        pynvml.NVML_GPM_METRIC_ANY_TENSOR_UTIL, pynvml.NVML_GPM_METRIC_DRAM_BW_UTIL,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("code", "words"),
    [(NOT_SUPPORTED, "does not offer"), (NO_PERMISSION, "not permitted"), (NO_FUNCTION, "too old")],
)
@pytest.mark.parametrize(
    ("function", "metric"),
    [
        ("nvmlDeviceGetFieldValues", "nvml.power"),
        ("nvmlDeviceGetTotalEnergyConsumption", "nvml.energy"),
        ("nvmlDeviceGetMemoryInfo", "nvml.memory_used"),
        ("nvmlDeviceGetComputeRunningProcesses_v3", "nvml.other_processes"),
    ],
)
def test_one_call_that_fails_costs_one_metric(
    driver: FakeDriver, function: str, metric: str, code: int, words: str
) -> None:
    driver.fails = {function: code, function.replace("v3", "v2"): code}
    with NvmlCounters() as nvml:
        assert nvml.probe().ok
        assert list(nvml.reasons) == [metric]
        driver.calls.clear()
        for _ in range(2):  # also in the second run, though it is not asked again
            nvml.start()
            reading = summarise(nvml.stop(), nvml.metrics, nvml.reasons)
            assert reading.values[metric] is None
            assert words in reading.reasons[metric]
            assert set(reading.reasons) == {metric, *GPM_METRICS}
    assert function not in driver.calls


def test_a_field_that_is_not_offered(driver: FakeDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nexusbench.counters._nvml_reader._POWER_INSTANT", 185)
    reading = read()
    assert reading.values["nvml.power"] is None
    assert "does not offer" in reading.reasons["nvml.power"]


@pytest.mark.slow
def test_a_passing_failure_is_a_hole_in_a_total_only(driver: FakeDriver) -> None:
    with NvmlCounters() as nvml:
        nvml.start()
        driver.fails = dict.fromkeys(
            ["nvmlDeviceGetTotalEnergyConsumption", "nvmlDeviceGetClockInfo"],
            pynvml.NVML_ERROR_TIMEOUT,
        )
        time.sleep(0.15)
        driver.fails = {}
        time.sleep(0.2)
        reading = summarise(nvml.stop(), nvml.metrics, nvml.reasons)
    assert reading.values["nvml.sm_clock"] == 1.755e9
    assert reading.values["nvml.energy"] is None
    assert "Timeout" in reading.reasons["nvml.energy"]


def test_a_total_that_goes_backwards(driver: FakeDriver) -> None:
    with NvmlCounters() as nvml:
        nvml.start()
        driver.joules = lambda: 1.0
        reading = summarise(nvml.stop(), nvml.metrics, nvml.reasons)
    assert reading.values["nvml.energy"] is None
    assert "backwards" in reading.reasons["nvml.energy"]


@pytest.mark.parametrize("code", [0, NOT_SUPPORTED])
@pytest.mark.slow
def test_before_hopper_there_is_no_gpm(driver: FakeDriver, code: int) -> None:
    driver.hopper = False
    driver.fails = {"nvmlGpmQueryDeviceSupport": code}
    with NvmlCounters() as nvml:
        assert nvml.probe().ok
        assert set(nvml.reasons) == set(GPM_METRICS)
    reading = read(0.15)
    for name in GPM_METRICS:
        assert reading.values[name] is None
        assert "Hopper" in reading.reasons[name]
    assert reading.values["nvml.power"] == WATTS


@pytest.mark.parametrize(
    ("function", "code", "words"),
    sample(
        [
            ("nvmlGpmQueryDeviceSupport", NO_PERMISSION, "not permitted"),
            ("nvmlGpmSampleAlloc", pynvml.NVML_ERROR_MEMORY, "Memory"),
            ("nvmlGpmSampleGet", NO_PERMISSION, "not permitted"),
            ("nvmlGpmMetricsGet", NO_PERMISSION, "Permission"),
        ],
        2,
    ),
)
@pytest.mark.slow
def test_gpm_calls_that_fail(driver: FakeDriver, function: str, code: int, words: str) -> None:
    driver.fails = {function: code}
    reading = read(0.25)
    for name in GPM_METRICS:
        assert reading.values[name] is None
        assert words in reading.reasons[name]
    assert driver.open == 0


@pytest.mark.slow
def test_one_gpm_metric_that_fails(driver: FakeDriver) -> None:
    driver.gpm_fails = {10: NOT_SUPPORTED}
    reading = read(0.25)
    assert reading.values["nvml.dram_util"] is None
    assert "does not offer" in reading.reasons["nvml.dram_util"]
    assert reading.values["nvml.sm_util"] == pytest.approx(0.615)


def test_a_gpu_lost_in_mid_run_costs_the_source(driver: FakeDriver) -> None:
    with Counters([NvmlCounters()]) as group:
        group.start()
        driver.fails = {"nvmlDeviceGetClockInfo": GPU_IS_LOST}
        time.sleep(0.15)
        reading = group.stop()
        assert "the GPU is lost" in group.failed["nvml"]
    assert all(value is None for value in reading.values.values())
    assert all("the GPU is lost" in reason for reason in reading.reasons.values())
    assert driver.open == 0


def test_close_in_mid_run_ends_the_thread(driver: FakeDriver) -> None:
    nvml = NvmlCounters()
    nvml.start()
    nvml.close()
    nvml.close()
    assert driver.open == 0
    assert not [thread for thread in threading.enumerate() if thread.name == "nvml"]


def test_other_processes(driver: FakeDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    driver.pids = [os.getpid(), os.getppid()]
    reading = read()
    assert reading.values["nvml.other_processes"] == 1
    assert "1.0 other processes computed on the GPU" in str(busy(reading))
    driver.missing = {"nvmlDeviceGetComputeRunningProcesses_v3"}
    assert read().values["nvml.other_processes"] == 1
    driver.pids = []
    assert read().values["nvml.other_processes"] == 0
    driver.pids = [2**22 + 1]  # above the largest id of Linux: it cannot be one of ours
    reading = read()
    assert reading.values["nvml.other_processes"] is None
    assert "namespace" in reading.reasons["nvml.other_processes"]


def test_which_gpu(driver: FakeDriver) -> None:
    assert counters.create("nvml:device=GPU-1").probe().ok
    for unknown in ("GPU-2", "7"):
        support = counters.create(f"nvml:device={unknown}").probe()
        assert not support.ok
        assert f"no GPU '{unknown}'" in support.reason
    assert driver.open == 1  # of the one that can be used and was not closed


FOUR = [(f"GPU-{number}a", "NVIDIA H100", False, 10.0 + number) for number in range(4)]
MIXED = [("GPU-0a", "NVIDIA L40S", False, 10.0), *FOUR[1:]]
SPLIT = [*FOUR[:3], ("GPU-3a", "NVIDIA H100", True, 13.0)]
BY_BUS = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}


def power(
    driver: FakeDriver, gpus: list, environment: dict[str, str], monkeypatch, device: object = None
) -> float | str:
    """Watts read, or why there are none."""
    driver.gpus = gpus
    for name in ("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with Counters.open(["nvml"], device=device) as group:
        group.start()
        reading = group.stop()
    found = reading.values["nvml.power"]
    return reading.reasons["nvml.power"] if found is None else found


@pytest.mark.parametrize(
    ("gpus", "visible", "watts"),
    [
        (FOUR, None, 10),
        (FOUR, "3", 13),
        (FOUR, " 2 ,0", 12),
        (FOUR, "GPU-1a", 11),
        (FOUR, "gpu-2", 12),  # cut short, as CUDA allows
        (MIXED, "GPU-3a,0", 13),
        (FOUR[:1], None, 10),
    ],
)
def test_the_gpu_that_cuda_computes_on(driver, monkeypatch, gpus, visible, watts) -> None:
    environment = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    assert power(driver, gpus, environment, monkeypatch) == watts


@pytest.mark.parametrize(
    ("gpus", "visible", "words"),
    [
        (MIXED, None, "or set CUDA_DEVICE_ORDER=PCI_BUS_ID"),
        (MIXED, "2", "there are several kinds here"),
        (FOUR, "", "leaves CUDA 0 GPUs"),
        (FOUR, "-1", "leaves CUDA 0 GPUs"),
        (FOUR, "9,0", "leaves CUDA 0 GPUs"),
        (FOUR, "none", "leaves CUDA 0 GPUs"),
        (FOUR, "GPU-", "4 GPUs have the UUID"),
        (FOUR, "GPU-7", "no GPUs have the UUID GPU-7"),
        (FOUR, "MIG-12345", "a MIG instance (MIG-12345)"),
        (SPLIT, "3", "a MIG instance (GPU-3a)"),
        (SPLIT, "GPU-3a", "a MIG instance (GPU-3a)"),
    ],
)
def test_no_gpu_is_read_in_the_place_of_another(driver, monkeypatch, gpus, visible, words) -> None:
    environment = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    assert words in str(power(driver, gpus, environment, monkeypatch))


def test_numbers_by_bus_are_sure(driver, monkeypatch) -> None:
    assert power(driver, MIXED, {**BY_BUS, "CUDA_VISIBLE_DEVICES": "2,1"}, monkeypatch) == 12
    assert power(driver, MIXED, BY_BUS, monkeypatch) == 10


def test_the_device_of_the_run_says_which(driver, monkeypatch) -> None:
    device = types.SimpleNamespace(gpu_uuid="", gpu_number=1)
    visible = {"CUDA_VISIBLE_DEVICES": "3,2"}
    assert power(driver, FOUR, visible, monkeypatch, device) == 12
    device.gpu_number = 2
    assert "number 2 is asked for" in str(power(driver, FOUR, visible, monkeypatch, device))
    # A UUID needs no environment, whatever that says.
    device.gpu_uuid = "GPU-1a"
    assert power(driver, MIXED, visible, monkeypatch, device) == 11


def test_a_driver_that_cannot_tell(driver, monkeypatch) -> None:
    driver.fails = {"nvmlDeviceGetCount_v2": pynvml.NVML_ERROR_UNKNOWN}
    said = str(power(driver, FOUR, {"CUDA_VISIBLE_DEVICES": "1"}, monkeypatch))
    assert "is not known: nvmlDeviceGetCount" in said
    assert power(driver, FOUR, {**BY_BUS, "CUDA_VISIBLE_DEVICES": "1"}, monkeypatch) == 11


@pytest.mark.parametrize(
    ("name", "setting", "value", "words"),
    [
        ("memory_used", "memory", (0, 0), "says 0 for memory in all"),
        ("memory_used", "memory", (2**64 - 1, 5), "gave no memory in all"),
        ("memory_used", "memory", (10, 2**64 - 1), "gave no memory in use"),
        ("memory_used", "memory", (10, 11), "more memory is in use than there is"),
        ("power", "milliwatts", 2**32 - 1, "gave no power"),
        ("power", "milliwatts", 0, "says 0 for power"),
        ("sm_clock", "megahertz", {1: 2**32 - 1, 2: 5}, "gave no clock"),
        ("sm_clock", "megahertz", {1: 0, 2: 5}, "says 0 for clock"),
        ("energy", "joules", lambda: 0.0, "says 0 for energy"),
        ("clock_event.gpu_idle", "events", 2**64 - 1, "gave no clock events"),
    ],
)
def test_values_that_stand_for_none(driver, name, setting, value, words) -> None:
    setattr(driver, setting, value)
    reading = read()
    assert reading.values[f"nvml.{name}"] is None
    assert words in reading.reasons[f"nvml.{name}"]
    assert reading.values["nvml.memory_clock"] is not None


def test_nothing_in_use_is_a_number(driver) -> None:
    driver.memory = (10, 0)
    assert read().values["nvml.memory_used"] == 0


def test_a_total_that_never_moves(driver, monkeypatch) -> None:
    driver.joules = lambda: 5.0
    monkeypatch.setattr("nexusbench.counters.nvml.NS_PER_S", 10**7)  # a second, for tests
    reading = read(0.05)
    assert reading.values["nvml.energy"] is None
    assert "did not move" in reading.reasons["nvml.energy"]


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (pynvml.NVML_ERROR_DRIVER_NOT_LOADED, "no NVIDIA driver"),
        (pynvml.NVML_ERROR_LIBRARY_NOT_FOUND, "no NVIDIA driver"),
        (NO_PERMISSION, "not permitted"),
        (pynvml.NVML_ERROR_UNKNOWN, "does not start"),
    ],
)
def test_no_start_no_source(driver: FakeDriver, code: int, words: str) -> None:
    driver.fails = {"nvmlInitWithFlags": code}
    support = NvmlCounters().probe()
    assert not support.ok
    assert words in support.reason
    with pytest.raises(CounterError, match=words):
        NvmlCounters().start()


def test_no_module_or_the_retired_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert 'pip install "nexusbench[cuda]"' in NvmlCounters().probe().reason
    retired = types.ModuleType("pynvml")
    retired.__path__ = []
    monkeypatch.setitem(sys.modules, "pynvml", retired)
    assert "pip uninstall pynvml" in NvmlCounters().probe().reason
