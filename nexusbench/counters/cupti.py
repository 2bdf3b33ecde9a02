"""CUPTI PM sampling: DRAM bytes, SM and tensor activity of the whole GPU, every 100 us."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import msgspec

from nexusbench.core.errors import CounterError, NexusbenchError
from nexusbench.core.units import MIB, NS_PER_US
from nexusbench.counters._cupti_backends import (
    Config,
    NativeSampler,
    NotPermitted,
    PythonSampler,
    RecordedSampler,
    Row,
    Sampler,
    start_driver,
)
from nexusbench.counters._cupti_recording import CuptiRecording, read_recording, write_recording
from nexusbench.counters.base import CounterOptions, CounterSample, CounterSource, Quantity, Support

# Ours -> CUPTI's name. PM sampling demands one pass: the host part of libcupti 13.0.85, which needs
# no GPU, gives these five one on GA100, GA10x, AD10x, GH100 and GB100. With
# sm__inst_executed_pipe_tensor.sum in the place of the last they would need two on GA100, GH100
# and GB100.
CUPTI_NAMES = {
    "cupti.dram_read": "dram__bytes_read.sum",
    "cupti.dram_write": "dram__bytes_write.sum",
    "cupti.sm_active": "sm__cycles_active.avg",
    "cupti.sm_elapsed": "sm__cycles_elapsed.max",
    "cupti.tensor_active": "sm__pipe_tensor_cycles_active.avg",
}
_OVERFLOW = (
    "the hardware buffer overflowed and samples were lost: raise buffer_mib or interval_us, or "
    "measure for a shorter time"
)


class CuptiOptions(CounterOptions, frozen=True, kw_only=True):
    """``device``: CUDA's number of the GPU. ``backend``: how to reach CUPTI; ``auto`` tries
    cupti-python, then libcupti. ``recording``: replay this file instead.
    """

    device: Annotated[int, msgspec.Meta(ge=0)] = 0
    interval_us: Annotated[int, msgspec.Meta(ge=1)] = 100
    buffer_mib: Annotated[int, msgspec.Meta(ge=1)] = 256
    backend: Literal["auto", "python", "native"] = "auto"
    recording: str = ""


class CuptiCounters(CounterSource):
    """Hardware counters sampled while everything runs: no replay, no serialised kernels.

    They are of the whole GPU, so bytes of one side need a run of that side alone. Times are the
    GPU's. Sampling may cost the measured work something, hence repetitions of its own.
    """

    Options: ClassVar[type[CounterOptions]] = CuptiOptions
    clock: ClassVar[Literal["host", "device", "gpu"]] = "gpu"
    intrusive: ClassVar[bool] = True
    source: ClassVar[str] = "CUPTI 12.6 or newer, PM sampling API (cupti_pmsampling.h)"
    metrics: ClassVar[tuple[Quantity, ...]] = (
        Quantity("cupti.dram_read", "bytes", "total", "read from HBM (dram__bytes_read.sum)"),
        Quantity("cupti.dram_write", "bytes", "total", "written to HBM (dram__bytes_write.sum)"),
        Quantity(
            "cupti.sm_active", "cycles", "total",
            "cycles with a warp resident, mean over SMs (sm__cycles_active.avg)",
        ),
        Quantity("cupti.sm_elapsed", "cycles", "total", "SM clock cycles (sm__cycles_elapsed.max)"),
        Quantity(
            "cupti.tensor_active", "cycles", "total",
            "cycles with the tensor pipe active, mean over SMs (sm__pipe_tensor_cycles_active.avg)",
        ),
    )  # fmt: skip

    def __init__(self, options: CounterOptions | None = None) -> None:
        super().__init__(options)
        self._sampler: Sampler | None = None
        self._running = False
        self._rows: list[Row] = []
        self._overflow = False

    def probe(self) -> Support:
        """Takes hold of the counters, as the only way to learn whether that is permitted."""
        try:
            sampler = self._open()
        except NexusbenchError as error:
            return Support(False, str(error))
        return Support(True, f"by {sampler.label}")

    def start(self) -> None:
        """Begin to sample. Raises CounterError if CUPTI refuses, or if it samples already."""
        if self._running:
            raise CounterError("is running already")
        self.reasons = {}
        self._open().start()
        self._running = True

    def stop(self) -> list[CounterSample]:
        """The decoded samples. After an overflow a last one, empty, says that some were lost.

        Raises CounterError if CUPTI fails.
        """
        if not self._running or self._sampler is None:
            raise CounterError("was not started")
        self._running = False
        self._rows, self._overflow = self._sampler.stop()
        samples = [
            CounterSample(start, end, self._values(values)) for start, end, values in self._rows
        ]
        if self._overflow:
            end = samples[-1].end_ns if samples else 0
            samples.append(CounterSample(end, end, dict.fromkeys(CUPTI_NAMES)))
            self.reasons = dict.fromkeys(CUPTI_NAMES, _OVERFLOW)
        return samples

    def close(self) -> None:
        """Let the hardware go, sampling or not."""
        sampler, self._sampler = self._sampler, None
        running, self._running = self._running, False
        if sampler is None:
            return
        try:
            if running:
                sampler.stop()
        finally:
            sampler.close()

    def record(self, path: str | Path, origin: str) -> None:
        """Write the samples of the last ``stop``, to be replayed; ``origin`` says what they are of.

        Raises CounterError if there is nothing, NexusbenchError if the file cannot be written.
        """
        if not self._rows:
            raise CounterError("nothing was sampled that could be recorded")
        rows = [
            (start, end, [value if math.isfinite(value) else None for value in row])
            for start, end, row in self._rows
        ]
        options = self._typed_options()
        chip = self._sampler.chip if self._sampler is not None else ""
        recording = CuptiRecording(
            origin=origin, chip=chip, interval_ns=options.interval_us * NS_PER_US,
            overflow=self._overflow, metrics=list(CUPTI_NAMES.values()), samples=rows,
        )  # fmt: skip
        write_recording(path, recording)

    def _typed_options(self) -> CuptiOptions:
        assert isinstance(self.options, CuptiOptions)
        return self.options

    def _open(self) -> Sampler:
        if self._sampler is None:
            options = self._typed_options()
            if options.recording:
                recording = read_recording(options.recording)
                self._sampler = RecordedSampler(recording, list(CUPTI_NAMES.values()))
            else:
                self._sampler = _open_hardware(options)
        return self._sampler

    def _values(self, row: list[float]) -> dict[str, float | None]:
        values: dict[str, float | None] = {}
        for name, value in zip(CUPTI_NAMES, row, strict=True):
            values[name] = value if math.isfinite(value) and value >= 0 else None
            if values[name] is None:
                self.reasons[name] = f"CUPTI gave no value for {CUPTI_NAMES[name]}"
        return values


def _open_hardware(options: CuptiOptions) -> Sampler:
    """The first backend that takes hold. Raises CounterError with what each of them said."""
    start_driver()
    config = Config(
        metrics=tuple(CUPTI_NAMES.values()),
        device=options.device,
        interval_ns=options.interval_us * NS_PER_US,
        buffer_bytes=options.buffer_mib * MIB,
    )
    backends: dict[str, Callable[[Config], Sampler]] = {
        "python": PythonSampler,
        "native": NativeSampler,
    }
    said = []
    for name, backend in backends.items():
        if options.backend in ("auto", name):
            try:
                return backend(config)
            except NotPermitted:
                raise
            except CounterError as error:
                said.append(str(error))
    raise CounterError("; ".join(said))
