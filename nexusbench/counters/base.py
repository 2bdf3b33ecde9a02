"""The counter seam: sources of hardware and system counters, and a group that reads several.

A counter that is not there, not permitted or not whole is None with a reason, never zero.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import ClassVar, Literal, Self

import msgspec

from nexusbench.core.errors import CounterError, UsageError
from nexusbench.core.registry import Registry

Unit = Literal[
    "bytes", "joules", "watts", "hertz", "cycles", "seconds", "share", "count"
]  # a share is 0..1
NO_SAMPLE = "no sample was taken"


class Support(msgspec.Struct, frozen=True):
    """Whether a source can be read here. The reason says why not, or remarks on one that can."""

    ok: bool
    reason: str = ""


class Quantity(msgspec.Struct, frozen=True):
    """One counter: ``name`` is SOURCE.COUNTER, so that every number names its origin.

    A ``total`` adds up over samples (bytes, joules); a ``gauge`` holds at a time (watts, hertz).
    """

    name: str
    unit: Unit
    kind: Literal["total", "gauge"]
    meaning: str


class CounterSample(msgspec.Struct, frozen=True):
    """What was read over one period of the source's clock, by metric name.

    A metric that is absent was not asked for in this period; one that is None was, in vain.
    """

    start_ns: int
    end_ns: int
    values: dict[str, float | None]


class Reading(msgspec.Struct, frozen=True):
    """One number for each metric of a run; those that are None have a reason."""

    values: dict[str, float | None]
    reasons: dict[str, str]


class CounterOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Options of a counter source; the base has none."""


class CounterSource(ABC):
    """Something that counts between ``start`` and ``stop``: one subclass in a file of this folder.

    ``clock`` says whose nanoseconds its samples carry: the host's monotonic clock, the device's
    (which may be virtual), or the GPU's own. ``intrusive``: reading it may slow what is measured,
    so it is never read in timed repetitions. ``reasons`` says why metrics are missing
    since the last ``probe`` or ``start``.
    """

    Options: ClassVar[type[CounterOptions]] = CounterOptions
    metrics: ClassVar[tuple[Quantity, ...]]
    clock: ClassVar[Literal["host", "device", "gpu"]] = "host"
    intrusive: ClassVar[bool] = False
    source: ClassVar[str] = ""

    def __init__(self, options: CounterOptions | None = None) -> None:
        self.options = options if options is not None else self.Options()
        self.reasons: dict[str, str] = {}

    @property
    def name(self) -> str:
        """The name the user types."""
        return type(self).__module__.rpartition(".")[2].replace("_", "-")

    def attach(self, device: object) -> None:
        """Offer the device of the run; sources that read no device leave it alone."""
        return

    @abstractmethod
    def probe(self) -> Support:
        """Whether it can be read here, found out by trying. Raises nothing; ``close`` follows."""

    @abstractmethod
    def start(self) -> None:
        """Begin to count. Raises CounterError if that fails."""

    @abstractmethod
    def stop(self) -> list[CounterSample]:
        """End, and return what was counted since ``start``, in order of time.

        Raises CounterError if the source broke down meanwhile.
        """

    @abstractmethod
    def close(self) -> None:
        """Release threads, handles and memory; also in mid-run or after an error, and twice."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def summarise(
    samples: Sequence[CounterSample],
    metrics: Iterable[Quantity],
    reasons: Mapping[str, str] | None = None,
) -> Reading:
    """One value for each metric: the sum of a total, the mean of a gauge weighted by time.

    A total with a hole is None: the sum of the rest would look like less work. A gauge is the mean
    of the periods in which it could be read.
    """
    values: dict[str, float | None] = {}
    missing: dict[str, str] = {}
    for metric in metrics:
        read = [
            (sample.end_ns - sample.start_ns, sample.values[metric.name])
            for sample in samples
            if metric.name in sample.values
        ]
        value = _sum(read) if metric.kind == "total" else _mean(read)
        values[metric.name] = value
        if value is None:
            missing[metric.name] = (reasons or {}).get(metric.name, NO_SAMPLE)
    return Reading(values, missing)


def _sum(read: list[tuple[int, float | None]]) -> float | None:
    known = [value for _, value in read if value is not None]
    return math.fsum(known) if known and len(known) == len(read) else None


def _mean(read: list[tuple[int, float | None]]) -> float | None:
    known = [(weight, value) for weight, value in read if value is not None]
    if not known:
        return None
    total = sum(weight for weight, _ in known)
    if total <= 0:
        return math.fsum(value for _, value in known) / len(known)
    mean = math.fsum(weight * value for weight, value in known) / total
    values = [value for _, value in known]
    return min(max(mean, min(values)), max(values))  # a share stays a share, whatever is rounded


class Counters:
    """Several sources read as one. Those that cannot be used are left out, with their reason.

    ``support`` says of every source whether it is read; ``failed`` names those that broke down
    later; ``samples`` holds what the last ``stop`` got. Intrusive sources are left out unless
    ``intrusive``. A source that raises, at any point, is closed and costs only its own numbers.
    """

    def __init__(
        self,
        sources: Iterable[CounterSource],
        *,
        device: object | None = None,
        intrusive: bool = False,
    ) -> None:
        self._sources: dict[str, CounterSource] = {}
        for source in sources:
            if source.name not in self._sources:
                self._sources[source.name] = source
                continue
            raise UsageError("a counter source can be read only once at a time; name each once")
        self.support: dict[str, Support] = {}
        self.failed: dict[str, str] = {}
        self.samples: dict[str, list[CounterSample]] = {}
        self._usable: list[str] = []
        self._running: list[str] = []
        for name, source in self._sources.items():
            self.support[name] = support = self._probe(source, device, intrusive)
            if support.ok:
                self._usable.append(name)
            elif not source.intrusive or intrusive:
                self._close(name)

    @classmethod
    def open(
        cls, names: Sequence[str], *, device: object | None = None, intrusive: bool = False
    ) -> Self:
        """The sources called ``NAME`` or ``NAME:key=value``. Raises UsageError for an unknown one,
        InputError for an option.
        """
        made = [counters.create(name) for name in names]
        return cls(made, device=device, intrusive=intrusive)

    @property
    def metrics(self) -> tuple[Quantity, ...]:
        """The metrics of all sources, the unusable ones too."""
        return tuple(metric for source in self._sources.values() for metric in source.metrics)

    def start(self) -> None:
        """Start every usable source. Raises CounterError if they run already."""
        if self._running:
            raise CounterError("the counters are running already; stop them first")
        self.samples = {}
        for name in list(self._usable):
            try:
                self._sources[name].start()
            except Exception as error:
                self._give_up(name, f"did not start: {why(error)}")
            else:
                self._running.append(name)

    def stop(self) -> Reading:
        """Stop them all; every declared metric is in the reading, as a number or with a reason."""
        for name in reversed(self._running):
            try:
                self.samples[name] = self._sources[name].stop()
            except Exception as error:
                self._give_up(name, f"broke down: {why(error)}")
        self._running = []
        values: dict[str, float | None] = {}
        reasons: dict[str, str] = {}
        for name, source in self._sources.items():
            if name in self.samples:
                read = summarise(self.samples[name], source.metrics, source.reasons)
                values.update(read.values)
                reasons.update(read.reasons)
                continue
            off = "" if self.support[name].ok else self.support[name].reason
            reason = self.failed.get(name) or off or f"was not started: {NO_SAMPLE}"
            for metric in source.metrics:
                values[metric.name], reasons[metric.name] = None, f"{name} {reason}"
        return Reading(values, reasons)

    def close(self) -> None:
        """Close every source, whatever one of them raises; twice is fine."""
        for name in self._usable[::-1]:
            self._close(name)
        self._usable, self._running = [], []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _probe(self, source: CounterSource, device: object | None, intrusive: bool) -> Support:
        if source.intrusive and not intrusive:
            # Not even probed: trying out PM sampling already touches the hardware.
            return Support(False, "is intrusive: read in repetitions of its own")
        try:
            if device is not None:
                source.attach(device)
            support = source.probe()
        except Exception as error:
            return Support(False, f"cannot be probed: {why(error)}")
        return support if support.ok else Support(False, f"is off: {support.reason}")

    def _give_up(self, name: str, reason: str) -> None:
        self.failed[name] = reason
        self._usable.remove(name)
        self._close(name)

    def _close(self, name: str) -> None:
        try:
            self._sources[name].close()
        except Exception as error:
            self.failed.setdefault(name, f"did not close: {why(error)}")


def why(error: BaseException) -> str:
    """An error in a few words, its kind included unless it is one of ours."""
    if isinstance(error, CounterError | UsageError):
        return str(error)
    return f"{type(error).__name__}: {error}".rstrip(": ")


counters = Registry("nexusbench.counters", "counter source", "CounterSource")


BUSY_SHARE = 0.15  # of one core, used by others: above it CPU trials were visibly disturbed
_THROTTLING = {
    "power cap": ("sw_power_cap",),
    "thermal slowdown": ("sw_thermal_slowdown", "hw_thermal_slowdown"),
    "hardware slowdown": ("hw_slowdown", "hw_power_brake"),
}


def throttled(reading: Reading) -> str | None:
    """Why the GPU held its clocks down and for which part of the time, or None.

    None also if the event reasons could not be read: ``reading.reasons`` then says so. Clocks that
    were set, idling and synchronised boosting are no throttling.
    """
    found = []
    for cause, names in _THROTTLING.items():
        share = max(reading.values.get(f"nvml.clock_event.{name}") or 0.0 for name in names)
        if share > 0:
            found.append(f"{cause} {share:.0%} of the time")
    return ", ".join(found) or None


def busy(reading: Reading) -> str | None:
    """What else used the CPU (over 15 % of a core) or the GPU meanwhile, or None.

    None also if that could not be read: ``reading.reasons`` then says so.
    """
    found = []
    elapsed = reading.values.get("process.elapsed")
    for name, user in (("cpu_others", "other processes"), ("cpu_stolen", "the hypervisor")):
        used = reading.values.get(f"process.{name}")
        if used is not None and elapsed and used / elapsed > BUSY_SHARE:
            found.append(f"{user} used {used / elapsed:.2f} CPU cores")
    others = reading.values.get("nvml.other_processes")
    if others:
        found.append(f"{others:.1f} other processes computed on the GPU")
    return ", ".join(found) or None
