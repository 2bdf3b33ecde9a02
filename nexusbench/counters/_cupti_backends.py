"""Three ways to PM samples: cupti-python, libcupti through ctypes, a recording."""

from __future__ import annotations

import ctypes as c
import math
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol, TypeVar

import msgspec

from nexusbench.core.errors import CounterError
from nexusbench.counters import _cupti_structs as cu
from nexusbench.counters._cupti_recording import CuptiRecording
from nexusbench.counters.base import why

MAX_SAMPLES = 20_000  # decoded at a time; two seconds at 100 us
_NEEDS = "not permitted: run as root or with CAP_SYS_ADMIN, or load the driver with " \
    "NVreg_RestrictProfilingToAdminUsers=0"  # fmt: skip
_BUSY = "another profiler (DCGM, Nsight, CUPTI) holds the counters"
_MEANING = {
    cu.INSUFFICIENT_PRIVILEGES: _NEEDS,
    cu.VIRTUALIZED_INSUFFICIENT_PRIVILEGES: f"{_NEEDS}; on a virtual GPU its host must allow it",
    cu.HARDWARE_BUSY: _BUSY,
    cu.INVALID_OPERATION: f"sampling is under way already: {_BUSY}",
    cu.NOT_SUPPORTED: "this GPU cannot sample these metrics in one pass at a time interval",
}


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """What to sample: CUPTI's metric names; the hardware buffer in bytes."""

    metrics: tuple[str, ...]
    device: int = 0
    interval_ns: int = 100_000
    buffer_bytes: int = 256 << 20


Row = tuple[int, int, list[float]]  # start, end in ns of the GPU's clock; a value for each metric


class Sampler(Protocol):
    """One way to PM samples; constructing it takes hold of the hardware."""

    label: str
    chip: str

    def start(self) -> None:
        """Begin to sample. Raises CounterError."""

    def stop(self) -> tuple[list[Row], bool]:
        """End; the samples, and whether the hardware buffer overflowed. Raises CounterError."""

    def close(self) -> None:
        """Let the hardware go."""


class NotPermitted(CounterError):
    """The driver keeps the counters from this user; another way to them would be refused too."""


class CuptiError(CounterError):
    """A CUPTI call failed; ``code`` is its CUptiResult."""

    def __init__(self, text: str, code: int) -> None:
        super().__init__(text)
        self.code = code


def start_driver() -> None:
    """CUDA's driver, initialised. Raises CounterError if there is none, or no GPU."""
    try:
        driver = c.CDLL("libcuda.so.1")
    except OSError:
        raise CounterError("no NVIDIA driver (libcuda.so.1 is not there)") from None
    code = driver.cuInit(0)
    if code:
        raise CounterError(
            "no GPU is visible" if code == 100 else f"the CUDA driver does not start: error {code}"
        )


def load_cupti() -> Any:
    """CUPTI of the NVIDIA wheels or of the system. Raises CounterError: none, or before 12.6."""
    wheels = ("cu13/lib/libcupti.so.13", "cuda_cupti/lib/libcupti.so.12")
    found = [
        path for base in sys.path for wheel in wheels
        if (path := Path(base or ".", "nvidia", wheel)).is_file()
    ]  # fmt: skip
    library: Any = None
    for candidate in (*found, "libcupti.so.13", "libcupti.so.12", "libcupti.so"):
        try:
            if isinstance(candidate, Path):
                # CUPTI opens these two by their bare names; a wheel's folder is on no search path.
                for helper in ("libnvperf_host.so", "libnvperf_target.so"):
                    if (beside := candidate.with_name(helper)).is_file():
                        c.CDLL(str(beside), mode=c.RTLD_GLOBAL)
            library = c.CDLL(str(candidate))
        except OSError:
            continue
        if hasattr(library, "cuptiPmSamplingEnable"):
            return library
    if library is not None:
        raise CounterError("libcupti is older than 12.6 and has no PM sampling")
    raise CounterError(
        "libcupti is not installed; pip install nvidia-cuda-cupti, or the CUDA toolkit"
    )


T = TypeVar("T", bound=cu.Params)


class NativeSampler:
    """PM sampling through libcupti, 12.6 or newer. Raises CounterError, with the reason.

    ``library`` is for tests; by default the one that :func:`load_cupti` finds.
    """

    def __init__(self, config: Config, library: Any = None) -> None:
        self._library = library if library is not None else load_cupti()
        self._names = (c.c_char_p * len(config.metrics))(*[m.encode() for m in config.metrics])
        self._config, self._object, self._host = config, None, None
        self._image: Any = None
        self.label, self.chip = "libcupti", ""
        self._call("cuptiProfilerInitialize", cu.params(cu.ProfilerInitialize))
        try:
            self._open(config)
        except Exception:
            with suppress(CuptiError):  # the first failure is the one to report
                self.close()
            raise

    def _open(self, config: Config) -> None:
        chip = self._call(
            "cuptiDeviceGetChipName", cu.params(cu.GetChipName, deviceIndex=config.device)
        ).pChipName
        self.chip = (chip or b"").decode()
        self._object = self._call(
            "cuptiPmSamplingEnable", cu.params(cu.Enable, deviceIndex=config.device)
        ).pPmSamplingObject
        self._host = self._call(
            "cuptiProfilerHostInitialize",
            cu.params(cu.HostInitialize, profilerType=cu.PM_SAMPLING, pChipName=chip),
        ).pHostObject
        self._call(
            "cuptiProfilerHostConfigAddMetrics",
            cu.params(
                cu.HostAddMetrics, pHostObject=self._host,
                ppMetricNames=c.addressof(self._names), numMetrics=len(config.metrics),
            ),
        )  # fmt: skip
        size = self._call(
            "cuptiProfilerHostGetConfigImageSize",
            cu.params(cu.HostConfigSize, pHostObject=self._host),
        ).configImageSize
        self._image = (c.c_uint8 * size)()
        self._call(
            "cuptiProfilerHostGetConfigImage",
            cu.params(
                cu.HostConfig, pHostObject=self._host, configImageSize=size,
                pConfigImage=c.addressof(self._image),
            ),
        )  # fmt: skip
        self._call(
            "cuptiPmSamplingSetConfig",
            cu.params(
                cu.SetConfig, pPmSamplingObject=self._object, configSize=size,
                pConfig=c.addressof(self._image), hardwareBufferSize=config.buffer_bytes,
                samplingInterval=config.interval_ns, triggerMode=cu.GPU_TIME_INTERVAL,
                hwBufferAppendMode=cu.KEEP_OLDEST,
            ),
        )  # fmt: skip

    def start(self) -> None:
        """Begin to sample."""
        self._call("cuptiPmSamplingStart", cu.params(cu.PmSampling, pPmSamplingObject=self._object))

    def stop(self) -> tuple[list[Row], bool]:
        """End, and decode everything, one image after the other."""
        self._call("cuptiPmSamplingStop", cu.params(cu.PmSampling, pPmSamplingObject=self._object))
        rows: list[Row] = []
        overflow = False
        while True:
            image = self._new_image()
            decode = cu.params(
                cu.DecodeData, pPmSamplingObject=self._object,
                pCounterDataImage=c.addressof(image), counterDataImageSize=len(image),
            )  # fmt: skip
            try:
                self._call("cuptiPmSamplingDecodeData", decode)
            except CuptiError as error:
                if error.code != cu.OUT_OF_MEMORY:
                    raise
                return rows, True
            decoded = self._rows(image)
            rows += decoded
            overflow = overflow or bool(decode.overflow)
            if decode.decodeStopReason != cu.COUNTER_DATA_FULL or not decoded:
                return rows, overflow

    def close(self) -> None:
        """Release sampling, host object and profiler, all of them; raises the first failure."""
        sampling, host = self._object, self._host
        self._object = self._host = None
        steps: list[tuple[str, cu.Params]] = []
        if sampling is not None:
            steps.append(
                ("cuptiPmSamplingDisable", cu.params(cu.PmSampling, pPmSamplingObject=sampling))
            )
        if host is not None:
            steps.append(
                (
                    "cuptiProfilerHostDeinitialize",
                    cu.params(cu.HostDeinitialize, pHostObject=host),
                )
            )
        if self._library is not None:
            steps.append(("cuptiProfilerDeInitialize", cu.params(cu.ProfilerInitialize)))
        failures = []
        for function, arguments in steps:
            try:
                self._call(function, arguments)
            except CuptiError as error:
                failures.append(error)
        self._library = None
        if failures:
            raise failures[0]

    def _new_image(self) -> Any:
        size = self._call(
            "cuptiPmSamplingGetCounterDataSize",
            cu.params(
                cu.GetCounterDataSize, pPmSamplingObject=self._object,
                pMetricNames=c.addressof(self._names), numMetrics=len(self._names),
                maxSamples=MAX_SAMPLES,
            ),
        ).counterDataSize  # fmt: skip
        image = (c.c_uint8 * size)()
        self._call(
            "cuptiPmSamplingCounterDataImageInitialize",
            cu.params(
                cu.ImageInitialize, pPmSamplingObject=self._object, counterDataSize=size,
                pCounterData=c.addressof(image),
            ),
        )  # fmt: skip
        return image

    def _rows(self, image: Any) -> list[Row]:
        where = {"pCounterDataImage": c.addressof(image), "counterDataImageSize": len(image)}
        count = self._call(
            "cuptiPmSamplingGetCounterDataInfo", cu.params(cu.GetCounterDataInfo, **where)
        ).numCompletedSamples
        rows: list[Row] = []
        values = (c.c_double * len(self._names))()
        for index in range(count):
            times = self._call(
                "cuptiPmSamplingCounterDataGetSampleInfo",
                cu.params(
                    cu.GetSampleInfo, pPmSamplingObject=self._object, sampleIndex=index, **where
                ),
            )
            self._call(
                "cuptiProfilerHostEvaluateToGpuValues",
                cu.params(
                    cu.HostEvaluate, pHostObject=self._host, rangeIndex=index,
                    ppMetricNames=c.addressof(self._names), numMetrics=len(self._names),
                    pMetricValues=c.addressof(values), **where,
                ),
            )  # fmt: skip
            rows.append((times.startTimestamp, times.endTimestamp, list(values)))
        return rows

    def _call(self, function: str, arguments: T) -> T:
        code = getattr(self._library, function)(c.byref(arguments))
        if code == cu.SUCCESS:
            return arguments
        text = c.c_char_p()
        self._library.cuptiGetResultString(code, c.byref(text))
        name = text.value.decode() if text.value else f"CUPTI error {code}"
        if code in (cu.INSUFFICIENT_PRIVILEGES, cu.VIRTUALIZED_INSUFFICIENT_PRIVILEGES):
            raise NotPermitted(f"{_MEANING[code]} ({name})")
        meaning = _MEANING.get(code, "")
        raise CuptiError(f"{meaning + ' ' if meaning else ''}({function}: {name})", code)


class PythonSampler:
    """PM sampling through cupti-python, 13.3 or newer. Raises CounterError, with the reason."""

    def __init__(self, config: Config) -> None:
        try:
            api = import_module("cupti.pm_sampling")
        except ImportError as error:
            raise CounterError(f"cupti-python 13.3 or newer is not installed ({error})") from None
        self.label, self.chip = "cupti-python", ""
        self._collector = collector = api.Collector(config.device)
        try:
            collector.enable()
            collector.configure(
                metrics=list(config.metrics),
                hardware_buffer_size=config.buffer_bytes,
                sampling_interval=config.interval_ns,
                trigger_mode=api.TriggerMode.GPU_TIME_INTERVAL,
            )
        except PermissionError as error:
            raise NotPermitted(f"{_NEEDS} ({error})") from error
        except Exception as error:
            collector.disable()
            raise CounterError(why(error)) from error
        self.chip = str(getattr(collector, "_chip_name", None) or "")

    def start(self) -> None:
        """Begin to sample."""
        self._collector.start()

    def stop(self) -> tuple[list[Row], bool]:
        """End, and decode until an image is not full; the package hides CUPTI's stop reason."""
        self._collector.stop()
        rows: list[Row] = []
        while True:
            try:
                decoded = self._collector.decode(max_samples=MAX_SAMPLES)
            except MemoryError:  # that is how the package reports an overflow
                return rows, True
            rows += [(s.start_timestamp, s.end_timestamp, list(s.metric_values)) for s in decoded]
            if len(decoded) < MAX_SAMPLES:
                return rows, False

    def close(self) -> None:
        """Let the hardware go."""
        self._collector.disable()


class RecordedSampler:
    """Replays a recording, the same at every stop; metrics that it lacks are NaN."""

    def __init__(self, recording: CuptiRecording, metrics: Sequence[str]) -> None:
        self.label, self.chip = f"recording: {recording.origin}", recording.chip
        self._recording = recording
        self._places = [
            recording.metrics.index(name) if name in recording.metrics else None for name in metrics
        ]

    def start(self) -> None:
        """Nothing to do."""

    def stop(self) -> tuple[list[Row], bool]:
        """All of it."""
        rows: list[Row] = []
        for start, end, values in self._recording.samples:
            kept = [None if at is None else values[at] for at in self._places]
            rows.append((start, end, [math.nan if value is None else value for value in kept]))
        return rows, self._recording.overflow

    def close(self) -> None:
        """Nothing to release."""
