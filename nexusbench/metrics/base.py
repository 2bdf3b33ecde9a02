"""What a metric is, and how all of them are found: drop a file with a subclass into this folder."""

from __future__ import annotations

import importlib
import pkgutil
from abc import ABC, abstractmethod
from typing import ClassVar, Literal

from nexusbench.core.errors import UsageError
from nexusbench.core.registry import installed_plugins
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


def load_metrics() -> dict[str, Metric]:
    """All metrics by tag: modules of this folder in alphabetical order, then entry points of its
    name.

    Raises UsageError if two share a tag, or one lacks a declaration; the message names the places.
    """
    package = importlib.import_module(PACKAGE)
    names = sorted(f"{PACKAGE}.{module.name}" for module in pkgutil.iter_modules(package.__path__))
    names += sorted({entry.value.partition(":")[0] for entry in installed_plugins(PACKAGE)})
    found: dict[str, Metric] = {}
    for name in dict.fromkeys(names):
        for value in vars(importlib.import_module(name)).values():
            if _declares_metric(value, name):
                metric: Metric = value()
                _check_declaration(value)
                if metric.tag in found:
                    raise UsageError(
                        f"two metrics have the tag '{metric.tag}': "
                        f"{_place(type(found[metric.tag]))} and {_place(value)}. Rename one"
                    )
                found[metric.tag] = metric
    return found


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
        if not isinstance(text, str) or not text or "\n" in text:
            raise UsageError(f"metric {_place(metric)} must declare '{name}' as one line of text")
    if getattr(metric, "direction", None) not in ("lower", "higher", "none"):
        raise UsageError(f"metric {_place(metric)} must declare 'direction': lower, higher or none")


def _place(metric: type[Metric]) -> str:
    return f"{metric.__module__}.{metric.__qualname__}"
