"""Least relative squares, by scipy, which is imported where a fit runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]


def least_relative_squares(
    predict: Callable[[FloatArray], FloatArray],
    start: Sequence[float],
    bounds: Sequence[tuple[float, float]],
    measured: FloatArray,
) -> FloatArray:
    """Parameters within ``bounds`` that minimise the relative errors of ``predict`` (scipy's
    trust-region least squares, with a soft loss so that a few odd points do not rule the fit).
    """
    from scipy.optimize import least_squares

    low = np.array([a for a, _ in bounds], dtype=np.float64)
    high = np.array([b for _, b in bounds], dtype=np.float64)
    width = high - low
    inside = np.clip((np.array(start, dtype=np.float64) - low) / width, 1e-6, 1 - 1e-6)

    def residuals(unit: FloatArray) -> FloatArray:
        made: FloatArray = np.log(predict(low + unit * width) / measured)
        return made

    found = least_squares(
        residuals, inside, bounds=(0.0, 1.0), loss="soft_l1", f_scale=0.1, max_nfev=200
    )
    solution: FloatArray = low + found.x * width
    return solution
