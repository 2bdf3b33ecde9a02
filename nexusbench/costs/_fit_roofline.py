"""Fits of the cost model ``roofline``: alpha, N_d and bandwidth from steps alone, decode's
attainable bandwidth beside a prefill from pairs.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import msgspec
import numpy as np

from nexusbench.core.errors import UsageError
from nexusbench.core.specs import GpuSpec
from nexusbench.core.work import chunk_work
from nexusbench.costs._calibration import RooflineParameters
from nexusbench.costs._fit_grids import alone, factor, hats, nodes
from nexusbench.costs._fit_least_squares import FloatArray, least_relative_squares
from nexusbench.costs.base import Target
from nexusbench.costs.roofline import Roofline, RooflineOptions
from nexusbench.profiles.points import Point

BINS, MOST_SMS = 4, 6  # of alpha, per phase and operator class
SATURATED = tuple([0.04 * i for i in range(1, 21)])  # N_d/N that are tried
BANDWIDTHS = (0.7, 0.8, 0.9, 1.0)  # and attainable shares of the peak
MOST_LENGTHS, MOST_SPLITS = 4, 6  # of decode's bandwidth beside a prefill
ALPHA, SHARE = (0.2, 20.0), (0.05, 1.0)  # bounds
SMOOTH = 0.03  # weight of neighbours on a grid being alike: fills in what was not measured
RIDGE = 1e-6  # weight of alpha being 1, for classes that take no time
TURNS = 2.0  # slowdown where both claim all SMs and nothing was measured: they take turns


class PhaseSteps(NamedTuple):
    """Steps of one phase alone: (FLOPs, bytes) of the dense operators and of attention
    [n, operators], sizes, SMs and ns [n].
    """

    dense: tuple[FloatArray, FloatArray]
    attention: tuple[FloatArray, FloatArray]
    sizes: FloatArray
    sms: FloatArray
    ns: FloatArray


class AlphaGrid(NamedTuple):
    """Where a phase's alpha is fitted: its sizes; the weights [n, sizes x SMs] of each step."""

    sizes: tuple[float, ...]
    weights: FloatArray


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


def _steps(points: Iterable[Point], model: Roofline, phase: str) -> PhaseSteps:
    """The steps of ``phase`` alone. Raises UsageError if they do not determine alpha: fewer than
    two sizes or SM counts.
    """
    chosen = [point for point in points if point.setting.shape.num_tokens]
    sizes = {point.setting.shape.num_tokens for point in chosen}
    if len(sizes) < 2 or len({point.setting.sms for point in chosen}) < 2:
        what = "chunk" if phase == "prefill" else "batch"
        raise UsageError(
            f"the roofline needs {phase} alone at two or more {what} sizes, on shares of two or "
            f"more sizes; measured were {len(chosen)} points. Profile more: "
            "nexusbench profile without --quick"
        )
    dense, attention = [], []
    for point in chosen:
        operators, chunks, (_, kept) = model.operators(point.setting.shape)
        dense.append(operators)
        attention.append([chunks if phase == "prefill" else (0.0, kept)])
    work = [np.array(each, dtype=np.float64) for each in (dense, attention)]
    return PhaseSteps(
        (work[0][:, :, 0], work[0][:, :, 1]),
        (work[1][:, :, 0], work[1][:, :, 1]),
        np.array([point.setting.shape.num_tokens for point in chosen], dtype=np.float64),
        np.array([point.setting.sms for point in chosen], dtype=np.float64),
        np.array([point.ns for point in chosen], dtype=np.float64),
    )


def _spaced(sizes: FloatArray, count: int) -> tuple[float, ...]:
    """At most ``count`` of the measured sizes, both ends among them, in about equal ratios."""
    distinct = np.unique(sizes)
    wanted = np.geomspace(distinct[0], distinct[-1], count)
    return tuple(sorted({float(distinct[np.abs(np.log(distinct / x)).argmin()]) for x in wanted}))


def _fit_alpha(phases: Sequence[PhaseSteps], target: Target) -> RooflineParameters:
    """Bandwidth and N_d by trying them, as both phases share the memory system; alpha by linear
    least squares of the relative errors, in which the roofline times are linear.
    """
    sms = tuple(nodes(np.concatenate([steps.sms for steps in phases]).tolist(), MOST_SMS))
    grids = [_grid(steps, sms) for steps in phases]
    best: tuple[float, float, float, list[FloatArray]] | None = None
    for saturated in SATURATED:
        for bandwidth in BANDWIDTHS:
            found = [
                _solve(steps, grid, sms, (bandwidth, saturated), target.gpu)
                for steps, grid in zip(phases, grids, strict=True)
            ]
            error = found[0][0] + found[1][0]
            if best is None or error < best[0]:
                best = (error, bandwidth, saturated, [alpha for _, alpha in found])
    assert best is not None
    _, bandwidth, saturated, (prefill, decode) = best
    return RooflineParameters(
        bandwidth=bandwidth,
        bandwidth_sms=saturated,
        sms=sms,
        prefill_sizes=grids[0].sizes,
        prefill_dense=_rows(prefill[0]),
        prefill_attention=_rows(prefill[1]),
        decode_sizes=grids[1].sizes,
        decode_dense=_rows(decode[0]),
        decode_attention=_rows(decode[1]),
        mixed=1.0,
    )


def _grid(steps: PhaseSteps, sms: Sequence[float]) -> AlphaGrid:
    """Each step's share of each alpha: linear in size and in 1/SMs."""
    sizes = _spaced(steps.sizes, BINS)
    by_size = hats(steps.sizes, np.array(sizes))
    by_sms = hats(-1.0 / steps.sms, -1.0 / np.array(sms))
    weights = by_size[:, :, None] * by_sms[:, None, :]
    return AlphaGrid(sizes, weights.reshape(len(steps.ns), -1))


def _solve(
    steps: PhaseSteps,
    grid: AlphaGrid,
    sms: Sequence[float],
    memory: tuple[float, float],
    gpu: GpuSpec,
) -> tuple[float, FloatArray]:
    """(squared relative error, alpha [class, size, SMs]) for (bandwidth, N_d/N) shares.

    Neighbouring alphas are drawn together a little, which fills in what was not measured.
    """
    flop_ns = gpu.num_sms / (gpu.peak_tflops * 1e3 * steps.sms)
    reach = np.minimum(1.0, steps.sms / (memory[1] * gpu.num_sms))
    byte_ns = 1.0 / (gpu.hbm_gbps * memory[0] * reach)
    columns = []
    for flops, moved in (steps.dense, steps.attention):
        longer = np.maximum(flops * flop_ns[:, None], moved * byte_ns[:, None]).sum(axis=1)
        columns.append(grid.weights * (longer / steps.ns)[:, None])
    shape = (2, len(grid.sizes), len(sms))
    alike = _differences(shape) * SMOOTH
    matrix = np.concatenate([np.concatenate(columns, axis=1), alike])
    wanted = np.concatenate([np.ones(len(steps.ns)), np.zeros(len(alike))])
    # The normal equations: many times faster than lstsq, and SMOOTH keeps them well conditioned.
    square = matrix.T @ matrix + RIDGE * np.eye(matrix.shape[1])
    found = np.clip(np.linalg.solve(square, matrix.T @ wanted + RIDGE), *ALPHA)
    error = float(((matrix @ found - wanted) ** 2).sum())
    return error, found.reshape(shape)


def _differences(shape: tuple[int, int, int]) -> FloatArray:
    """Rows that take the difference of each two neighbours along sizes and along SMs."""
    places = np.arange(shape[0] * shape[1] * shape[2]).reshape(shape)
    pairs = [
        (places[:, 1:].ravel(), places[:, :-1].ravel()),
        (places[:, :, 1:].ravel(), places[:, :, :-1].ravel()),
    ]
    one = np.concatenate([pair[0] for pair in pairs])
    other = np.concatenate([pair[1] for pair in pairs])
    made = np.zeros((len(one), places.size))
    made[np.arange(len(one)), one] = 1.0
    made[np.arange(len(one)), other] = -1.0
    return made


def _rows(alpha: FloatArray) -> tuple[tuple[float, ...], ...]:
    return tuple([tuple(line) for line in alpha.tolist()])


def _fit_mixed(points: Iterable[Point], model: Roofline) -> float:
    """By how much longer decodes' attention takes in a batch with chunks than alone."""
    rows = []
    for point in points:
        setting = point.setting
        if not setting.shape.chunks or not setting.shape.num_decodes:
            continue
        known, part = model.parts(setting.shape, setting.sms)
        rows.append((known, part, point.ns))
    columns = np.array(rows, dtype=np.float64).reshape(-1, 3).T
    return factor(columns[0], columns[1], columns[2])


def _fit_beside(
    points: Iterable[Point], model: Roofline, fitted: RooflineParameters, target: Target
) -> RooflineParameters:
    """The parameters that pairs determine. Raises UsageError if these pairs do not."""
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
        if not found:
            raise UsageError(
                f"the roofline needs pairs in which {phase} ran beside the other phase. Profile "
                "pairs too, or fit roofline:contention=false"
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
    sms = np.array([point.setting.sms for point in points], dtype=np.float64)
    weights = hats(sms, np.array(own))
    alike = SMOOTH * np.diff(np.eye(len(own)), axis=0)
    matrix = np.concatenate([weights, alike])
    measured = [*[point.slowdown or 1.0 for point in points], *[0.0] * len(alike)]
    found = np.linalg.lstsq(matrix, np.array(measured), rcond=None)[0]
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
        computing, moving = model.decode_times(point.setting.shape, point.setting.sms)
        compute.append(computing)
        memory.append(moving)
    own = [float(point.setting.sms) for point in points]
    lengths, sms = nodes(keys, MOST_LENGTHS), nodes(own, MOST_SPLITS)
    by_length = hats(np.array(keys), np.array(lengths))
    by_sms = hats(np.array(own), np.array(sms))
    computes, moves = np.array(compute), np.array(memory)
    before = np.maximum(computes, moves).sum(axis=1)

    def predict(x: FloatArray) -> FloatArray:
        shares = x.reshape(len(lengths), len(sms))
        share = ((by_length @ shares) * by_sms).sum(axis=1)
        made = np.maximum(computes, moves / share[:, None]).sum(axis=1) / before
        alike = [np.diff(np.log(shares), axis=axis).ravel() for axis in (0, 1)]
        return np.concatenate([made, np.exp(SMOOTH * np.concatenate(alike))])

    size = len(lengths) * len(sms)
    slowdowns = np.array([point.slowdown for point in points], dtype=np.float64)
    start = [0.9] * size
    wanted = np.ones(len(predict(np.array(start))))
    wanted[: len(slowdowns)] = slowdowns
    found = least_relative_squares(predict, start, [SHARE] * size, wanted)
    return tuple(lengths), tuple(sms), _rows(found.reshape(len(lengths), len(sms)))
