"""NVML through nvidia-ml-py: power, energy, clocks, why they are held down, memory, GPM."""

from __future__ import annotations

import os
import threading
from typing import Any, ClassVar

from nexusbench.core.clock import now_ns
from nexusbench.core.errors import CounterError
from nexusbench.core.units import NS_PER_S
from nexusbench.counters._nvml_reader import (
    CLOCK_EVENTS,
    GPM_METRICS,
    GpmWindows,
    NvmlReader,
    find_gpu,
    load_nvml,
)
from nexusbench.counters._visible import computing_gpu
from nexusbench.counters.base import (
    CounterOptions,
    CounterSample,
    CounterSource,
    Quantity,
    Support,
)

PERIOD_NS = 100_000_000  # 10 Hz: the driver renews little of this more often
_JOIN_S = 10.0
_TOO_SHORT = "the period was shorter than the 120 ms that GPM needs"


class NvmlOptions(CounterOptions, frozen=True, kw_only=True):
    """``device``: ``cuda`` for the GPU that CUDA computes on, NVML's number of one (by PCI bus,
    whatever CUDA_VISIBLE_DEVICES says), or its UUID.
    """

    device: str = "cuda"


class NvmlCounters(CounterSource):
    """Power, energy, clocks, clock event reasons, memory and GPM metrics of one whole GPU.

    A thread reads them ten times a second; a gauge of a sample is the mean of the readings at its
    two ends.
    """

    Options: ClassVar[type[CounterOptions]] = NvmlOptions
    source: ClassVar[str] = "NVML API reference (nvml.h), by nvidia-ml-py"
    metrics: ClassVar[tuple[Quantity, ...]] = (
        Quantity("nvml.power", "watts", "gauge", "instant board power"),
        Quantity("nvml.energy", "joules", "total", "energy of the board"),
        Quantity("nvml.sm_clock", "hertz", "gauge", "SM clock"),
        Quantity("nvml.memory_clock", "hertz", "gauge", "memory clock"),
        Quantity("nvml.memory_used", "bytes", "gauge", "GPU memory in use, of all processes"),
        Quantity("nvml.other_processes", "count", "gauge", "other processes computing on the GPU"),
        Quantity("nvml.sm_util", "share", "gauge", "GPM: SMs busy, of all SMs"),
        Quantity(
            "nvml.sm_occupancy", "share", "gauge", "GPM: warps resident, of the most possible"
        ),
        Quantity("nvml.tensor_util", "share", "gauge", "GPM: time with any tensor operation"),
        Quantity("nvml.dram_util", "share", "gauge", "GPM: HBM bandwidth used, of the peak"),
        *(
            Quantity(f"nvml.clock_event.{name}", "share", "gauge", f"time in which {meaning}")
            for name, (_, meaning) in CLOCK_EVENTS.items()
        ),
    )

    def __init__(self, options: CounterOptions | None = None) -> None:
        super().__init__(options)
        self._nvml: Any = None
        self._computing: tuple[str, int] = ("", 0)  # UUID, if known, and number of CUDA's GPU
        self._reader: NvmlReader | None = None
        self._gpm: GpmWindows | None = None
        self._thread: threading.Thread | None = None
        self._end = threading.Event()
        self._error: Exception | None = None
        self._samples: list[CounterSample] = []
        self._last: tuple[int, dict[str, float | None]] = (0, {})

    def attach(self, device: object) -> None:
        """Read the GPU that ``device`` computes on, if it is one of CUDA's."""
        uuid, number = getattr(device, "gpu_uuid", ""), getattr(device, "gpu_number", 0)
        if isinstance(uuid, str) and isinstance(number, int):
            self._computing = uuid, number

    def probe(self) -> Support:
        """Reads everything once: ``reasons`` then names the metrics that this GPU does not give."""
        try:
            reader, gpm = self._open()
            reader.read()
        except CounterError as error:
            self.close()
            return Support(False, str(error))
        self.reasons = dict.fromkeys(GPM_METRICS, gpm.reason) if gpm.reason else {}
        self.reasons.update(reader.reasons)
        return Support(True)

    def start(self) -> None:
        """Take the first reading and start the thread. Raises CounterError without driver or GPU,
        or if it runs already.
        """
        if self._thread is not None:
            raise CounterError("is running already")
        reader, gpm = self._open()
        reader.forget()
        gpm.reasons.clear()
        self._samples, self._error = [], None
        now = now_ns()
        gpm.begin(now)
        self._last = now, reader.read()
        self._end.clear()
        self._thread = threading.Thread(target=self._watch, name="nvml", daemon=True)
        self._thread.start()

    def stop(self) -> list[CounterSample]:
        """End the thread, take the last reading. Raises CounterError if a reading had failed as a
        whole (a lost GPU).
        """
        if self._thread is None or self._reader is None or self._gpm is None:
            raise CounterError("was not started")
        self._halt()
        if self._error is not None:
            raise CounterError(str(self._error)) from self._error
        self._read()
        self._check_energy()
        self.reasons = dict.fromkeys(GPM_METRICS, self._gpm.reason or _TOO_SHORT)
        self.reasons.update({**self._reader.reasons, **self._gpm.reasons})
        return self._samples

    def _check_energy(self) -> None:
        """A total that has not moved for a second is one that this GPU does not keep."""
        assert self._reader is not None
        readings = [s for s in self._samples if s.values.get("nvml.energy") is not None]
        if not readings or any(s.values["nvml.energy"] for s in readings):
            return
        if readings[-1].end_ns - readings[0].start_ns >= NS_PER_S:
            for sample in readings:
                sample.values["nvml.energy"] = None
            self._reader.reasons["nvml.energy"] = "the driver's total did not move"

    def close(self) -> None:
        """End the thread, free GPM's buffers, let NVML go."""
        self._halt()  # raises if the thread hangs in the driver: then NVML must stay as it is
        nvml, gpm = self._nvml, self._gpm
        self._nvml = self._reader = self._gpm = None
        if nvml is None:
            return
        try:
            try:
                if gpm is not None:
                    gpm.close()
            finally:
                nvml.nvmlShutdown()
        except nvml.NVMLError as error:
            raise CounterError(f"NVML did not shut down: {error}") from error

    def _open(self) -> tuple[NvmlReader, GpmWindows]:
        if self._reader is None or self._gpm is None:
            self._nvml = load_nvml()
            options = self.options
            assert isinstance(options, NvmlOptions)
            if options.device == "cuda":
                handle = computing_gpu(self._nvml, *self._computing, os.environ)
            else:
                handle = find_gpu(self._nvml, options.device)
            self._reader = NvmlReader(self._nvml, handle)
            self._gpm = GpmWindows(self._nvml, handle)
        return self._reader, self._gpm

    def _halt(self) -> None:
        thread, self._thread = self._thread, None
        if thread is None:
            return
        self._end.set()
        thread.join(_JOIN_S)
        if thread.is_alive():
            raise CounterError(f"the driver has not answered for {_JOIN_S:g} s")

    def _watch(self) -> None:
        """The thread: one reading a period, by deadlines so that it does not drift."""
        due = self._last[0] + PERIOD_NS
        while not self._end.wait(max(0, due - now_ns()) / NS_PER_S):
            try:
                self._read()
            except Exception as error:
                self._error = error  # raised by stop(), on the caller's thread
                return
            due = max(due + PERIOD_NS, now_ns())

    def _read(self) -> None:
        assert self._reader is not None
        assert self._gpm is not None
        before_ns, before = self._last
        now = now_ns()
        after = self._reader.read()
        self._last = now, after
        values: dict[str, float | None] = {}
        for name, new in after.items():
            old = before[name]
            if old is None or new is None:
                values[name] = None
            elif name != "nvml.energy":
                values[name] = (old + new) / 2
            elif new >= old:
                values[name] = new - old
            else:
                values[name] = None
                self._reader.reasons[name] = "the driver's total went backwards"
        self._samples.append(CounterSample(before_ns, now, values))
        window = self._gpm.poll(now)
        if window is not None:
            self._samples.append(window)
