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
    """Of predicted/measured - 1, in per cent: mean and quantiles of its size; its mean (bias)."""

    n: int
    mape: float
    median: float
    p95: float
    bias: float


def errors(predicted: npt.NDArray[np.float64], measured: npt.NDArray[np.float64]) -> Errors | None:
    """The errors of some predictions; None of none."""
    if not len(measured):
        return None
    relative = 100.0 * (predicted / measured - 1.0)
    size = np.abs(relative)
    return Errors(
        len(size),
        float(size.mean()),
        float(np.median(size)),
        float(np.percentile(size, 95)),
        float(relative.mean()),
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


def broken_bounds(bounds: Mapping[str, float], reached: Mapping[str, float]) -> list[str]:
    """A sentence for each bound that ``reached`` (per cent, any sign) breaks.

    Raises UsageError for a bound on something that was not scored.
    """
    sentences = []
    for name, bound in bounds.items():
        if name not in reached:
            hint = did_you_mean(name, sorted(reached))
            raise UsageError(f"--bound {name}: nothing of that name was scored. {hint}")
        if not abs(reached[name]) <= bound:
            sentences.append(f"{name}: {reached[name]:.2f} % breaks its bound of {bound:g} %")
    return sentences
