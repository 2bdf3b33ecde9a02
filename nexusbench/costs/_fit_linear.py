"""Fits of the cost model ``linear``: coefficients per SM count, and the cells of its guard."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np

from nexusbench.core.batch import BatchShape
from nexusbench.core.errors import UsageError
from nexusbench.costs._fit_grids import alone, extended, factor
from nexusbench.costs._fit_least_squares import FloatArray
from nexusbench.costs.base import Target
from nexusbench.costs.linear import (
    Guard,
    LinearParameters,
    cell_of,
    decode_amounts,
    prefill_amounts,
)
from nexusbench.profiles.points import Point
from nexusbench.profiles.surface import between

Amounts = Callable[[BatchShape], tuple[float, ...]]
Fitted = tuple[tuple[float, ...], tuple[tuple[float, ...], ...]]  # 1/SMs, coefficients over it


def fit_linear(points: Sequence[Point], target: Target, *, guarded: bool) -> LinearParameters:
    """The parameters; see ``LinearCost.fit``."""
    num_sms = target.gpu.num_sms
    prefill = fit_phase(
        alone(points, "prefill"), prefill_amounts, 4, num_sms, "prefill", "chunks and contexts"
    )
    decode = fit_phase(
        alone(points, "decode"), decode_amounts, 3, num_sms, "decode", "batches and contexts"
    )
    return LinearParameters(
        prefill_axis=prefill[0],
        prefill=prefill[1],
        decode_axis=decode[0],
        decode=decode[1],
        mixed=_fit_mixed(alone(points, "mixed"), prefill, decode),
        prefill_guard=fit_guard(points, "prefill", needed=guarded),
        decode_guard=fit_guard(points, "decode", needed=guarded),
    )


def fit_phase(
    points: Iterable[Point], amounts: Amounts, terms: int, num_sms: int, phase: str, what: str
) -> Fitted:
    """Coefficients per SM count at which enough shapes were measured, or could be interpolated.

    Raises UsageError if fewer than two SM counts have as many shapes as there are coefficients.
    """
    lines: dict[tuple[BatchShape, tuple[int, ...]], dict[int, float]] = {}
    for point in points:
        key = (point.setting.shape, point.setting.contexts)
        lines.setdefault(key, {})[point.setting.sms] = point.ns
    counts = sorted({sms for line in lines.values() for sms in line}, reverse=True)
    axis, found = [], []
    for sms in counts:
        rows, times = [], []
        for (shape, _), line in lines.items():
            if min(line) <= sms <= max(line):
                rows.append(amounts(shape))
                times.append(_at(line, sms))
        if np.linalg.matrix_rank(np.array(rows)) == terms:
            axis.append(1.0 / sms)
            found.append(_non_negative(np.array(rows), np.array(times)))
    if len(axis) < 2:
        raise UsageError(
            f"the linear model needs {phase} alone of at least {terms} different {what} on shares "
            f"of two or more sizes; measured were {len(lines)} shapes on {len(counts)}. Profile "
            "more: nexusbench profile without --quick"
        )
    return _with_ends(np.array(axis), np.array(found), num_sms)


def _at(line: dict[int, float], sms: int) -> float:
    """The measured ns, or between the measured SM counts."""
    known = line.get(sms)
    if known is not None:
        return known
    order = sorted(line, reverse=True)
    inverse = [1.0 / count for count in order]
    return float(np.interp(1.0 / sms, inverse, [line[count] for count in order]))


def _non_negative(rows: FloatArray, times: FloatArray) -> FloatArray:
    """Coefficients >= 0 with the least squared relative errors. Columns are scaled to their means,
    whose sizes differ by many powers of ten.
    """
    from scipy.optimize import nnls

    weighted = rows / times[:, None]
    size = weighted.mean(axis=0)
    found, _ = nnls(weighted / size, np.ones(len(times)))
    made: FloatArray = found / size
    return made


def _with_ends(axis: FloatArray, found: FloatArray, num_sms: int) -> Fitted:
    """Also for all SMs and for one: coefficients go on linearly in 1/SMs, at best in proportion to
    the SMs and never below what they were.
    """
    whole = np.array(sorted({1.0 / num_sms, *axis.tolist(), 1.0}))
    made = []
    for column in range(found.shape[1]):
        values = extended(whole, axis, found[:, column])
        perfect = found[0, column] * whole / axis[0]
        values = np.where(whole < axis[0], np.maximum(values, perfect), values)
        made.append(np.where(whole > axis[-1], np.maximum(values, found[-1, column]), values))
    return tuple(whole.tolist()), tuple([tuple(line.tolist()) for line in made])


def _fit_mixed(points: Iterable[Point], prefill: Fitted, decode: Fitted) -> float:
    """By how much longer a decode's reused tokens take in a batch with chunks than alone."""
    known, part, measured = [], [], []
    for point in points:
        shape, at = point.setting.shape, 1.0 / point.setting.sms
        if not shape.chunks or not shape.num_decodes:
            continue
        time = 0.0
        for line, amount in zip(prefill[1], prefill_amounts(shape), strict=True):
            time += amount * between(prefill[0], line, at)
        known.append(time)
        part.append(shape.decode_context * between(decode[0], decode[1][0], at))
        measured.append(point.ns)
    return factor(np.array(known), np.array(part), np.array(measured))


def fit_guard(points: Iterable[Point], phase: str, *, needed: bool) -> Guard:
    """Worst and mean slowdown of ``phase`` per cell and split.

    Raises UsageError if it is ``needed`` and there are no pairs.
    """
    seen: dict[tuple[int, int, int, int, int, int], list[float]] = {}
    for point in points:
        setting, slowdown = point.setting, point.slowdown
        if slowdown is None or setting.neighbour is None or setting.phase != phase:
            continue
        cell = cell_of(setting.shape, setting.neighbour)
        key = (*cell, setting.sms, setting.neighbour_sms)
        seen.setdefault(key, []).append(max(1.0, slowdown))
    if needed and not seen:
        raise UsageError(
            f"the guard needs pairs in which {phase} ran beside the other phase. Profile pairs "
            "too, or fit linear:guard=none"
        )
    cells = sorted(seen)
    return Guard(
        tuple(cells),
        tuple([max(seen[cell]) for cell in cells]),
        tuple([float(np.mean(seen[cell])) for cell in cells]),
    )
