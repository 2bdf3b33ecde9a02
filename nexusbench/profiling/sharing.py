"""What sharing the device costs, in a few numbers: bandwidth on some of its SMs, work rates."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from nexusbench.costs.base import Target
from nexusbench.profiles.points import Point
from nexusbench.profiles.sharing import (
    ATTENTION,
    SPLIT,
    STREAMS,
    WEIGHTS,
    EqualBatch,
    SharingRow,
    sharing_rows,
)
from nexusbench.profiles.stages import Stages
from nexusbench.profiling.curves import rounded
from nexusbench.profiling.grammar import format_batch

SHARES = (0.25, 0.5, 0.75, 1.0)  # of the SMs that bandwidths are told for


class DrawnBandwidth(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Bytes that ``operator`` (weights, decode attention) must read over the time that it takes on
    ``sms`` SMs, the measured count next to ``percent`` of all; ``of_all``: over that on all.
    """

    operator: str
    batch: str
    percent: int
    sms: int
    gb_per_s: float
    of_all: float


class WorkRate(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Two batches at once: how many times longer each takes than alone on the same SMs, and the
    work done over what one after the other on all SMs does in that time (1 = nothing gained).
    """

    kind: str  # streams (both have all SMs) or split
    phase: str
    batch: str
    sms: int
    beside_phase: str
    beside: str
    beside_sms: int
    slowdown: float
    beside_slowdown: float
    rate: float


class SharingFacts(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All of them."""

    bandwidth: tuple[DrawnBandwidth, ...] = ()
    rates: tuple[WorkRate, ...] = ()


def derive_sharing(points: Sequence[Point], target: Target) -> SharingFacts:
    """What ``partitions.csv`` says, in short."""
    rows = sharing_rows(points, target.gpu.num_sms)
    return SharingFacts(tuple(_bandwidth(rows, target)), tuple(_rates(rows)))


def _bandwidth(rows: Sequence[SharingRow], target: Target) -> list[DrawnBandwidth]:
    """Of weights, and of the batch whose attention was measured on the most SM counts (of these,
    that which reads most).
    """
    stages = Stages(target.gpu, target.model, target.tensor_parallel)
    found = []
    for operator in (WEIGHTS, ATTENTION):
        lines: dict[EqualBatch, list[SharingRow]] = {}
        for row in rows:
            if row.operator == operator:
                lines.setdefault(row.own, []).append(row)
        if not lines:
            continue
        own = max(lines, key=lambda batch: (len(lines[batch]), batch.shape.decode_context))
        work = stages.work(own.shape)
        size = sum(moved for _, moved in work.dense) + work.decode_bytes
        if operator == ATTENTION:
            less = lines[own][0].beside
            assert less is not None
            size = work.decode_bytes - stages.work(less.shape).decode_bytes
        rates = {row.sms: size / (row.ms * 1e6) for row in lines[own]}
        whole = rates.get(target.gpu.num_sms)
        for share in SHARES if whole is not None else ():
            wanted = share * target.gpu.num_sms
            sms = min(rates, key=lambda count: (abs(count - wanted), count))
            found.append(
                DrawnBandwidth(
                    operator, format_batch(own.shape), round(100 * share), sms,
                    round(rates[sms], 1), round(rates[sms] / (whole or 1.0), 4),
                )
            )  # fmt: skip
    return found


def _rates(rows: Sequence[SharingRow]) -> list[WorkRate]:
    made = []
    for row in rows:
        sides = row.slowdown, row.beside_slowdown, row.work_rate
        if row.operator not in (STREAMS, SPLIT) or row.beside is None or row.beside_sms is None:
            continue
        if sides[0] is None or sides[1] is None or sides[2] is None:
            continue
        values = [rounded(value) or 0.0 for value in sides if value is not None]
        made.append(
            WorkRate(
                row.operator.removeprefix("work rate "), _phase(row.own),
                format_batch(row.own.shape), row.sms, _phase(row.beside),
                format_batch(row.beside.shape), row.beside_sms, values[0], values[1], values[2],
            )
        )  # fmt: skip
    return made


def _phase(own: EqualBatch) -> str:
    return own.operator.removesuffix(" step")
