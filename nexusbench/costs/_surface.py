"""Piecewise-linear functions of a batch's size, its context and 1/SMs: plain arithmetic, so equal
parameters predict equal times on every machine.

Work that divides over SMs is a straight line in 1/SMs; that is why they are interpolated there.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

import msgspec

# Corners of a grid with their weights: (position, weight).
Corners = list[tuple[int, float]]
Corner = tuple[float, tuple[float, ...]]  # a weight, and values over the SMs


def bracket(axis: tuple[float, ...], x: float) -> tuple[int, float]:
    """(i, u) with ``x`` = axis[i] + u (axis[i + 1] - axis[i]); clamped to the ends of the axis,
    which has two or more ascending values.
    """
    i = bisect_right(axis, x) - 1
    if i < 0:
        return 0, 0.0
    if i >= len(axis) - 1:
        return len(axis) - 2, 1.0
    return i, (x - axis[i]) / (axis[i + 1] - axis[i])


def between(axis: tuple[float, ...], values: Sequence[float], x: float) -> float:
    """``values`` over ``axis``, interpolated at ``x`` and constant beyond the ends."""
    i, u = bracket(axis, x)
    return values[i] * (1.0 - u) + values[i + 1] * u


def corners(axes: Sequence[tuple[float, ...]], point: Sequence[float]) -> Corners:
    """Positions in a row-major grid over ``axes`` and the weights of multilinear interpolation at
    ``point``; constant beyond the ends, and an axis may have a single value.
    """
    found: Corners = [(0, 1.0)]
    for axis, x in zip(axes, point, strict=True):
        size = len(axis)
        if x <= axis[0]:
            found = [(at * size, weight) for at, weight in found]
        elif x >= axis[-1]:
            found = [(at * size + size - 1, weight) for at, weight in found]
        else:
            i = bisect_right(axis, x)
            u = (x - axis[i - 1]) / (axis[i] - axis[i - 1])
            v = 1.0 - u
            found = [
                corner
                for at, weight in found
                for corner in ((at * size + i - 1, weight * v), (at * size + i, weight * u))
            ]
    return found


class Surface(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A value over (size, context, 1/SMs): ``values[size][context][1/SMs]``, axes ascending."""

    sizes: tuple[float, ...]
    contexts: tuple[float, ...]
    inverse_sms: tuple[float, ...]
    values: tuple[tuple[tuple[float, ...], ...], ...]

    def at(self, size: float, context: float) -> tuple[Corner, Corner, Corner, Corner]:
        """The four lines over 1/SMs around a size and a context, with their weights."""
        i, u = bracket(self.sizes, size)
        j, v = bracket(self.contexts, context)
        low, high = self.values[i], self.values[i + 1]
        return (
            ((1.0 - u) * (1.0 - v), low[j]),
            ((1.0 - u) * v, low[j + 1]),
            (u * (1.0 - v), high[j]),
            (u * v, high[j + 1]),
        )

    def value(self, size: float, context: float, sms: int) -> float:
        """The value on ``sms`` SMs."""
        (a, p), (b, q), (c, r), (d, s) = self.at(size, context)
        k, u = bracket(self.inverse_sms, 1.0 / sms)
        m = k + 1
        low = a * p[k] + b * q[k] + c * r[k] + d * s[k]
        return low * (1.0 - u) + (a * p[m] + b * q[m] + c * r[m] + d * s[m]) * u

    def line(self, size: float, context: float) -> list[float]:
        """The values over ``inverse_sms``."""
        (a, p), (b, q), (c, r), (d, s) = self.at(size, context)
        return [a * w + b * x + c * y + d * z for w, x, y, z in zip(p, q, r, s, strict=True)]
