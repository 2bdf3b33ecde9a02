"""Counter sources around measured steps: which are read on which device, and what they say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Self

from nexusbench.counters.base import Counters, Reading, busy, throttled
from nexusbench.devices.base import Device
from nexusbench.profiling.measure import Readers

# What is read while samples are taken, and what in repetitions of its own. A simulated device's
# times do not depend on this machine, so neither do its counters.
SIMULATED, REAL, INTRUSIVE = ("sim",), ("process", "nvml"), ("cupti",)


class Counting:
    """Some sources read as one (:class:`nexusbench.profiling.measure.CounterReader`)."""

    def __init__(self, counters: Counters) -> None:
        self._counters = counters
        self._kinds = {metric.name: metric.kind for metric in counters.metrics}
        self._reading = Reading({}, {})

    @property
    def sources(self) -> Mapping[str, str]:
        """Source -> ``on``, or why it is off or broke down."""
        failed = self._counters.failed
        return {
            name: failed.get(name) or ("on" if support.ok else support.reason)
            for name, support in self._counters.support.items()
        }

    def before(self) -> None:
        """Start counting."""
        self._counters.start()

    def after(self, steps: int) -> dict[str, float | None]:
        """Stop; totals per step, gauges as they are. Metrics of sources that are off are left out
        (``sources`` says why); what a running source could not read is None.
        """
        self._reading = self._counters.stop()
        read = {name for name, how in self.sources.items() if how == "on"}
        return {
            name: value / steps if value is not None and self._kinds[name] == "total" else value
            for name, value in self._reading.values.items()
            if name.partition(".")[0] in read
        }

    def warnings(self) -> list[str]:
        """Throttling, and others on this machine, since ``before``."""
        found = (throttled(self._reading), busy(self._reading))
        return [sentence for sentence in found if sentence is not None]


class OpenReaders:
    """The readers of a sweep of ``device``; a context manager, since sources hold drivers open.

    ``names`` are counter sources (``NAME`` or ``NAME:key=value``), () for the device's usual ones;
    intrusive ones among them are read apart. Raises UsageError for an unknown one.
    """

    def __init__(self, device: Device, names: Sequence[str] = ()) -> None:
        usual = SIMULATED if device.spec.simulated else (*REAL, *INTRUSIVE)
        chosen = tuple(names) or usual
        apart = [name for name in chosen if name.partition(":")[0] in INTRUSIVE]
        timed = [name for name in chosen if name not in apart]
        self._timed = Counters.open(timed, device=device)
        self._apart = Counters.open(apart, device=device, intrusive=True)
        usable = any(support.ok for support in self._apart.support.values())
        beside = Counting(self._apart)
        self.readers = Readers(
            timed=Counting(self._timed),
            intrusive=beside if usable else None,
            off=dict(beside.sources),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._timed.close()
        self._apart.close()
