"""Piecewise-linear functions of a batch's size, its context and 1/SMs: plain arithmetic, so equal
parameters predict equal times on every machine. And slowdowns, looked up near measured pairs.

Work that divides over SMs is a straight line in 1/SMs; that is why they are interpolated there.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

import msgspec

from nexusbench.core.batch import BatchShape
from nexusbench.core.work import chunk_work, equivalent_context

Axes = tuple[tuple[float, ...], tuple[float, ...]]  # each of two or more ascending values
# Corners of a cell with their weights: (position, weight).
Corners = tuple[tuple[int, float], tuple[int, float], tuple[int, float], tuple[int, float]]
Corner = tuple[float, tuple[float, ...]]  # a weight, and values over the SMs
Place = tuple[float, float, float, float]  # chunk tokens, their context, batch, mean context


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


def corners(axes: Axes, x: float, y: float) -> Corners:
    """Positions in a row-major grid over two axes and the weights of bilinear interpolation at
    (x, y); constant beyond the ends.
    """
    i, u = bracket(axes[0], x)
    j, v = bracket(axes[1], y)
    width = len(axes[1])
    at, a, b = i * width + j, 1.0 - u, 1.0 - v
    return (at, a * b), (at + 1, a * v), (at + width, u * b), (at + width + 1, u * v)


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


class Slowdowns(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Slowdowns of one phase beside the other, over what both compute and over its own SMs.

    ``prefill`` axes are chunk tokens and their context, ``decode`` axes batch and mean context.
    ``values[prefill][decode]``, positions in either grid in row-major order, is a line: over
    ``own`` SMs of disjoint splits, then one value where all SMs are shared.
    """

    prefill: Axes
    decode: Axes
    own: tuple[float, ...]
    values: tuple[tuple[tuple[float, ...], ...], ...]

    def around(self, shape: BatchShape, neighbour: BatchShape) -> tuple[Corners, Corners]:
        """The corners around a pair in the prefill grid and in the decode grid."""
        tokens, context, batch, keys = place_of(shape, neighbour)
        return corners(self.prefill, tokens, context), corners(self.decode, batch, keys)


def place_of(shape: BatchShape, neighbour: BatchShape) -> Place:
    """Where a pair stands on the axes of the slowdowns.

    The prefill is the side that has chunks, the decode the other. Two batches of one phase are
    looked up beside the least of the other phase.
    """
    own = bool(shape.chunks)
    prefill, decode = (shape, neighbour) if own else (neighbour, shape)
    tokens = batch = 0
    context = keys = 0.0
    if prefill.chunks:
        tokens, pairs = chunk_work(prefill.chunks)
        context = equivalent_context(tokens, pairs)
    if decode.num_decodes and decode.chunks == ():
        batch = decode.num_decodes
        keys = decode.decode_context / batch
    return tokens, context, batch, keys


def contested(apart: float, together: float, own: int, shared: int) -> float:
    """The slowdown where ``shared`` of the ``own`` SMs are claimed by the neighbour too."""
    if shared <= 0:
        return apart
    share = min(1.0, shared / own)
    return apart * (1.0 - share) + together * share
