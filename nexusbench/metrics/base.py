"""What a metric is, and how all of them are found: drop a file with a subclass into this folder."""

from __future__ import annotations

import importlib
import pkgutil
from abc import ABC, abstractmethod
from typing import ClassVar, Literal, NamedTuple

from nexusbench.core.errors import UsageError
from nexusbench.core.faults import fault_of
from nexusbench.core.registry import import_plugin, installed_plugins
from nexusbench.metrics.intervals import FloatArray
from nexusbench.metrics.run_events import RunEvents

Direction = Literal["lower", "higher", "none"]
PACKAGE = "nexusbench.metrics"
_TEXTS = ("tag", "unit", "title", "formula")


class Metric(ABC):
    """One declared metric. Subclass Distribution or Scalar; classes whose name starts with _ are
    machinery.

    ``tag`` names it in files, flags and tables; ``direction`` says which way is better; ``formula``
    is one line in the symbols of docs/metrics.md.
    """

    tag: ClassVar[str]
    unit: ClassVar[str]
    direction: ClassVar[Direction]
    title: ClassVar[str]
    formula: ClassVar[str]
    kind: ClassVar[Literal["distribution", "scalar"]]
    # It is about what only the engine sees: a log that a client wrote has no value of it.
    needs_engine: ClassVar[bool] = False
    # Its values are of what was answered: turning requests away may improve it.
    of_answered: ClassVar[bool] = False

    def reason(self, run: RunEvents) -> str:
        """Why the metric has no value for ``run``; asked only where it has none."""
        return "the run has nothing to compute it from"


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


class Found(NamedTuple):
    """Metrics by tag; and by name of the module or tag, why others cannot be used."""

    metrics: dict[str, Metric]
    broken: dict[str, str]


def load_metrics() -> dict[str, Metric]:
    """All metrics that can be used, by tag."""
    return find_metrics().metrics


def find_metrics() -> Found:
    """All metrics: modules of this folder in alphabetical order, then entry points of its name.

    One that cannot be imported, lacks a declaration or takes the tag of an earlier one disables
    itself and no other: metrics are loaded when a run has been served, which must not be lost.
    """
    package = importlib.import_module(PACKAGE)
    names = sorted(f"{PACKAGE}.{module.name}" for module in pkgutil.iter_modules(package.__path__))
    entries = installed_plugins(PACKAGE)
    names += sorted({entry.value.partition(":")[0].strip() for entry in entries})
    found = Found({}, {})
    for name in dict.fromkeys(names):
        try:
            module = import_plugin(name, "metric")
        except UsageError as error:
            found.broken[name] = str(error)
            continue
        for value in list(vars(module).values()):
            if _declares_metric(value, name):
                _add(found, value)
    return found


def _add(found: Found, cls: type[Metric]) -> None:
    try:
        metric = cls()
        _check_declaration(cls)
    except KeyboardInterrupt:
        raise
    except UsageError as error:
        found.broken[_place(cls)] = str(error)
        return
    except BaseException as error:
        found.broken[_place(cls)] = f"metric {_place(cls)} cannot be made: {fault_of(error)}"
        return
    if metric.tag in found.metrics:
        other = type(found.metrics[metric.tag])
        found.broken[_place(cls)] = (
            f"two metrics have the tag '{metric.tag}': {_place(other)} and {_place(cls)}. "
            "Rename one"
        )
        return
    found.metrics[metric.tag] = metric


def _declares_metric(value: object, module: str) -> bool:
    return (
        isinstance(value, type)
        and issubclass(value, Metric)
        and value.__module__ == module
        and module != __name__
        and not value.__name__.startswith("_")
    )


def _check_declaration(metric: type[Metric]) -> None:
    for name in _TEXTS:
        text = getattr(metric, name, None)
        if not isinstance(text, str) or not text or not text.isprintable():
            raise UsageError(f"metric {_place(metric)} must declare '{name}' as one line of text")
    if not issubclass(metric, Distribution | Scalar):
        raise UsageError(f"metric {_place(metric)} is neither a Distribution nor a Scalar")
    if getattr(metric, "direction", None) not in ("lower", "higher", "none"):
        raise UsageError(f"metric {_place(metric)} must declare 'direction': lower, higher or none")


def _place(metric: type[Metric]) -> str:
    return f"{metric.__module__}.{metric.__qualname__}"
