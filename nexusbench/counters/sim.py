"""Counters of a simulated device: exact, on its virtual clock."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal

from nexusbench.core.errors import CounterError
from nexusbench.core.units import NS_PER_S
from nexusbench.counters.base import CounterOptions, CounterSample, CounterSource, Quantity, Support

# Metric -> (the device's total, units of it in one of ours)
_TOTALS = {
    "sim.elapsed": ("now_ns", NS_PER_S),
    "sim.busy": ("busy_ns", NS_PER_S),
    "sim.dram_bytes": ("dram_bytes", 1),
    "sim.sm_active": ("sm_active_ns", NS_PER_S),
    "sim.tensor_busy": ("tensor_busy_ns", NS_PER_S),
}


class SimCounters(CounterSource):
    """What a simulated device adds up itself. Simulated, not measured.

    Takes any device with ``totals() -> dict[str, float]``, cumulative since it was opened, in bytes
    and ns of its own clock; a total that it does not offer is None with a reason.
    """

    clock: ClassVar[Literal["host", "device", "gpu"]] = "device"
    source: ClassVar[str] = "the attached device's totals()"
    metrics: ClassVar[tuple[Quantity, ...]] = (
        Quantity("sim.elapsed", "seconds", "total", "simulated time"),
        Quantity("sim.busy", "seconds", "total", "simulated time in which anything ran"),
        Quantity("sim.dram_bytes", "bytes", "total", "read from and written to HBM"),
        Quantity("sim.sm_active", "seconds", "total", "SM-seconds: busy time summed over SMs"),
        Quantity(
            "sim.tensor_busy", "seconds", "total", "time of the tensor cores at their peak rate"
        ),
    )

    def __init__(self, options: CounterOptions | None = None) -> None:
        super().__init__(options)
        self._device: Any = None
        self._before: dict[str, float] | None = None

    def attach(self, device: object) -> None:
        """Read this device from now on; not during a run."""
        self._device = device

    def probe(self) -> Support:
        """Off unless the attached device offers totals."""
        if self._device is None:
            return Support(False, "no device is attached; a run on sim:GPU brings its own")
        try:
            self._totals()
        except CounterError as error:
            return Support(False, str(error))
        return Support(True, "simulated, not measured")

    def start(self) -> None:
        """Note the totals. Raises CounterError if the device has none."""
        self.reasons = {}
        self._before = self._totals()

    def stop(self) -> list[CounterSample]:
        """One sample: the differences since ``start``. Raises CounterError without a start."""
        if self._before is None:
            raise CounterError("was not started")
        before, after, self._before = self._before, self._totals(), None
        values: dict[str, float | None] = {}
        for metric, (key, scale) in _TOTALS.items():
            values[metric] = self._difference(metric, before.get(key), after.get(key), scale)
        times = int(before.get("now_ns", 0)), int(after.get("now_ns", 0))
        return [CounterSample(*times, values)]

    def close(self) -> None:
        """Let the device go; it is not closed."""
        self._device = self._before = None

    def _totals(self) -> dict[str, float]:
        totals = getattr(self._device, "totals", None)
        read = totals() if callable(totals) else None
        if read is None:
            kind = type(self._device).__name__
            raise CounterError(f"the device ({kind}) keeps no totals: it is not simulated")
        return dict(read)

    def _difference(
        self, metric: str, before: float | None, after: float | None, scale: float
    ) -> float | None:
        if before is None or after is None:
            self.reasons[metric] = "the device does not add this up"
            return None
        change = (after - before) / scale
        if not math.isfinite(change) or change < 0:
            self.reasons[metric] = f"the device's total went from {before:g} to {after:g}"
            return None
        return change
