"""From measured points to full grids over size, context and SMs (fits only; numpy is fine here)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from nexusbench.core.errors import UsageError
from nexusbench.core.work import chunk_work, equivalent_context
from nexusbench.costs._fit_least_squares import FloatArray
from nexusbench.profiles.points import Point
from nexusbench.profiles.surface import Surface

FAR = float(2**20)  # tokens or sequences: beyond every batch, so that nothing is outside a grid
LEAST_SHARE = 0.25  # of the first measured value, the least that is believed below it

Key = tuple[float, float]  # (size, context)
Line = dict[int, float]  # SMs -> value


def alone(points: Iterable[Point], kind: str) -> list[Point]:
    """Points of that kind that computed every layer once."""
    return [
        p for p in points
        if p.setting.kind == kind and p.setting.shape.layers is None
        and p.setting.shape.repeat == 1
    ]  # fmt: skip


def key_of(point: Point) -> Key:
    """(chunk tokens, context) of a prefill, (batch, mean context) of a decode."""
    shape = point.setting.shape
    if shape.chunks:
        tokens, pairs = chunk_work(shape.chunks)
        return float(tokens), equivalent_context(tokens, pairs)
    return float(shape.num_decodes), shape.decode_context / shape.num_decodes


def lines_of(points: Iterable[Point]) -> dict[Key, Line]:
    """Per (size, context) the ns over SMs: the mean where several points say the same.

    Decodes of different lengths are left out: a few of them would bend the lines of equal ones.
    """
    found: dict[Key, dict[int, list[float]]] = {}
    for point in points:
        if point.setting.contexts:
            continue
        found.setdefault(key_of(point), {}).setdefault(point.setting.sms, []).append(point.ns)
    return {
        key: {sms: float(np.mean(ns)) for sms, ns in line.items()} for key, line in found.items()
    }


def extended(x: FloatArray, xs: FloatArray, ys: FloatArray) -> FloatArray:
    """``ys`` over ascending ``xs`` at ``x``: linear, beyond the ends too."""
    made: FloatArray = np.interp(x, xs, ys)
    if len(xs) > 1:
        for side, inner, beyond in ((0, 1, x < xs[0]), (-1, -2, x > xs[-1])):
            slope = (ys[inner] - ys[side]) / (xs[inner] - xs[side])
            made = np.where(beyond, ys[side] + slope * (x - xs[side]), made)
    return made


def over_sms(line: Line, inverse: FloatArray) -> FloatArray:
    """A measured line at other 1/SMs: never faster on fewer SMs, at best in proportion to them."""
    xs = np.array([1.0 / sms for sms in sorted(line, reverse=True)])
    ys = isotonic(np.array([line[sms] for sms in sorted(line, reverse=True)]))
    perfect = ys[0] * inverse / xs[0]
    made: FloatArray = np.where(
        inverse < xs[0], np.maximum(extended(inverse, xs, ys), perfect), extended(inverse, xs, ys)
    )
    return made


def isotonic(values: FloatArray) -> FloatArray:
    """A close array that falls along no axis: halfway between its rising hulls from either side."""
    upper, lower = values, values
    for axis in range(values.ndim):
        upper = np.maximum.accumulate(upper, axis=axis)
        lower = np.flip(np.minimum.accumulate(np.flip(lower, axis), axis=axis), axis)
    made: FloatArray = (upper + lower) / 2.0
    return made


def surface(
    lines: Mapping[Key, Line], num_sms: int, *, phase: str, what: str, lowest_context: float
) -> Surface:
    """A monotone surface through ``lines``, holes filled and all axes extended to where no batch
    goes. Raises UsageError naming ``what`` must be measured more of.
    """
    usable = {key: line for key, line in lines.items() if len(line) > 1}
    sizes = sorted({size for size, _ in usable})
    rows: dict[float, list[float]] = {}
    for size, context in sorted(usable):
        rows.setdefault(size, []).append(context)
    if len(sizes) < 2 or max([len(row) for row in rows.values()], default=0) < 2:
        raise UsageError(
            f"the table needs {phase} alone at two or more {what} and two or more contexts, each "
            f"on shares of two or more sizes; measured were {len(sizes)} {what} in {len(lines)} "
            "shapes. Profile more: nexusbench profile without --quick"
        )
    contexts = _common_contexts(rows)
    inverse = _inverse_axis([sms for line in usable.values() for sms in line], num_sms)
    filled = _fill(
        {key: over_sms(line, inverse) for key, line in usable.items()}, rows, np.array(contexts)
    )
    sizes_axis, contexts_axis = np.array(list(filled)), np.array(contexts)
    values = np.stack(list(filled.values()))
    contexts_axis, values = _anchored(contexts_axis, values, lowest_context, along=1)
    sizes_axis, values = _anchored(sizes_axis, values, 0.0, along=0)
    values = isotonic(np.maximum(values, 1.0))
    return as_surface(sizes_axis, contexts_axis, inverse, values)


def as_surface(
    sizes: FloatArray, contexts: FloatArray, inverse: FloatArray, values: FloatArray
) -> Surface:
    """The arrays as plain numbers."""
    return Surface(
        tuple(sizes.tolist()),
        tuple(contexts.tolist()),
        tuple(inverse.tolist()),
        tuple([tuple([tuple(line) for line in row]) for row in values.tolist()]),
    )


def _common_contexts(rows: Mapping[float, Sequence[float]]) -> list[float]:
    """Contexts measured at two or more sizes; all of them where no two sizes share two."""
    seen: dict[float, int] = {}
    for row in rows.values():
        for context in row:
            seen[context] = seen.get(context, 0) + 1
    shared = sorted(context for context, count in seen.items() if count > 1)
    return shared if len(shared) > 1 else sorted(seen)


def _inverse_axis(sms: Iterable[int], num_sms: int) -> FloatArray:
    """1/SMs of all counts, and of one SM and of the whole device, ascending."""
    return np.array([1.0 / count for count in sorted({*sms, 1, num_sms}, reverse=True)])


def _fill(
    lines: Mapping[Key, FloatArray], rows: Mapping[float, Sequence[float]], contexts: FloatArray
) -> dict[float, FloatArray]:
    """Per size an array [context, 1/SMs]: along the context between and beyond what was measured.

    A size with one context takes the slope of the nearest size that has more, in proportion to the
    sizes: attention's work is their product.
    """
    slopes: dict[float, FloatArray] = {}
    for size, row in rows.items():
        if len(row) > 1:
            rise = lines[size, row[-1]] - lines[size, row[0]]
            slopes[size] = np.maximum(rise, 0.0) / (row[-1] - row[0])
    filled = {}
    for size, row in sorted(rows.items()):
        if len(row) == 1:
            near = min(slopes, key=lambda other: max(other / size, size / other))
            slope = slopes[near] * (size / near)
            made = lines[size, row[0]] + np.outer(contexts - row[0], slope)
        else:
            known = np.stack([lines[size, context] for context in row])
            made = np.stack(
                [extended(contexts, np.array(row), known[:, k]) for k in range(known.shape[1])], 1
            )
        floor = LEAST_SHARE * np.min([lines[size, context] for context in row], axis=0)
        filled[size] = np.maximum(made, floor)
    return filled


def _anchored(
    axis: FloatArray, values: FloatArray, lowest: float, *, along: int
) -> tuple[FloatArray, FloatArray]:
    """``values`` extended linearly down to ``lowest`` and up to FAR along one axis."""
    moved = np.moveaxis(values, along, 0)
    if axis[0] > lowest:
        slope = (moved[1] - moved[0]) / (axis[1] - axis[0])
        first = np.clip(moved[0] - slope * (axis[0] - lowest), LEAST_SHARE * moved[0], moved[0])
        moved, axis = np.concatenate([first[None], moved]), np.concatenate([[lowest], axis])
    if axis[-1] < FAR:
        slope = np.maximum((moved[-1] - moved[-2]) / (axis[-1] - axis[-2]), 0.0)
        last = moved[-1] + slope * (FAR - axis[-1])
        moved, axis = np.concatenate([moved, last[None]]), np.concatenate([axis, [FAR]])
    return axis, np.moveaxis(moved, 0, along)


def hats(x: FloatArray, axis: FloatArray) -> FloatArray:
    """Weights [n, axis] of linear interpolation over ascending ``axis``, constant beyond it."""
    return np.stack([np.interp(x, axis, unit) for unit in np.eye(len(axis))], axis=1)


def factor(known: FloatArray, part: FloatArray, measured: FloatArray) -> float:
    """The factor f >= 0 with the least relative squared error of ``known + f part``; 1 if nothing
    determines it.
    """
    weight = part / (measured * measured)
    scale = float((part * weight).sum())
    if scale <= 0.0:
        return 1.0
    return max(0.0, float(((measured - known) * weight).sum()) / scale)


def nodes(values: Iterable[float], most: int) -> list[float]:
    """At most ``most`` of the distinct values, both ends among them, spread evenly by rank.

    A single value gets a companion, so that every axis has two.
    """
    distinct = sorted(set(values))
    if len(distinct) == 1:
        return [distinct[0], distinct[0] + 1.0]
    if len(distinct) <= most:
        return distinct
    return [distinct[round(i * (len(distinct) - 1) / (most - 1))] for i in range(most)]


def spread_over(
    places: FloatArray, values: FloatArray, wanted: FloatArray, scale: Callable[..., FloatArray]
) -> FloatArray:
    """Values at ``wanted`` places: those of the same place, else all weighted by inverse distance.

    ``places`` [n, axes], ``values`` [n, k], ``wanted`` [m, axes]; ``scale`` makes coordinates
    comparable.
    """
    known, asked = scale(places), scale(wanted)
    distance = np.abs(asked[:, None, :] - known[None, :, :]).sum(axis=2)
    weight = 1.0 / np.maximum(distance, 1e-9) ** 4
    made: FloatArray = (weight @ values) / weight.sum(axis=1, keepdims=True)
    return made
