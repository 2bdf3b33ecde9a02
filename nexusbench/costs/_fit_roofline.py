"""Fits of the cost model ``roofline``: alpha, N_d and bandwidth from steps alone, decode's
attainable bandwidth beside a prefill from pairs.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import msgspec
import numpy as np

from nexusbench.core.errors import UsageError
from nexusbench.costs._calibration import Rates, RooflineParameters
from nexusbench.costs._fit import FloatArray, least_relative_squares
from nexusbench.costs._fit_grids import alone, factor, nodes
from nexusbench.costs._points import Point
from nexusbench.costs._work import chunk_work
from nexusbench.costs.base import Target
from nexusbench.costs.roofline import Roofline, RooflineOptions

BINS, MOST_SMS = 4, 6  # of alpha, per phase
MOST_LENGTHS, MOST_SPLITS = 4, 6  # of decode's bandwidth beside a prefill
ALPHA, SHARE = (0.2, 20.0), (0.05, 1.0)  # bounds
SMOOTH = 0.03  # weight of neighbouring alphas being alike: fills in what was not measured
TURNS = 2.0  # slowdown where both claim all SMs and nothing was measured: they take turns


class Steps(NamedTuple):
    """Steps of one phase alone: (FLOPs, bytes) [n, operators], sizes, SMs and ns [n]."""

    flops: FloatArray
    bytes: FloatArray
    sizes: FloatArray
    sms: FloatArray
    ns: FloatArray


def fit_roofline(
    points: Sequence[Point], target: Target, options: RooflineOptions
) -> RooflineParameters:
    """The parameters; see ``Roofline.fit``."""
    model = Roofline(options, gpu=target.gpu, model=target.model,
                     tensor_parallel=target.tensor_parallel)  # fmt: skip
    phases = [_steps(alone(points, phase), model, phase) for phase in ("prefill", "decode")]
    fitted = _fit_alpha(phases, target)
    model = _with(model, fitted, target)
    fitted = msgspec.structs.replace(fitted, mixed=_fit_mixed(alone(points, "mixed"), model))
    if not options.contention:
        return fitted
    return _fit_beside(points, _with(model, fitted, target), fitted, target)


def _with(model: Roofline, fitted: RooflineParameters, target: Target) -> Roofline:
    assert isinstance(model.options, RooflineOptions)
    return Roofline(model.options, gpu=target.gpu, model=target.model,
                    tensor_parallel=target.tensor_parallel, parameters=fitted)  # fmt: skip


def _steps(points: Iterable[Point], model: Roofline, phase: str) -> Steps:
    """Raises UsageError if alpha cannot be told: fewer than two sizes or SM counts."""
    rows = []
    for point in points:
        operators, keys = model.operators(point.setting.shape)
        rows.append((
            [f for f, _ in operators] + [0.0], [b for _, b in operators] + [keys],
            point.setting.shape.num_tokens, point.setting.sms, point.ns,
        ))  # fmt: skip
    if len({row[2] for row in rows}) < 2 or len({row[3] for row in rows}) < 2:
        what = "chunk" if phase == "prefill" else "batch"
        raise UsageError(
            f"the roofline needs {phase} alone at two or more {what} sizes and SM counts; measured "
            f"were {len(rows)} points. Profile more: nexusbench profile without --quick"
        )
    columns = [np.array(column, dtype=np.float64) for column in zip(*rows, strict=True)]
    return Steps(*columns)


def _spaced(sizes: FloatArray, count: int) -> tuple[float, ...]:
    """At most ``count`` of the measured sizes, both ends among them, in about equal ratios."""
    distinct = np.unique(sizes)
    wanted = np.geomspace(distinct[0], distinct[-1], count)
    return tuple(sorted({float(distinct[np.abs(np.log(distinct / x)).argmin()]) for x in wanted}))


def _fit_alpha(phases: Sequence[Steps], target: Target) -> RooflineParameters:
    """Bandwidth, N_d and both phases' alpha at once: they share the memory system."""
    sms = tuple(nodes(np.concatenate([steps.sms for steps in phases]).tolist(), MOST_SMS))
    sizes = [_spaced(steps.sizes, BINS) for steps in phases]
    counts = [len(axis) * len(sms) for axis in sizes]

    def unpack(x: FloatArray) -> list[FloatArray]:
        first = 2 + counts[0]
        return [x[2:first].reshape(-1, len(sms)), x[first:].reshape(-1, len(sms))]

    def predict(x: FloatArray) -> FloatArray:
        made, steadiness = [], []
        for steps, axis, alpha in zip(phases, sizes, unpack(x), strict=True):
            rates = Rates(axis, alpha.tolist(), sms, float(x[0]), float(x[1]), target.gpu)
            made.append(_times(steps, rates))
            for direction in (0, 1):
                change = np.diff(np.log(alpha), axis=direction).ravel()
                steadiness.append(np.exp(SMOOTH * change))
        return np.concatenate([*made, *steadiness])

    measured = np.concatenate([steps.ns for steps in phases])
    start = [0.9, 0.3, *[1.3] * (counts[0] + counts[1])]
    extra = len(predict(np.array(start))) - len(measured)
    bounds = [(0.2, 1.0), (0.01, 1.0), *[ALPHA] * (counts[0] + counts[1])]
    found = least_relative_squares(
        predict, start, bounds, np.concatenate([measured, np.ones(extra)])
    )
    prefill, decode = unpack(found)
    return RooflineParameters(
        bandwidth=float(found[0]),
        bandwidth_sms=float(found[1]),
        sms=sms,
        prefill_sizes=sizes[0],
        prefill_alpha=tuple([tuple(line) for line in prefill.tolist()]),
        decode_sizes=sizes[1],
        decode_alpha=tuple([tuple(line) for line in decode.tolist()]),
        mixed=1.0,
    )


def _times(steps: Steps, rates: Rates) -> FloatArray:
    """``rooflines`` of all steps at once."""
    axis, sizes = np.array(rates.axis), np.array(rates.sizes)
    place = np.clip(np.searchsorted(sizes, steps.sizes, side="right") - 1, 0, len(sizes) - 2)
    u = np.clip((steps.sizes - sizes[place]) / (sizes[place + 1] - sizes[place]), 0.0, 1.0)
    found = []
    for table in (np.array(rates.per_flop), np.array(rates.per_byte)):
        over = np.stack([np.interp(1.0 / steps.sms, axis, line) for line in table])
        each = np.arange(len(steps.sms))
        found.append(over[place, each] * (1.0 - u) + over[place + 1, each] * u)
    per_flop, per_byte = found
    longer = np.maximum(steps.flops * per_flop[:, None], steps.bytes * per_byte[:, None])
    made: FloatArray = longer.sum(axis=1)
    return made


def _fit_mixed(points: Iterable[Point], model: Roofline) -> float:
    """By how much longer decodes' attention takes in a batch with chunks than alone."""
    rows = []
    for point in points:
        setting = point.setting
        if not setting.shape.chunks or not setting.shape.num_decodes:
            continue
        known, part = model.mixed_times(setting.shape, setting.sms)
        rows.append((known, part, point.ns))
    columns = np.array(rows, dtype=np.float64).reshape(-1, 3).T
    return factor(columns[0], columns[1], columns[2])


def _fit_beside(
    points: Iterable[Point], model: Roofline, fitted: RooflineParameters, target: Target
) -> RooflineParameters:
    """The part of the parameters that pairs tell. Raises UsageError if they do not."""
    apart: dict[str, list[Point]] = {"prefill": [], "decode": []}
    together: dict[str, list[float]] = {"prefill": [], "decode": []}
    for point in points:
        setting, slowdown = point.setting, point.slowdown
        if slowdown is None or setting.neighbour is None or setting.phase not in apart:
            continue
        if setting.sms + setting.neighbour_sms > target.gpu.num_sms:
            together[setting.phase].append(max(1.0, slowdown))
        elif setting.phase == "prefill" or setting.neighbour.chunks:
            apart[setting.phase].append(point)
    for phase, found in apart.items():
        if len({point.setting.sms for point in found}) < 2:
            raise UsageError(
                f"the roofline needs pairs in which {phase} ran beside the other phase on two or "
                "more splits. Profile pairs too, or fit roofline:contention=false"
            )
    lengths, sms, shares = _fit_shares(apart["decode"], model)
    own = nodes([float(point.setting.sms) for point in apart["prefill"]], MOST_SPLITS)
    return msgspec.structs.replace(
        fitted,
        lengths=lengths,
        decode_sms=sms,
        decode_bandwidth=shares,
        prefill_sms=tuple(own),
        prefill_slowdown=_slowdowns(apart["prefill"], own),
        overlapping=(
            float(np.mean(together["prefill"] or [TURNS])),
            float(np.mean(together["decode"] or [TURNS])),
        ),
    )


def _slowdowns(points: Sequence[Point], own: Sequence[float]) -> tuple[float, ...]:
    """Least-squares slowdowns at ``own`` SMs, interpolated between them for what was measured."""
    hats = np.eye(len(own))
    sms = np.array([point.setting.sms for point in points], dtype=np.float64)
    weights = np.stack([np.interp(sms, own, hat) for hat in hats], axis=1)
    measured = np.array([point.slowdown for point in points], dtype=np.float64)
    found = np.linalg.lstsq(weights, measured, rcond=None)[0]
    return tuple(np.maximum(found, 1.0).tolist())


def _fit_shares(
    points: Sequence[Point], model: Roofline
) -> tuple[tuple[float, ...], tuple[float, ...], tuple[tuple[float, ...], ...]]:
    """(lengths, SMs, share of decode's bandwidth [length, SMs]) that explain its slowdowns."""
    keys, compute, memory = [], [], []
    for point in points:
        assert point.setting.neighbour is not None
        queries, pairs = chunk_work(point.setting.neighbour.chunks)
        keys.append(pairs / queries)
        flops, moved = model.decode_times(point.setting.shape, point.setting.sms)
        compute.append(flops)
        memory.append(moved)
    own = [float(point.setting.sms) for point in points]
    lengths, sms = nodes(keys, MOST_LENGTHS), nodes(own, MOST_SPLITS)
    by_length = np.stack([np.interp(keys, lengths, hat) for hat in np.eye(len(lengths))], axis=1)
    by_sms = np.stack([np.interp(own, sms, hat) for hat in np.eye(len(sms))], axis=1)
    computing, moving = np.array(compute), np.array(memory)
    before = np.maximum(computing, moving).sum(axis=1)

    def predict(x: FloatArray) -> FloatArray:
        share = ((by_length @ x.reshape(len(lengths), len(sms))) * by_sms).sum(axis=1)
        made: FloatArray = np.maximum(computing, moving / share[:, None]).sum(axis=1) / before
        return made

    size = len(lengths) * len(sms)
    slowdowns = np.array([point.slowdown for point in points], dtype=np.float64)
    found = least_relative_squares(predict, [0.9] * size, [SHARE] * size, slowdowns)
    shares = found.reshape(len(lengths), len(sms)).tolist()
    return tuple(lengths), tuple(sms), tuple([tuple(line) for line in shares])
