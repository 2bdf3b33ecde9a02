"""The CUPTI source: its structures, its calls on a fake library, its recordings."""

from __future__ import annotations

import json
import math
import sys
import types
from pathlib import Path
from typing import Any

import pytest
from cupti_fake import FakeCupti, rows_of

from nexusbench.core.errors import CounterError, InputError, NexusbenchError
from nexusbench.counters import _cupti_backends as backends
from nexusbench.counters import _cupti_structs as cu
from nexusbench.counters import cupti as source
from nexusbench.counters._cupti_recording import CuptiRecording, read_recording, write_recording
from nexusbench.counters.base import Counters, Reading, counters, summarise
from nexusbench.counters.cupti import CUPTI_NAMES, CuptiCounters, CuptiOptions

MADE_UP = Path(__file__).parents[1] / "data" / "cupti_made_up.json"
# CUPTI_PROFILER_STRUCT_SIZE of each, by a C++ compiler from the headers of CUPTI 13.0.85
SIZES = {
    cu.ProfilerInitialize: 16, cu.GetChipName: 32, cu.Enable: 32, cu.PmSampling: 24,
    cu.SetConfig: 64, cu.DecodeData: 45, cu.GetCounterDataSize: 56, cu.ImageInitialize: 40,
    cu.GetCounterDataInfo: 56, cu.GetSampleInfo: 64, cu.HostInitialize: 48,
    cu.HostAddMetrics: 40, cu.HostConfigSize: 32, cu.HostConfig: 40, cu.HostEvaluate: 72,
    cu.HostDeinitialize: 24,
}  # fmt: skip


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> FakeCupti:
    """CUPTI, a driver and no cupti-python."""
    fake = FakeCupti(rows_of(12))
    monkeypatch.setattr(source, "start_driver", lambda: None)
    monkeypatch.setattr(backends, "load_cupti", lambda: fake)
    monkeypatch.setitem(sys.modules, "cupti", None)
    monkeypatch.setitem(sys.modules, "cupti.pm_sampling", None)
    return fake


def read(cupti: CuptiCounters) -> Reading:
    cupti.start()
    return summarise(cupti.stop(), cupti.metrics, cupti.reasons)


def test_structures_keep_their_layout() -> None:
    assert {kind: cu.struct_size(kind) for kind in SIZES} == SIZES
    declared = {
        kind for kind in vars(cu).values()
        if isinstance(kind, type) and issubclass(kind, cu.Params) and kind is not cu.Params
    }  # fmt: skip
    assert declared == set(SIZES)
    made = cu.params(cu.Enable, deviceIndex=3)
    assert (made.structSize, made.pPriv, made.deviceIndex) == (32, None, 3)


def test_metric_names_are_the_frozen_ones() -> None:
    """The host part of libcupti 13.0.85 was asked: for GH100 they exist and fit one pass."""
    assert list(CUPTI_NAMES.values()) == [
        "dram__bytes_read.sum", "dram__bytes_write.sum", "sm__cycles_active.avg",
        "sm__cycles_elapsed.max", "sm__pipe_tensor_cycles_active.avg",
    ]  # fmt: skip
    assert list(CUPTI_NAMES) == [metric.name for metric in CuptiCounters.metrics]


def test_the_calls_and_the_numbers(library: FakeCupti) -> None:
    with CuptiCounters(CuptiOptions(interval_us=50, buffer_mib=2)) as cupti:
        assert cupti.probe().reason == "by libcupti"
        reading = read(cupti)
        assert reading == read(cupti)  # sampling can be started again
    assert library.names == list(CUPTI_NAMES.values())
    assert library.config["samplingInterval"] == 50_000
    assert library.config["hardwareBufferSize"] == 2 << 20
    assert library.config["triggerMode"] == cu.GPU_TIME_INTERVAL
    assert library.config["hwBufferAppendMode"] == cu.KEEP_OLDEST
    assert reading.values == {
        "cupti.dram_read": 12 * 4e8, "cupti.dram_write": 12 * 1e8,
        "cupti.sm_active": 12 * 150_000, "cupti.sm_elapsed": 12 * 175_500,
        "cupti.tensor_active": 12 * 9e4,
    }  # fmt: skip
    assert not reading.reasons
    assert library.log.count("cuptiPmSamplingDecodeData") == 2 * 3  # 12 samples, 5 an image
    assert library.log[-3:] == [
        "cuptiPmSamplingDisable", "cuptiProfilerHostDeinitialize", "cuptiProfilerDeInitialize",
    ]  # fmt: skip
    assert library.log.count("cuptiPmSamplingEnable") == 1


@pytest.mark.parametrize("flagged", [True, False])
def test_an_overflow_leaves_no_total(library: FakeCupti, flagged: bool) -> None:
    """CUPTI tells of it by a flag, by an error, or both."""
    library.overflow = flagged
    if not flagged:
        library.fails = {"cuptiPmSamplingDecodeData": cu.OUT_OF_MEMORY}
    with CuptiCounters() as cupti:
        reading = read(cupti)
        assert all(value is None for value in reading.values.values())
        assert all("overflowed" in reason for reason in reading.reasons.values())
        library.overflow, library.fails = False, {}
        assert not read(cupti).reasons


@pytest.mark.parametrize(
    ("function", "code", "words"),
    [
        ("cuptiPmSamplingEnable", cu.INSUFFICIENT_PRIVILEGES, "not permitted: run as root"),
        ("cuptiPmSamplingEnable", cu.VIRTUALIZED_INSUFFICIENT_PRIVILEGES, "virtual GPU"),
        ("cuptiPmSamplingEnable", cu.INVALID_OPERATION, "another profiler"),
        ("cuptiPmSamplingEnable", cu.HARDWARE_BUSY, "another profiler"),
        ("cuptiPmSamplingSetConfig", cu.NOT_SUPPORTED, "in one pass"),
        ("cuptiProfilerInitialize", 999, "cuptiProfilerInitialize: RESULT_999"),
        ("cuptiDeviceGetChipName", 1, "cuptiDeviceGetChipName: RESULT_1"),
    ],
)
def test_refusals_are_reasons(library: FakeCupti, function: str, code: int, words: str) -> None:
    library.fails = {function: code}
    with Counters([CuptiCounters()], intrusive=True) as group:
        assert not group.support["cupti"].ok
        assert words in group.support["cupti"].reason
        group.start()
        reading = group.stop()
    assert all(value is None for value in reading.values.values())
    assert all(words in reason for reason in reading.reasons.values())
    if function != "cuptiProfilerInitialize":
        assert library.log[-1] == "cuptiProfilerDeInitialize"  # what was opened is closed


def test_it_dies_in_mid_run(library: FakeCupti) -> None:
    with Counters([CuptiCounters()], intrusive=True) as group:
        group.start()
        library.fails = {"cuptiPmSamplingStop": 999}
        reading = group.stop()
        assert "RESULT_999" in group.failed["cupti"]
    assert all("broke down" in reason for reason in reading.reasons.values())
    assert library.log[-1] == "cuptiProfilerDeInitialize"


def test_no_samples_and_no_value(library: FakeCupti) -> None:
    library.rows = []
    with CuptiCounters() as cupti:
        reading = read(cupti)
        assert set(reading.reasons.values()) == {"no sample was taken"}
        library.rows = [(0, 100, [math.nan, 1.0, 2.0, 3.0, 4.0])]
        reading = read(cupti)
        assert reading.values["cupti.dram_read"] is None
        assert "dram__bytes_read.sum" in reading.reasons["cupti.dram_read"]
        assert reading.values["cupti.dram_write"] == 1


def test_never_in_timed_repetitions(library: FakeCupti) -> None:
    assert CuptiCounters.intrusive
    with Counters([CuptiCounters()]) as group:
        group.start()
        reading = group.stop()
    assert library.log == []  # not even probed
    assert all("repetitions of its own" in reason for reason in reading.reasons.values())


def test_misuse_and_close_in_mid_run(library: FakeCupti) -> None:
    cupti = CuptiCounters()
    with pytest.raises(CounterError, match="not started"):
        cupti.stop()
    with pytest.raises(CounterError, match="nothing was sampled"):
        cupti.record("unwritten.json", "test")
    cupti.start()
    with pytest.raises(CounterError, match="running already"):
        cupti.start()
    cupti.close()
    cupti.close()
    assert "cuptiPmSamplingStop" in library.log
    assert library.log.count("cuptiProfilerDeInitialize") == 1


def test_recordings_are_replayed(library: FakeCupti, tmp_path: Path) -> None:
    library.rows[3] = (300_000, 400_000, [math.nan, 1e8, 1.0, 2.0, 3.0])
    with CuptiCounters() as cupti:
        reading = read(cupti)
        cupti.record(tmp_path / "pm.json", "fake library of the tests")
    replay = counters.create(f"cupti:recording={tmp_path / 'pm.json'}")
    assert replay.probe().reason == "by recording: fake library of the tests"
    assert read(replay) == reading
    kept = read_recording(tmp_path / "pm.json")
    assert (kept.chip, kept.interval_ns, len(kept.samples)) == ("GH100", 100_000, 12)


def test_the_made_up_recording() -> None:
    recording = read_recording(MADE_UP)
    assert "not measured" in recording.origin
    with CuptiCounters(CuptiOptions(recording=str(MADE_UP))) as cupti:
        assert "not measured" in cupti.probe().reason
        cupti.start()
        samples = cupti.stop()
    assert len(samples) == 12
    assert all(sample.end_ns - sample.start_ns == 100_000 for sample in samples)
    reading = summarise(samples, cupti.metrics, cupti.reasons)
    places = zip(CUPTI_NAMES, range(5), strict=True)
    assert reading.values == {
        name: math.fsum(row[2][place] or 0 for row in recording.samples) for name, place in places
    }


def test_a_recording_that_lacks_metrics_or_overflowed(tmp_path: Path) -> None:
    few = CuptiRecording(
        origin="made up", chip="GH100", interval_ns=100_000, overflow=False,
        metrics=["dram__bytes_write.sum", "other.sum"], samples=[(0, 9, [5.0, None])],
    )  # fmt: skip
    write_recording(tmp_path / "few.json", few)
    assert read_recording(tmp_path / "few.json") == few
    reading = read(CuptiCounters(CuptiOptions(recording=str(tmp_path / "few.json"))))
    assert reading.values["cupti.dram_write"] == 5
    assert reading.values["cupti.dram_read"] is None
    assert "no value" in reading.reasons["cupti.dram_read"]
    document = json.loads(MADE_UP.read_text())
    (tmp_path / "full.json").write_text(json.dumps({**document, "overflow": True}))
    reading = read(CuptiCounters(CuptiOptions(recording=str(tmp_path / "full.json"))))
    assert all("overflowed" in reason for reason in reading.reasons.values())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"format": 2}, "has format 2"),
        ({"surprise": 1}, "surprise"),
        ({"origin": ""}, "origin"),
        ({"samples": [[0, 1, [1.0]]]}, "1 values"),
        ({"samples": [[5, 1, [1.0] * 5]]}, "order of time"),
        ({"samples": [[0, 1, ["x"] * 5]]}, "samples"),
    ],
)
def test_broken_recordings_name_file_and_fault(
    tmp_path: Path, change: dict[str, Any], words: str
) -> None:
    file = tmp_path / "broken.json"
    file.write_text(json.dumps({**json.loads(MADE_UP.read_text()), **change}))
    with pytest.raises(InputError, match=words) as caught:
        read_recording(file)
    assert str(file) in str(caught.value)
    support = CuptiCounters(CuptiOptions(recording=str(file))).probe()
    assert not support.ok
    assert words in support.reason


def test_recordings_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        read_recording(tmp_path / "none.json")
    (tmp_path / "bytes.json").write_bytes(b"\xff\x00")
    with pytest.raises(InputError, match="not a recording"):
        read_recording(tmp_path / "bytes.json")
    with pytest.raises(NexusbenchError, match="cannot be written"):
        write_recording(tmp_path / "no" / "pm.json", read_recording(MADE_UP))


class FakeCollector:
    """cupti.pm_sampling.Collector of cupti-python 13.3, as far as it is used."""

    raises: dict[str, Exception] = {}
    disabled = 0
    settings: dict[str, Any] = {}

    def __init__(self, device: int) -> None:
        self._chip_name = "GH100"
        self._left = [
            types.SimpleNamespace(start_timestamp=a, end_timestamp=b, metric_values=v)
            for a, b, v in rows_of(12)
        ]

    def _do(self, step: str) -> None:
        if step in self.raises:
            raise self.raises[step]

    def enable(self) -> None:
        self._do("enable")

    def configure(self, **settings: Any) -> None:
        self._do("configure")
        type(self).settings = settings

    def start(self) -> None:
        self._do("start")

    def stop(self) -> None:
        self._do("stop")

    def decode(self, max_samples: int) -> list[Any]:
        self._do("decode")
        found, self._left = self._left[:max_samples], self._left[max_samples:]
        return found

    def disable(self) -> None:
        type(self).disabled += 1


@pytest.fixture
def package(library: FakeCupti, monkeypatch: pytest.MonkeyPatch) -> type[FakeCollector]:
    module: Any = types.ModuleType("cupti.pm_sampling")
    module.Collector = FakeCollector
    module.TriggerMode = types.SimpleNamespace(GPU_TIME_INTERVAL="ns")
    monkeypatch.setitem(sys.modules, "cupti", types.ModuleType("cupti"))
    monkeypatch.setitem(sys.modules, "cupti.pm_sampling", module)
    monkeypatch.setattr(backends, "MAX_SAMPLES", 5)
    monkeypatch.setattr(FakeCollector, "raises", {})
    monkeypatch.setattr(FakeCollector, "disabled", 0)
    return FakeCollector


def test_cupti_python_goes_first(package: type[FakeCollector], library: FakeCupti) -> None:
    with CuptiCounters() as cupti:
        assert cupti.probe().reason == "by cupti-python"
        assert read(cupti).values["cupti.dram_read"] == 12 * 4e8
    assert package.settings["sampling_interval"] == 100_000
    assert package.settings["metrics"] == list(CUPTI_NAMES.values())
    assert package.disabled == 1
    assert library.log == []


def test_libcupti_stands_in_for_a_cupti_python_that_fails(
    package: type[FakeCollector], library: FakeCupti
) -> None:
    package.raises = {"configure": ValueError("not supported")}
    assert CuptiCounters().probe().reason == "by libcupti"
    support = CuptiCounters(CuptiOptions(backend="python")).probe()
    assert support.reason == "ValueError: not supported"
    library.fails = {"cuptiPmSamplingEnable": 999}
    support = CuptiCounters().probe()
    assert "not supported" in support.reason
    assert "RESULT_999" in support.reason


def test_cupti_python_without_permission_or_room(
    package: type[FakeCollector], library: FakeCupti
) -> None:
    package.raises = {"enable": PermissionError("see the manual")}
    assert "not permitted" in CuptiCounters().probe().reason
    assert library.log == []  # libcupti would be refused as well
    package.raises = {"decode": MemoryError("overflow")}
    with CuptiCounters() as cupti:
        reading = read(cupti)
    assert all("overflowed" in reason for reason in reading.reasons.values())


def test_no_driver_no_library(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any, **more: Any) -> Any:
        raise OSError("not there")

    monkeypatch.setattr(backends.c, "CDLL", refuse)
    assert "no NVIDIA driver" in CuptiCounters().probe().reason
    with pytest.raises(CounterError, match="not installed"):
        backends.load_cupti()
    for code, words in ((100, "no GPU is visible"), (999, "error 999")):
        driver = types.SimpleNamespace(cuInit=lambda flags, code=code: code)
        monkeypatch.setattr(backends.c, "CDLL", lambda *a, driver=driver, **k: driver)
        assert words in CuptiCounters().probe().reason
        with pytest.raises(CounterError, match=r"older than 12\.6"):
            backends.load_cupti()


def test_the_library_of_the_wheels_is_found_with_its_helpers(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = tmp_path / "nvidia" / "cu13" / "lib"
    folder.mkdir(parents=True)
    for file in ("libcupti.so.13", "libnvperf_host.so", "libnvperf_target.so"):
        (folder / file).touch()
    opened: list[str] = []

    def load(name: str, **mode: int) -> Any:
        opened.append(Path(name).name)
        return types.SimpleNamespace(cuptiPmSamplingEnable=None)

    monkeypatch.setattr(backends.c, "CDLL", load)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    backends.load_cupti()
    assert opened == ["libnvperf_host.so", "libnvperf_target.so", "libcupti.so.13"]


def test_options_are_checked() -> None:
    for wrong in ("device=-1", "interval_us=0", "backend=guess", "surprise=1"):
        with pytest.raises(InputError):
            counters.create(f"cupti:{wrong}")
