"""Fitting Nexus's curves: each stage from its own latencies alone, then contention from pairs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from nexusbench.core.errors import UsageError
from nexusbench.costs._fit_least_squares import FloatArray, least_relative_squares
from nexusbench.costs.base import Target
from nexusbench.costs.nexus import (
    NexusCostOptions,
    NexusParameters,
    NexusStage,
    SaturationCurve,
    parts,
    slowed,
)
from nexusbench.profiles.points import Point
from nexusbench.profiles.stages import Stages, StageWork

if TYPE_CHECKING:
    from nexusbench.costs.nexus import NexusTimes

LEAST_POINTS = 12  # of a stage: fewer do not determine its constants
SATURATION, EFFICIENCY = (0.02, 1.0), (0.02, 1.5)
DECAY = {"A": (0.0, 1.0), "B": (0.0, 2.0)}
FIXED_NS = (0.0, 5e7)
CONTENTION = (0.0, 5.0)


def fit(points: Sequence[Point], target: Target, options: NexusCostOptions) -> NexusParameters:
    """Both stages. Raises UsageError if one has too few points."""
    stages = Stages(target.gpu, target.model, target.tensor_parallel)
    prefill = _fit_stage(points, stages, target, options, "prefill")
    decode = _fit_stage(points, stages, target, options, "decode")
    if options.contention == "classes":
        both = {"prefill": prefill, "decode": decode}
        made = {name: _fit_contention(points, stages, target, options, name, both) for name in both}
        prefill, decode = made["prefill"], made["decode"]
    return NexusParameters(prefill=prefill, decode=decode)


def _fit_stage(
    points: Sequence[Point], stages: Stages, target: Target, options: NexusCostOptions, phase: str
) -> NexusStage:
    chosen = [p for p in points if p.setting.neighbour is None and _stage_of(p) == phase]
    if len(chosen) < LEAST_POINTS:
        raise UsageError(
            f"{len(chosen)} points of {phase} alone do not determine Nexus's curves; measure at "
            f"least {LEAST_POINTS} (nexusbench profile without --batch)"
        )
    work = stacked([stages.work(p.setting.shape) for p in chosen])
    share = _shares(chosen, target)
    measured = np.array([p.ns for p in chosen])

    def times(vector: FloatArray) -> FloatArray:
        made = parts(work, _stage(vector), share, np.maximum, options.curve, options.memory)
        total: FloatArray = made.fixed + made.dense + made.attention
        return total

    decay = DECAY[options.curve]
    curve = [SATURATION, decay, EFFICIENCY]
    middle = decay[1] / 2
    # The least fixed time that leaves room for everything else.
    most_fixed = (0.0, min(FIXED_NS[1], 0.9 * float(measured.min())))
    found = least_relative_squares(
        times,
        [0.6, middle, 0.7, 0.6, middle, 0.5, 0.4, middle / 4, 0.8, 0.4, middle / 4, 0.8,
         0.3 * most_fixed[1]],
        [*curve, *curve, *curve, *curve, most_fixed],
        measured,
    )  # fmt: skip
    return _stage(found)


def _stage(vector: FloatArray) -> NexusStage:
    """A stage from the fitted vector."""
    curves = [
        SaturationCurve(saturation=float(a), decay=float(b), efficiency=float(c))
        for a, b, c in vector[:12].reshape(4, 3)
    ]
    return NexusStage(
        dense=curves[0],
        attention=curves[1],
        dense_memory=curves[2],
        attention_memory=curves[3],
        fixed_ns=float(vector[12]),
    )


def _fit_contention(
    points: Sequence[Point],
    stages: Stages,
    target: Target,
    options: NexusCostOptions,
    phase: str,
    both: dict[str, NexusStage],
) -> NexusStage:
    """The four slow-downs of a stage, from the ratio to its time alone (non-negative)."""
    import msgspec
    from scipy.optimize import lsq_linear

    stage = both[phase]
    chosen = [p for p in points if p.setting.neighbour is not None and _stage_of(p) == phase]
    if not chosen:
        return stage
    mine = _solo(chosen, stages, target, options, both)
    columns = []
    for unit in np.eye(4):
        probe = msgspec.structs.replace(stage, contention=tuple(unit.tolist()))
        columns.append(
            [
                slowed(own, theirs, probe, p.setting.neighbour_sms / target.gpu.num_sms)
                / (own.fixed + own.dense + own.attention)
                for p, (own, theirs) in zip(chosen, mine, strict=True)
            ]
        )
    matrix = np.array(columns).T
    slowdown = np.array([p.slowdown or 1.0 for p in chosen]) - 1.0
    # Relative to the measured time, as every error here is.
    weight = 1.0 / (1.0 + np.maximum(slowdown, 0.0))
    found = lsq_linear(matrix * weight[:, None], slowdown * weight, bounds=CONTENTION).x
    return msgspec.structs.replace(stage, contention=tuple(found.tolist()))


def _solo(
    chosen: Sequence[Point],
    stages: Stages,
    target: Target,
    options: NexusCostOptions,
    both: dict[str, NexusStage],
) -> list[tuple[NexusTimes, NexusTimes]]:
    """(measured side, neighbour) alone, for each pair."""

    def one(shape: object, sms: int) -> NexusTimes:
        stage = both["prefill" if shape.chunks else "decode"]  # type: ignore[attr-defined]
        work = stages.work(shape)  # type: ignore[arg-type]
        share = sms / target.gpu.num_sms
        return parts(work, stage, share, max, options.curve, options.memory)

    return [
        (
            one(p.setting.shape, p.setting.sms),
            one(p.setting.neighbour, p.setting.neighbour_sms),
        )
        for p in chosen
    ]


def stacked(works: Sequence[StageWork]) -> StageWork:
    """Many batches' work as arrays over them."""
    return StageWork(
        dense=tuple(
            (np.array([w.dense[i][0] for w in works]), np.array([w.dense[i][1] for w in works]))
            for i in range(len(works[0].dense))
        ),
        chunk_flops=np.array([w.chunk_flops for w in works]),
        chunk_bytes=np.array([w.chunk_bytes for w in works]),
        decode_flops=np.array([w.decode_flops for w in works]),
        decode_bytes=np.array([w.decode_bytes for w in works]),
        flops_per_ns=works[0].flops_per_ns,
        bytes_per_ns=works[0].bytes_per_ns,
    )


def _stage_of(point: Point) -> str:
    return "decode" if point.setting.phase == "decode" else "prefill"


def _shares(points: Sequence[Point], target: Target) -> FloatArray:
    return np.array([p.setting.sms for p in points], dtype=np.float64) / target.gpu.num_sms
