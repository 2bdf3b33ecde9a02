"""Cutting long data down to what a page can carry; every cut is said where it is drawn."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from nexusbench.metrics.arrays import IntArray

DIGITS = 4
# Shares at which a distribution is drawn: dense where its tail is.
_SHARES = np.concatenate(
    (
        np.linspace(0, 0.9, 151),
        np.linspace(0.9, 0.99, 61)[1:],
        np.linspace(0.99, 0.999, 31)[1:],
        np.linspace(0.999, 1, 11)[1:],
    )
)


def short(values: npt.NDArray[Any], digits: int = DIGITS) -> list[float | int]:
    """Numbers to so many significant digits, for a page that people may read the source of."""
    if values.dtype.kind in "iu":
        whole: list[float | int] = values.tolist()
        return whole
    return [_round(value, digits) for value in values.tolist()]


def _round(value: float, digits: int) -> float | int:
    if value == 0 or not math.isfinite(value):
        return 0
    rounded = round(value, digits - 1 - math.floor(math.log10(abs(value))))
    # An integer is written without ".0".
    return int(rounded) if rounded == int(rounded) else rounded


def cdf(values: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """(values, shares up to them in %): all of them if they are few, else exact quantiles.

    Quantiles interpolate as the summary's percentiles do, so the curve meets the table.
    """
    if len(values) <= len(_SHARES):
        found = np.sort(values)
        return found, 100 * np.linspace(0, 1, len(found)) if len(found) > 1 else np.full(1, 100.0)
    return np.quantile(values, _SHARES), 100 * _SHARES


def spread(count: int, limit: int) -> IntArray:
    """Positions of at most ``limit`` of ``count`` things, evenly spaced; all if they are few."""
    step = max(1, -(-count // max(1, limit)))
    return np.arange(0, count, step, dtype=np.int64)


def with_largest(values: npt.NDArray[Any], limit: int, extremes: int) -> IntArray:
    """Evenly spaced positions, and those of the ``extremes`` largest values, in order."""
    if len(values) <= limit:
        return np.arange(len(values), dtype=np.int64)
    largest = np.argsort(-values, kind="stable")[:extremes]
    return np.union1d(spread(len(values), limit - extremes), largest)


def nice_length(span_ns: float) -> int:
    """The largest of 1, 2 or 5 times a power of ten (ns) that is not above ``span_ns``."""
    if span_ns < 1:
        return 1
    power = 10 ** math.floor(math.log10(span_ns))
    return int(next(m for m in (5, 2, 1) if m * power <= span_ns) * power)
