"""check_metric: the contract of a metric, on whole, partial and empty runs."""

from __future__ import annotations

import math

import numpy as np

from nexusbench.core.errors import UsageError
from nexusbench.metrics.base import (
    Distribution,
    Metric,
    Scalar,
    check_declaration,
    load_metrics,
)
from nexusbench.metrics.run_events import RunEvents
from nexusbench.testing._errors import ConformanceError, named
from nexusbench.testing._runs import example_runs


def check_metric(metric: str | type[Metric]) -> None:
    """Compute a metric of every :func:`~nexusbench.testing._runs.example_runs`.

    ``metric`` is a tag of ``nexusbench list metrics`` or a class. Checked are: values are finite;
    no value has one line of reason; equal runs give equal values (I6); the events are left alone
    (I11); and what the class declares, its place in the table too. Raises ConformanceError, its
    text begins with the invariant or ``contract``; UsageError if there is no such metric.
    """
    made = _found(metric)
    for name, run in example_runs():
        with named(name):
            before = _fingerprint(run)
            first, second = _values(made, run), _values(made, run)
            if first.tobytes() != second.tobytes():
                raise ConformanceError("I6", f"'{made.tag}' of one run has two values")
            if _fingerprint(run) != before:
                raise ConformanceError("I11", f"'{made.tag}' changes the events that it reads")
            if not first.size:
                _check_reason(made, run)
    try:
        check_declaration(type(made))
    except UsageError as error:
        raise ConformanceError("contract", str(error)) from None


def _found(metric: str | type[Metric]) -> Metric:
    if not isinstance(metric, str):
        return metric()
    known = load_metrics()
    if metric not in known:
        raise UsageError(f"no metric has the tag '{metric}'. See nexusbench list metrics")
    return known[metric]


def _values(metric: Metric, run: RunEvents) -> np.ndarray:
    """All values as floats, none where it is undefined. Raises ConformanceError."""
    if isinstance(metric, Distribution):
        values = np.asarray(metric.values(run), dtype=np.float64)
        if values.ndim != 1:
            raise ConformanceError("contract", f"'{metric.tag}' gives {values.ndim} dimensions")
    elif isinstance(metric, Scalar):
        value = metric.value(run)
        values = np.array([] if value is None else [value], dtype=np.float64)
    else:
        raise ConformanceError("contract", f"'{metric.tag}' is neither Distribution nor Scalar")
    for value in values.tolist():
        if not math.isfinite(value):
            raise ConformanceError("contract", f"'{metric.tag}' gives {value}; give None or leave")
    return values


def _check_reason(metric: Metric, run: RunEvents) -> None:
    reason = metric.reason(run)
    if not isinstance(reason, str) or not reason.strip() or "\n" in reason:
        problem = f"'{metric.tag}' has no value and gives {reason!r} for a reason; give one line"
        raise ConformanceError("contract", problem)


def _fingerprint(run: RunEvents) -> int:
    """Changes if an array of the run does."""
    tables = [column.tobytes() for table in run.tables.values() for column in table.values()]
    columns = [run.requests[name].tobytes() for name in ("arrival", "prompt_tokens", "max_tokens")]
    return hash((*tables, *columns))
