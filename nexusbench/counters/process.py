"""What this process and its neighbours on the host used: CPU time, switches, faults, memory."""

from __future__ import annotations

import os
from importlib import import_module
from typing import Any, ClassVar

import msgspec

from nexusbench.core.clock import now_ns
from nexusbench.core.errors import CounterError
from nexusbench.core.units import NS_PER_S
from nexusbench.counters.base import CounterOptions, CounterSample, CounterSource, Quantity, Support

# Systems account CPU time in ticks of up to 10 ms; over less than this a tick or two decides.
SHORTEST_NS = 200_000_000


class _Snapshot(msgspec.Struct, frozen=True):
    """Cumulative values by metric (None: not to be had), and the system's CPU time."""

    at_ns: int
    values: dict[str, float | None]
    system_busy: float  # seconds of all cores, this process included, stolen time excluded
    system_total: float  # seconds of all cores, idle included


class ProcessCounters(CounterSource):
    """psutil: CPU time, context switches, page faults and memory of this process, and the CPU time
    that other processes used meanwhile.
    """

    source: ClassVar[str] = "psutil (operating system accounting), getrusage"
    metrics: ClassVar[tuple[Quantity, ...]] = (
        Quantity("process.elapsed", "seconds", "total", "real time"),
        Quantity(
            "process.cpu_user", "seconds", "total", "CPU time in user mode, ended children too"
        ),
        Quantity("process.cpu_system", "seconds", "total", "CPU time in the kernel, likewise"),
        Quantity("process.cpu_others", "seconds", "total", "CPU time of all other processes"),
        Quantity(
            "process.cpu_stolen", "seconds", "total", "CPU time the hypervisor kept for others"
        ),
        Quantity("process.switches_voluntary", "count", "total", "context switches to wait"),
        Quantity("process.switches_forced", "count", "total", "context switches to let others run"),
        Quantity("process.faults_minor", "count", "total", "page faults without reading a disk"),
        Quantity("process.faults_major", "count", "total", "page faults that read a disk"),
        Quantity("process.rss", "bytes", "gauge", "resident memory, mean of begin and end"),
    )

    def __init__(self, options: CounterOptions | None = None) -> None:
        super().__init__(options)
        self._before: _Snapshot | None = None

    def probe(self) -> Support:
        """Off without psutil, or if the system shows no accounting."""
        self.reasons = {}
        try:
            self._snapshot()
        except CounterError as error:
            return Support(False, str(error))
        return Support(True)

    def start(self) -> None:
        """Note where the accounts stand."""
        self.reasons = {}
        self._before = self._snapshot()

    def stop(self) -> list[CounterSample]:
        """One sample: the differences since ``start``. Raises CounterError without a start."""
        if self._before is None:
            raise CounterError("was not started")
        before, after, self._before = self._before, self._snapshot(), None
        values: dict[str, float | None] = {}
        for metric, new in after.values.items():
            old = before.values[metric]
            if old is None or new is None:
                values[metric] = None
            elif metric == "process.rss":
                values[metric] = (old + new) / 2
            else:
                values[metric] = max(0.0, new - old)
        values["process.elapsed"] = (after.at_ns - before.at_ns) / NS_PER_S
        values["process.cpu_others"] = self._others(before, after, values)
        if after.at_ns - before.at_ns < SHORTEST_NS and values["process.cpu_stolen"] is not None:
            values["process.cpu_stolen"] = None
            self.reasons["process.cpu_stolen"] = _too_short(before, after)
        return [CounterSample(before.at_ns, after.at_ns, values)]

    def close(self) -> None:
        """Forget the start; there is nothing to release."""
        self._before = None

    def _others(
        self, before: _Snapshot, after: _Snapshot, values: dict[str, float | None]
    ) -> float | None:
        """Seconds of CPU that were neither idle nor ours, or None with a reason."""
        reason = ""
        if after.at_ns - before.at_ns < SHORTEST_NS:
            reason = _too_short(before, after)
        elif after.system_total <= before.system_total:
            # Some sandboxes show a /proc/stat that stands still.
            reason = "the system's CPU accounting stands still here"
        if reason:
            self.reasons["process.cpu_others"] = reason
            return None
        own = (values["process.cpu_user"] or 0.0) + (values["process.cpu_system"] or 0.0)
        # The accounts of process and system are not read in the same instant.
        return max(0.0, after.system_busy - before.system_busy - own)

    def _snapshot(self) -> _Snapshot:
        """Raises CounterError, with what to do, if the accounts cannot be read."""
        try:
            psutil: Any = import_module("psutil")
        except ImportError:
            raise CounterError("psutil is not installed; pip install psutil") from None
        try:
            system = psutil.cpu_times()._asdict()
            process = psutil.Process(os.getpid())
            with process.oneshot():
                own = process.cpu_times()
                switches = process.num_ctx_switches()
                memory = process.memory_info()
        except (psutil.Error, OSError) as error:
            raise CounterError(f"the accounts of this process cannot be read: {error}") from error
        values: dict[str, float | None] = {
            "process.cpu_user": own.user + getattr(own, "children_user", 0.0),
            "process.cpu_system": own.system + getattr(own, "children_system", 0.0),
            "process.cpu_stolen": system.get("steal"),
            "process.switches_voluntary": switches.voluntary,
            "process.switches_forced": switches.involuntary,
            "process.rss": memory.rss,
            **self._faults(),
        }
        if values["process.cpu_stolen"] is None:
            self.reasons["process.cpu_stolen"] = "this operating system does not account for it"
        # user holds the time of guests already; iowait is idle time with a reason.
        total = sum(value for key, value in system.items() if not key.startswith("guest"))
        idle = system["idle"] + system.get("iowait", 0.0) + system.get("steal", 0.0)
        return _Snapshot(now_ns(), values, total - idle, total)

    def _faults(self) -> dict[str, float | None]:
        names = ("process.faults_minor", "process.faults_major")
        try:
            import resource
        except ImportError:
            self.reasons.update(dict.fromkeys(names, "this operating system has no getrusage"))
            return dict.fromkeys(names)
        usage = resource.getrusage(resource.RUSAGE_SELF)
        return {names[0]: usage.ru_minflt, names[1]: usage.ru_majflt}


def _too_short(before: _Snapshot, after: _Snapshot) -> str:
    period = (after.at_ns - before.at_ns) / NS_PER_S
    return f"{period:.3f} s is too short for the system's CPU accounting (0.2 s at least)"
