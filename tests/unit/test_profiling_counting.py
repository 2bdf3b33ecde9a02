"""Counters around measured steps."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from nexusbench.core.batch import BatchShape
from nexusbench.core.errors import UsageError
from nexusbench.core.kv_layout import kv_layout
from nexusbench.core.specs import DeviceSpec
from nexusbench.core.state import Limits
from nexusbench.counters.base import Counters, CounterSample, CounterSource, Quantity, Support
from nexusbench.devices.base import DeviceOptions
from nexusbench.devices.sim import Sim
from nexusbench.models.config import load_model
from nexusbench.profiles.points import PointSetting
from nexusbench.profiling.counting import Counting, OpenReaders
from nexusbench.profiling.desk import BatchDesk, make_pool
from nexusbench.profiling.effort import QUICK
from nexusbench.profiling.measure import Measurer

MODEL = load_model("qwen2.5-3b")
DECODE, PREFILL = BatchShape(16, 16_000), BatchShape(0, 0, ((512, 0),))


class Scripted(CounterSource):
    """Says what it is told."""

    metrics = (
        Quantity("process.elapsed", "seconds", "total", ""),
        Quantity("process.cpu_others", "seconds", "total", ""),
        Quantity("process.rss", "bytes", "gauge", ""),
    )

    def __init__(self, values, *, dies=False):
        super().__init__()
        self.values, self.dies = values, dies

    @property
    def name(self):
        return "process"

    def probe(self):
        return Support(True)

    def start(self):
        pass

    def stop(self):
        if self.dies:
            raise RuntimeError("gone")
        return [CounterSample(0, 10**9, self.values)]

    def close(self):
        pass


def device():
    return Sim.open("l20", MODEL, DeviceOptions(256, 2048, profiling=True))


def test_totals_are_per_step_and_gauges_are_not():
    values = {"process.elapsed": 2.0, "process.cpu_others": 0.1, "process.rss": 500.0}
    counting = Counting(Counters([Scripted(values)]))
    counting.before()
    assert counting.after(4) == {
        "process.elapsed": 0.5, "process.cpu_others": 0.025, "process.rss": 500.0,
    }  # fmt: skip
    assert counting.warnings() == []
    assert counting.sources == {"process": "on"}


def test_a_busy_machine_is_said():
    values = {"process.elapsed": 2.0, "process.cpu_others": 1.0, "process.rss": None}
    counting = Counting(Counters([Scripted(values)]))
    counting.before()
    assert counting.after(1)["process.rss"] is None
    (warning,) = counting.warnings()
    assert "other processes used 0.50 CPU cores" in warning


def test_a_source_that_dies_costs_only_its_own_numbers():
    counting = Counting(Counters([Scripted({}, dies=True)]))
    counting.before()
    assert counting.after(1) == {}
    assert "gone" in counting.sources["process"]


def test_a_simulated_device_is_counted_exactly():
    made = device()
    limits = Limits(256, 2048, 32768)
    pool = make_pool(made, kv_layout(MODEL).paged(16), limits)
    with OpenReaders(made) as opened:
        measurer = Measurer(BatchDesk(made, pool), QUICK.sampling, opened.readers)
        point = measurer.measure(PointSetting("decode", DECODE, 46), seed=1)
        again = measurer.measure(PointSetting("decode", DECODE, 46), seed=1)
        pair = measurer.measure(PointSetting("pair", DECODE, 46, PREFILL, 46), 1, point.ns)
        assert opened.readers.sources == {"sim": "on"}
    assert point == again
    load = made.physics.load(DECODE, 46)
    moved = load.dense.traffic + load.attention.traffic
    assert point.counters["sim.dram_bytes"] == pytest.approx(moved)
    assert point.counters["sim.elapsed"] == pytest.approx(point.ns / 1e9, rel=0.02)
    assert pair.counters == {}  # they would count the neighbour too


def test_a_real_device_has_other_sources_and_an_unknown_one_is_refused():
    spec = DeviceSpec("x", "cuda", False, 8, (), None, 1, 0.0, 1)
    with OpenReaders(SimpleNamespace(spec=spec)) as opened:
        sources = opened.readers.sources
    assert sources["process"] == "on"
    assert set(sources) == {"process", "nvml", "cupti"}
    with pytest.raises(UsageError, match=r"no counter source called 'nvmll'.*nvml"):
        OpenReaders(device(), ["nvmll"])
