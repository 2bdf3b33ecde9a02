"""Relative errors of predictions, and the bounds that they are held to."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import msgspec
import numpy as np
import numpy.typing as npt

from nexusbench.core.errors import UsageError
from nexusbench.core.registry import did_you_mean

EXIT_BOUND_BROKEN = 3  # the exit code of a regression


class Errors(msgspec.Struct, frozen=True):
    """Of predicted/measured - 1, in per cent: mean and quantiles of its size; its mean (bias).

    Of :func:`differences`: of predicted - measured, in the unit of both.
    """

    n: int
    mape: float
    median: float
    p95: float
    bias: float


def errors(predicted: npt.NDArray[np.float64], measured: npt.NDArray[np.float64]) -> Errors | None:
    """The errors of some predictions; None of none."""
    if not len(measured):
        return None
    return _summary(100.0 * (predicted / measured - 1.0))


def differences(
    predicted: npt.NDArray[np.float64], measured: npt.NDArray[np.float64]
) -> Errors | None:
    """The same of predicted - measured, in their own unit: of shares, which are near 1 or 0 and no
    times.
    """
    return _summary(predicted - measured) if len(measured) else None


def _summary(found: npt.NDArray[np.float64]) -> Errors:
    size = np.abs(found)
    return Errors(
        len(size),
        float(size.mean()),
        float(np.median(size)),
        float(np.percentile(size, 95)),
        float(found.mean()),
    )


def parse_bounds(texts: Sequence[str]) -> dict[str, float]:
    """``name:percent`` -> bounds. Raises UsageError for what is not that."""
    bounds = {}
    for text in texts:
        name, colon, number = text.rpartition(":")
        try:
            value = float(number)
        except ValueError:
            value = math.nan
        if not colon or not name or not (math.isfinite(value) and value > 0):
            raise UsageError(f"--bound takes NAME:PERCENT, e.g. gemm:8, not '{text}'")
        bounds[name] = value
    return bounds


def broken_bounds(
    bounds: Mapping[str, float],
    reached: Mapping[str, float],
    units: Mapping[str, str] | None = None,
) -> list[str]:
    """A sentence for each bound that ``reached`` (any sign) breaks. ``units``: of what is not in
    per cent.

    Raises UsageError for a bound on something that was not scored.
    """
    sentences = []
    for name, bound in bounds.items():
        if name not in reached:
            hint = did_you_mean(name, sorted(reached))
            raise UsageError(f"--bound {name}: nothing of that name was scored. {hint}")
        if not abs(reached[name]) <= bound:
            unit = (units or {}).get(name, "%")
            sentences.append(
                f"{name}: {reached[name]:.2f} {unit} breaks its bound of {bound:g} {unit}"
            )
    return sentences
