"""Summaries of samples, and a group of sources of which some cannot be used or break down."""

from __future__ import annotations

from typing import ClassVar

import pytest

from nexusbench.core.errors import CounterError, UsageError
from nexusbench.counters.base import (
    Counters,
    CounterSample,
    CounterSource,
    Quantity,
    Reading,
    Support,
    busy,
    counters,
    summarise,
    throttled,
)

TOTAL = Quantity("made.bytes", "bytes", "total", "a total")
GAUGE = Quantity("made.clock", "hertz", "gauge", "a gauge")
UNITS = {"bytes", "joules", "watts", "hertz", "cycles", "seconds", "share", "count"}


class Made(CounterSource):
    """A source that does what it is told, and keeps a log."""

    metrics: ClassVar[tuple[Quantity, ...]] = (TOTAL, GAUGE)

    def __init__(self, name: str = "made", fails: str = "", ok: bool = True) -> None:
        super().__init__()
        self._name, self.fails, self.ok, self.log = name, fails, ok, list[str]()
        self.metrics = tuple(  # type: ignore[misc]
            Quantity(m.name.replace("made", name), m.unit, m.kind, m.meaning)
            for m in (TOTAL, GAUGE)
        )

    @property
    def name(self) -> str:
        return self._name

    def _do(self, step: str) -> None:
        self.log.append(step)
        if step in self.fails.split():
            raise RuntimeError(f"no {step}")

    def attach(self, device: object) -> None:
        self._do("attach")

    def probe(self) -> Support:
        self._do("probe")
        return Support(self.ok, "" if self.ok else "not here")

    def start(self) -> None:
        self._do("start")

    def stop(self) -> list[CounterSample]:
        self._do("stop")
        return [CounterSample(0, 10, {metric.name: 7.0 for metric in self.metrics})]

    def close(self) -> None:
        self._do("close")


class MadeIntrusive(Made):
    """Not for timed repetitions."""

    intrusive: ClassVar[bool] = True


def test_totals_add_and_gauges_are_weighted_by_time() -> None:
    samples = [
        CounterSample(0, 10, {"made.bytes": 5.0, "made.clock": 1.0}),
        CounterSample(10, 40, {"made.bytes": 7.0, "made.clock": 3.0}),
        CounterSample(0, 40, {}),  # a metric that is absent was not asked for
    ]
    reading = summarise(samples, [TOTAL, GAUGE])
    assert reading == Reading({"made.bytes": 12.0, "made.clock": 2.5}, {})


def test_holes_are_none_for_a_total_and_left_out_of_a_gauge() -> None:
    samples = [
        CounterSample(0, 10, {"made.bytes": 5.0, "made.clock": 1.0}),
        CounterSample(10, 40, {"made.bytes": None, "made.clock": None}),
    ]
    reading = summarise(samples, [TOTAL, GAUGE], {"made.bytes": "lost", "made.clock": "lost"})
    assert reading == Reading({"made.bytes": None, "made.clock": 1.0}, {"made.bytes": "lost"})


def test_nothing_read_is_none_and_never_zero() -> None:
    reading = summarise([], [TOTAL, GAUGE])
    assert reading.values == {"made.bytes": None, "made.clock": None}
    assert set(reading.reasons.values()) == {"no sample was taken"}
    zero = summarise([CounterSample(0, 1, {"made.bytes": 0.0, "made.clock": 0.0})], [TOTAL, GAUGE])
    assert zero == Reading({"made.bytes": 0.0, "made.clock": 0.0}, {})


def test_a_gauge_stays_within_what_was_read() -> None:
    samples = [CounterSample(0, weight, {"made.clock": 1.755e9}) for weight in (3, 7, 100_003_417)]
    assert summarise(samples, [GAUGE]).values["made.clock"] == 1.755e9
    at_once = [CounterSample(5, 5, {"made.clock": 1.0}), CounterSample(5, 5, {"made.clock": 3.0})]
    assert summarise(at_once, [GAUGE]).values["made.clock"] == 2.0


def test_group_reads_what_it_can() -> None:
    fine, absent = Made("fine"), Made("absent", ok=False)
    with Counters([fine, absent], device=object()) as group:
        assert group.support == {
            "fine": Support(True),
            "absent": Support(False, "is off: not here"),
        }
        for _ in range(2):
            group.start()
            reading = group.stop()
            assert reading.values == {
                "fine.bytes": 7, "fine.clock": 7, "absent.bytes": None, "absent.clock": None,
            }  # fmt: skip
            assert set(reading.reasons) == {"absent.bytes", "absent.clock"}
            assert reading.reasons["absent.clock"] == "absent is off: not here"
            assert list(group.samples) == ["fine"]
        assert [metric.name for metric in group.metrics] == list(reading.values)
    assert fine.log == ["attach", "probe", "start", "stop", "start", "stop", "close"]
    assert absent.log == ["attach", "probe", "close"]


@pytest.mark.parametrize("step", ["attach", "probe", "start", "stop"])
def test_group_survives_a_source_that_raises(step: str) -> None:
    fine, bad, last = Made("fine"), Made("bad", fails=step), Made("last")
    with Counters([fine, bad, last], device=object()) as group:
        group.start()
        reading = group.stop()
        assert {name: value is None for name, value in reading.values.items()} == {
            "fine.bytes": False, "fine.clock": False, "bad.bytes": True, "bad.clock": True,
            "last.bytes": False, "last.clock": False,
        }  # fmt: skip
        assert f"no {step}" in reading.reasons["bad.bytes"]
        assert (step in ("start", "stop")) == ("bad" in group.failed)
        group.start()  # the one that broke down is not started again
        assert f"no {step}" in group.stop().reasons["bad.bytes"]
    assert bad.log.count(step) == 1
    assert all(source.log.count("close") == 1 for source in (fine, bad, last))


def test_group_closes_all_though_one_refuses() -> None:
    fine, bad = Made("fine"), Made("bad", fails="close")
    group = Counters([fine, bad])
    group.start()
    group.close()
    group.close()
    assert group.failed == {"bad": "did not close: RuntimeError: no close"}
    assert fine.log[-1] == "close"


def test_group_without_a_start() -> None:
    with Counters([Made()]) as group:
        assert group.stop().reasons["made.bytes"] == "made was not started: no sample was taken"


def test_group_is_not_started_twice() -> None:
    with Counters([Made()]) as group:
        group.start()
        with pytest.raises(CounterError, match="running already"):
            group.start()
        assert group.stop().values["made.bytes"] == 7


def test_intrusive_sources_only_on_demand() -> None:
    source = MadeIntrusive()
    with Counters([source]) as group:
        group.start()
        assert "repetitions of its own" in group.stop().reasons["made.bytes"]
    assert source.log == []
    with Counters([source], intrusive=True) as group:
        group.start()
        assert group.stop().values["made.bytes"] == 7


def test_each_source_once_and_only_known_ones() -> None:
    with pytest.raises(UsageError, match="name each once"):
        Counters([Made(), Made()])
    with pytest.raises(UsageError, match="Did you mean 'process'"):
        Counters.open(["proces"])


@pytest.mark.parametrize("name", counters.names())
def test_every_source_declares_its_metrics_and_probes_quietly(name: str) -> None:
    with counters.create(name) as source:
        assert source.name == name
        names = [metric.name for metric in source.metrics]
        assert len(set(names)) == len(names)
        assert all(metric.name.startswith(f"{name}.") for metric in source.metrics)
        assert {metric.unit for metric in source.metrics} <= UNITS
        assert all(metric.meaning for metric in source.metrics)
        support = source.probe()
        assert support.ok or support.reason
        assert set(source.reasons) <= set(names)
    with pytest.raises(CounterError):
        source.stop()  # closed, and never started


def reading_of(**values: float | None) -> Reading:
    return Reading({name.replace("__", "."): value for name, value in values.items()}, {})


def test_throttled_names_the_causes() -> None:
    assert throttled(Reading({}, {})) is None
    quiet = {"nvml.clock_event.gpu_idle": 1.0, "nvml.clock_event.set_clocks": 1.0}
    assert throttled(Reading({**quiet, "nvml.clock_event.sw_power_cap": 0.0}, {})) is None
    assert throttled(Reading({"nvml.clock_event.sw_power_cap": None}, {})) is None
    held = {
        "nvml.clock_event.sw_power_cap": 0.43,
        "nvml.clock_event.hw_thermal_slowdown": 0.5,
        "nvml.clock_event.sw_thermal_slowdown": 0.25,
        "nvml.clock_event.hw_power_brake": 0.1,
    }
    assert throttled(Reading(dict(held), {})) == (
        "power cap 43% of the time, thermal slowdown 50% of the time, "
        "hardware slowdown 10% of the time"
    )


@pytest.mark.parametrize(
    ("used", "words"),
    [
        ({"process__cpu_others": 0.29}, None),
        ({"process__cpu_others": None}, None),
        ({"process__cpu_others": 1.0}, "other processes used 0.50 CPU cores"),
        ({"process__cpu_stolen": 0.4}, "the hypervisor used 0.20 CPU cores"),
        ({"nvml__other_processes": 0.0}, None),
        ({"nvml__other_processes": 2.0}, "2.0 other processes computed on the GPU"),
    ],
)
def test_busy_names_the_others(used: dict[str, float | None], words: str | None) -> None:
    assert busy(reading_of(process__elapsed=2.0, **used)) == words
    assert busy(Reading({}, {})) is None
