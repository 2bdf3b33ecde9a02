"""Measured times between the points at which they were measured: curves over a count, grids over
several.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from itertools import product

Point = tuple[int, ...]
MOST_GRIDS = 4  # in a union


class TimeCurve:
    """A piecewise-linear function of one count; beyond its ends it goes on in proportion."""

    def __init__(self, points: Sequence[tuple[int, float]]) -> None:
        self.xs = tuple(x for x, _ in points)
        self.ys = tuple(y for _, y in points)

    def __call__(self, x: float) -> float:
        """The value at ``x`` >= 0."""
        xs, ys = self.xs, self.ys
        if x <= xs[0]:
            return ys[0]
        if x >= xs[-1]:
            return ys[-1] * x / xs[-1]
        i = bisect_right(xs, x)
        low, high = xs[i - 1], xs[i]
        return ys[i - 1] + (ys[i] - ys[i - 1]) * (x - low) / (high - low)


class TimeGrid:
    """A function on a full grid, multilinear between its points and constant beyond its ends."""

    def __init__(self, points: dict[Point, float]) -> None:
        self.axes = axes_of(points)
        self.values = self._filled(points)
        strides = [1] * len(self.axes)
        for i in range(len(self.axes) - 2, -1, -1):
            strides[i] = strides[i + 1] * len(self.axes[i + 1])
        self._strides = strides

    def __call__(self, point: Sequence[float]) -> float:
        """The value at ``point``, one coordinate per axis."""
        made, values = 0.0, self.values
        for at, weight in self.corners(point):
            made += values[at] * weight
        return made

    def _filled(self, points: dict[Point, float]) -> list[float]:
        return [points[point] for point in product(*self.axes)]

    def spans(self, point: Sequence[float]) -> bool:
        """Whether ``point`` lies between the ends of all axes."""
        return all(axis[0] <= x <= axis[-1] for axis, x in zip(self.axes, point, strict=True))

    def corners(self, point: Sequence[float]) -> list[tuple[int, float]]:
        """(index of a value, its share) of the corners around ``point``."""
        corners = [(0, 1.0)]
        for axis, stride, x in zip(self.axes, self._strides, point, strict=True):
            if x <= axis[0]:
                continue
            if x >= axis[-1]:
                corners = [(at + stride * (len(axis) - 1), w) for at, w in corners]
                continue
            i = bisect_right(axis, x)
            share = (x - axis[i - 1]) / (axis[i] - axis[i - 1])
            low, high = stride * (i - 1), stride * i
            corners = [
                corner
                for at, w in corners
                for corner in ((at + low, w * (1.0 - share)), (at + high, w * share))
            ]
        return corners


class UnionGrid(TimeGrid):
    """A function on several full grids of the same axes: on all values of each axis, multilinear.

    A combination of values that no grid has is the mean of those grids that reach around it, found
    when it is asked for first.
    """

    def __init__(self, points: dict[Point, float], grids: Sequence[frozenset[Point]]) -> None:
        self._grids = [TimeGrid({point: points[point] for point in own}) for own in grids]
        super().__init__(points)

    def _filled(self, points: dict[Point, float]) -> list[float]:
        return [points.get(point, -1.0) for point in product(*self.axes)]

    def __call__(self, point: Sequence[float]) -> float:
        """The value at ``point``, one coordinate per axis."""
        made, values = 0.0, self.values
        for at, weight in self.corners(point):
            if values[at] < 0.0:
                values[at] = self._between(at)
            made += values[at] * weight
        return made

    def _between(self, at: int) -> float:
        """The value of the combination with the index ``at``."""
        point = []
        for axis, stride in zip(self.axes, self._strides, strict=True):
            point.append(axis[at // stride % len(axis)])
        around = [grid for grid in self._grids if grid.spans(point)] or self._grids
        made = 0.0
        for grid in around:
            made += grid(point)
        return made / len(around)


def grid_of(points: dict[Point, float]) -> TimeGrid | None:
    """The function through ``points``, of times above 0: a full grid, or a union of full grids none
    of which only lacks values of another; None if they are neither.
    """
    axes = axes_of(points)
    size = 1
    for axis in axes:
        size *= len(axis)
    if size == len(points):
        return TimeGrid(points)
    grids: list[frozenset[Point]] = []
    left = dict.fromkeys(sorted(points))
    while left and len(grids) < MOST_GRIDS:
        found = next((own for point in left if (own := _around(point, axes, points))), None)
        if found is None:
            return None
        grids.append(found)
        left = {point: None for point in left if point not in found}
    if left or not all(_apart(a, b) for a in grids for b in grids if a is not b):
        return None
    return UnionGrid(points, grids)


def lacking(points: dict[Point, float]) -> Point:
    """A combination of values on the axes of ``points`` that they lack."""
    return next(point for point in product(*axes_of(points)) if point not in points)


def axes_of(points: Iterable[Point]) -> tuple[tuple[int, ...], ...]:
    """The values of each coordinate, in order."""
    return tuple(tuple(sorted(set(axis))) for axis in zip(*points, strict=True))


def _around(
    point: Point, axes: Sequence[Sequence[int]], points: dict[Point, float]
) -> frozenset[Point] | None:
    """The full grid of the values that each coordinate of ``point`` can have, the others staying;
    None if some combination of them is missing.
    """
    lines = [
        [value for value in axis if (*point[:i], value, *point[i + 1 :]) in points]
        for i, axis in enumerate(axes)
    ]
    own = []
    for each in product(*lines):
        if each not in points:
            return None
        own.append(each)
    return frozenset(own)


def _apart(a: frozenset[Point], b: frozenset[Point]) -> bool:
    """Whether some axis has values of ``a`` alone and values of ``b`` alone. Two parts of one grid
    that lacks a point have none.
    """
    pairs = zip(axes_of(a), axes_of(b), strict=True)
    return any(set(x) - set(y) and set(y) - set(x) for x, y in pairs)
