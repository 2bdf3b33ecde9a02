"""The base classes of metrics, and how the metrics of this folder and of plug-ins are found."""

from __future__ import annotations

import importlib
import pkgutil
from abc import ABC, abstractmethod
from functools import cache
from typing import ClassVar, Literal, NamedTuple, get_args

import msgspec

from nexusbench.core.errors import UsageError
from nexusbench.core.faults import fault_of
from nexusbench.core.registry import import_plugin, installed_plugins
from nexusbench.metrics.arrays import FloatArray
from nexusbench.metrics.run_events import RunEvents

Direction = Literal["lower", "higher", "none"]
Statistic = Literal["value", "mean", "p50", "p95", "p99", "min", "max"]
# Sections of the table of results, from the top.
Family = Literal["latency", "throughput", "memory", "splits", "host"]
FAMILIES: tuple[Family, ...] = get_args(Family)
PACKAGE = "nexusbench.metrics"
_TEXTS = ("tag", "unit", "title", "formula")


class TablePlace(msgspec.Struct, frozen=True):
    """Where a metric stands in the table of results, and how it is written there.

    ``order`` counts within the section ``family``, from small to large. There is one row for each
    of ``statistics``; without any it is the value, or mean, p50, p95 and p99 of a distribution. The
    metric's own ``title`` and ``unit`` serve where none is given. ``part_of`` is the tag of a
    metric below which this one is indented, in its unit.
    """

    family: Family
    order: int
    title: str = ""
    unit: str | None = None
    statistics: tuple[Statistic, ...] = ()
    part_of: str = ""
    only_if_any: bool = False  # no row where it is 0 in every column
    per_gpu: bool = False  # divided by the GPUs too, where columns differ in their number
    better: Direction | None = None  # overrides ``direction`` where the best of a row is marked


class Metric(ABC):
    """One declared metric. Subclass Distribution or Scalar; classes whose name starts with _ are
    machinery.

    ``tag`` names it in files, flags and tables; ``direction`` says which way is better; ``formula``
    is one line in the symbols of docs/metrics.md. Without a ``place`` it is in summaries, sweeps
    and gates, and has no row in the table of results.
    """

    tag: ClassVar[str]
    unit: ClassVar[str]
    direction: ClassVar[Direction]
    title: ClassVar[str]
    formula: ClassVar[str]
    kind: ClassVar[Literal["distribution", "scalar"]]
    place: ClassVar[TablePlace | None] = None
    # Computed from events of the engine only: undefined for a log that a client wrote.
    needs_engine: ClassVar[bool] = False
    # Rejected requests count, as such or as misses: rejecting requests does not improve the value.
    counts_refused: ClassVar[bool] = False

    # Printed where there is no value; override ``reason`` if it depends on the run.
    no_value: ClassVar[str] = "the run has nothing to compute it from"

    def reason(self, run: RunEvents) -> str:
        """Why the metric has no value for ``run``; asked only where it has none."""
        return self.no_value


class Distribution(Metric):
    """A metric with many values: mean and percentiles are reported."""

    kind = "distribution"

    @abstractmethod
    def values(self, run: RunEvents) -> FloatArray:
        """All values in ``unit``, in any order; empty where there are none."""


class Scalar(Metric):
    """A metric with one value."""

    kind = "scalar"

    @abstractmethod
    def value(self, run: RunEvents) -> float | None:
        """The value in ``unit``; None where it is not defined for the run."""


class FoundMetrics(NamedTuple):
    """Metrics by tag; and by name of the module or tag, why others cannot be used."""

    metrics: dict[str, Metric]
    broken: dict[str, str]


def load_metrics() -> dict[str, Metric]:
    """All metrics that can be used, by tag."""
    return find_metrics().metrics


def find_metrics() -> FoundMetrics:
    """All metrics: modules of this folder in alphabetical order, then entry points of its name.

    One that cannot be imported, lacks a declaration or takes the tag of an earlier one disables
    itself and no other: metrics are loaded when a run has been served, which must not be lost.
    """
    package = importlib.import_module(PACKAGE)
    names = sorted(f"{PACKAGE}.{module.name}" for module in pkgutil.iter_modules(package.__path__))
    entries = installed_plugins(PACKAGE)
    names += sorted({entry.value.partition(":")[0].strip() for entry in entries})
    found = FoundMetrics({}, {})
    for name in dict.fromkeys(names):
        try:
            module = import_plugin(name, "metric")
        except UsageError as error:
            found.broken[name] = str(error)
            continue
        for value in list(vars(module).values()):
            if _declares_metric(value, name):
                _add(found, value)
    # By tag, so that the order in summaries and sweeps does not depend on the files.
    return found._replace(metrics=dict(sorted(found.metrics.items())))


@cache
def tags_counting_refused() -> frozenset[str]:
    """Tags of the metrics that rejecting requests does not improve, looked up once."""
    return frozenset(tag for tag, metric in load_metrics().items() if metric.counts_refused)


def _add(found: FoundMetrics, cls: type[Metric]) -> None:
    name = f"{cls.__module__}.{cls.__qualname__}"
    try:
        metric = cls()
        check_declaration(cls)
    except KeyboardInterrupt:
        raise
    except UsageError as error:
        found.broken[name] = str(error)
        return
    except BaseException as error:
        found.broken[name] = f"metric {name} cannot be made: {fault_of(error)}"
        return
    if (other := found.metrics.setdefault(metric.tag, metric)) is not metric:
        found.broken[name] = (
            f"two metrics have the tag '{metric.tag}': "
            f"{type(other).__module__}.{type(other).__qualname__} and {name}. Rename one"
        )


def _declares_metric(value: object, module: str) -> bool:
    return (
        isinstance(value, type)
        and issubclass(value, Metric)
        and value.__module__ == module
        and module != __name__
        and not value.__name__.startswith("_")
    )


@cache
def check_declaration(cls: type[Metric]) -> None:
    """Raises UsageError naming the first attribute of a metric's class that is missing or wrong."""
    name = f"metric {cls.__module__}.{cls.__qualname__}"
    for attribute in _TEXTS:
        text = getattr(cls, attribute, None)
        if not isinstance(text, str) or not text or not text.isprintable():
            raise UsageError(f"{name} must declare '{attribute}' as one line of text")
    if not issubclass(cls, Distribution | Scalar):
        raise UsageError(f"{name} is neither a Distribution nor a Scalar")
    if getattr(cls, "direction", None) not in ("lower", "higher", "none"):
        raise UsageError(f"{name} must declare 'direction': lower, higher or none")
    if not isinstance(cls.counts_refused, bool):
        raise UsageError(f"{name} must declare 'counts_refused' as True or False")
    if cls.place is None:
        return
    if not isinstance(cls.place, TablePlace):
        raise UsageError(f"{name} must declare 'place' as a TablePlace")
    try:
        place = msgspec.convert(msgspec.to_builtins(cls.place), TablePlace)
    except (TypeError, msgspec.ValidationError) as error:
        raise UsageError(f"{name} has no usable 'place': {error}") from None
    if not f"{place.title}{place.unit or ''}".isprintable():
        raise UsageError(f"{name} must give 'title' and 'unit' of its place as one line of text")
    for statistic in place.statistics:
        if (statistic == "value") != issubclass(cls, Scalar):
            raise UsageError(f"{name}: a {cls.kind} has no statistic '{statistic}' to be shown")
