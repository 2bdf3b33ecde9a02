"""The process source on this machine, and the source of simulated devices."""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from nexusbench.core.errors import CounterError
from nexusbench.counters import process as module
from nexusbench.counters.base import Counters, Reading, busy, counters, summarise
from nexusbench.counters.process import ProcessCounters
from nexusbench.counters.sim import SimCounters


def spin(seconds: float) -> None:
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass


def during(work: Callable[[], object]) -> Reading:
    with ProcessCounters() as process:
        assert process.probe().ok
        process.start()
        work()
        return summarise(process.stop(), process.metrics, process.reasons)


def test_own_work_is_ours() -> None:
    def work() -> None:
        spin(0.25)
        os.urandom(1 << 20)
        time.sleep(0.01)

    values = during(work).values
    assert values["process.elapsed"] is not None
    assert values["process.elapsed"] >= 0.25
    own = (values["process.cpu_user"] or 0) + (values["process.cpu_system"] or 0)
    assert 0.2 <= own <= values["process.elapsed"] + 0.1
    assert (values["process.switches_voluntary"] or 0) >= 1
    rss = psutil.Process().memory_info().rss
    assert values["process.rss"] == pytest.approx(rss, rel=0.5)


def test_page_faults() -> None:
    def touch() -> None:
        # Fresh from the system: what Python allocates may be pages that the process has already.
        with mmap.mmap(-1, 64 << 20) as region:
            region.write(b"x" * (64 << 20))

    # At least one for each page, however large the system's pages are.
    assert (during(touch).values["process.faults_minor"] or 0) >= 32


@pytest.fixture
def neighbour() -> Iterator[None]:
    """Another process that keeps a core busy."""
    code = "print(flush=True)\nwhile True: pass"
    other = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert other.stdout is not None
    other.stdout.readline()
    yield
    other.kill()
    other.communicate()


@pytest.mark.slow
def test_work_of_others_is_seen(neighbour: None) -> None:
    reading = during(lambda: time.sleep(0.5))
    assert (reading.values["process.cpu_others"] or 0) > 0.2
    assert "other processes used" in str(busy(reading))


def test_too_short_to_tell() -> None:
    reading = during(lambda: None)
    for metric in ("process.cpu_others", "process.cpu_stolen"):
        assert reading.values[metric] is None
        assert "too short" in reading.reasons[metric]
    assert reading.values["process.cpu_user"] is not None
    assert busy(reading) is None


def accounts(monkeypatch: pytest.MonkeyPatch, times: Iterator[dict[str, float]]) -> None:
    """Let psutil report these CPU times of the system, and the clock run by a second each."""
    monkeypatch.setattr(psutil, "cpu_times", lambda: SimpleNamespace(_asdict=times.__next__))
    seconds = iter(range(9))
    monkeypatch.setattr(module, "now_ns", lambda: next(seconds) * 10**9)


def test_what_counts_as_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Idle, iowait and stolen time are nobody's; guests are in user already."""
    before = {"user": 10.0, "system": 1.0, "idle": 50.0, "iowait": 2.0, "steal": 1.0, "guest": 4.0}
    after = {"user": 13.0, "system": 1.5, "idle": 51.0, "iowait": 3.0, "steal": 1.25, "guest": 6.0}
    accounts(monkeypatch, iter([before, after]))
    process = ProcessCounters()
    process.start()
    reading = summarise(process.stop(), process.metrics, process.reasons)
    assert reading.values["process.cpu_others"] == pytest.approx(3.5, abs=0.2)
    assert reading.values["process.cpu_stolen"] == 0.25
    assert str(busy(reading)).count("used") == 2


def test_accounts_that_stand_still(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in some sandboxes; an operating system without stolen time."""
    still = {"user": 0.0, "system": 0.0, "idle": 0.0}
    accounts(monkeypatch, iter([still, still]))
    process = ProcessCounters()
    process.start()
    reading = summarise(process.stop(), process.metrics, process.reasons)
    assert reading.values["process.cpu_others"] is None
    assert "stands still" in reading.reasons["process.cpu_others"]
    assert reading.values["process.cpu_stolen"] is None
    assert "does not account" in reading.reasons["process.cpu_stolen"]


def test_no_psutil_or_no_permission(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> Any:
        raise psutil.AccessDenied(1)

    monkeypatch.setattr(psutil, "cpu_times", refuse)
    assert "cannot be read" in ProcessCounters().probe().reason
    monkeypatch.setitem(sys.modules, "psutil", None)
    assert "pip install psutil" in ProcessCounters().probe().reason


def test_no_getrusage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "resource", None)
    reading = during(lambda: None)
    for metric in ("process.faults_minor", "process.faults_major"):
        assert reading.values[metric] is None
        assert "getrusage" in reading.reasons[metric]


class FakeDevice:
    """Adds up like a simulated device."""

    def __init__(self, **totals: float) -> None:
        self.sums: dict[str, float] | None = {
            "dram_bytes": 1e9, "sm_active_ns": 5e9, "tensor_busy_ns": 1e9, "busy_ns": 2e9,
            "now_ns": 3e9, **totals,
        }  # fmt: skip

    def totals(self) -> dict[str, float] | None:
        return self.sums


def simulated(device: FakeDevice, change: Callable[[], object]) -> Reading:
    with Counters.open(["sim"], device=device) as group:
        assert group.support["sim"].ok
        group.start()
        change()
        return group.stop()


def test_sim_counts_exactly() -> None:
    device = FakeDevice()
    later = FakeDevice(
        dram_bytes=1e9 + 123, sm_active_ns=9e9, tensor_busy_ns=1.5e9, busy_ns=3e9, now_ns=5e9
    )
    reading = simulated(device, lambda: setattr(device, "sums", later.sums))
    assert reading == Reading(
        {
            "sim.elapsed": 2.0, "sim.busy": 1.0, "sim.dram_bytes": 123.0, "sim.sm_active": 4.0,
            "sim.tensor_busy": 0.5,
        },
        {},
    )  # fmt: skip


def test_sim_samples_carry_the_virtual_clock() -> None:
    device = FakeDevice()
    sim = SimCounters()
    sim.attach(device)
    sim.start()
    device.sums = FakeDevice(now_ns=7e9).sums
    (sample,) = sim.stop()
    assert (sample.start_ns, sample.end_ns) == (3 * 10**9, 7 * 10**9)
    assert SimCounters.clock == "device"


def test_sim_totals_that_are_missing_or_run_backwards() -> None:
    device = FakeDevice()
    assert device.sums is not None
    del device.sums["tensor_busy_ns"]
    reading = simulated(device, lambda: setattr(device, "sums", {**device.sums, "busy_ns": 1e9}))
    assert reading.values["sim.tensor_busy"] is None
    assert "does not add this up" in reading.reasons["sim.tensor_busy"]
    assert reading.values["sim.busy"] is None
    assert "went from 2e+09 to 1e+09" in reading.reasons["sim.busy"]
    assert reading.values["sim.dram_bytes"] == 0


def test_sim_without_a_simulated_device() -> None:
    assert "no device is attached" in SimCounters().probe().reason
    silent = FakeDevice()
    silent.sums = None
    for device in (object(), silent):
        with Counters.open(["sim"], device=device) as group:
            assert "keeps no totals" in group.support["sim"].reason
            group.start()
            reading = group.stop()
            assert all(value is None for value in reading.values.values())
            assert all("keeps no totals" in reason for reason in reading.reasons.values())


def test_sim_whose_device_goes_silent_in_mid_run() -> None:
    device = FakeDevice()
    with Counters.open(["sim", "process"], device=device) as group:
        group.start()
        device.sums = None
        reading = group.stop()
        assert "keeps no totals" in group.failed["sim"]
    assert reading.values["sim.busy"] is None
    assert reading.values["process.elapsed"] is not None


def test_stop_needs_a_start() -> None:
    for name in ("sim", "process"):
        with pytest.raises(CounterError, match="was not started"):
            counters.create(name).stop()
