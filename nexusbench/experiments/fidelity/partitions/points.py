"""What a table of partitions says, in one form: measured beside simulated."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import msgspec

from nexusbench.experiments.fidelity.partitions.halves import may_be_fitted

TIME_OVER_ALL = "time / time on all SMs"
MILLISECONDS = "ms"
WORK_RATE = "work rate"  # (time of both one after the other) / (time until both are done)
SLOWDOWN = "time / time alone on all SMs"
BESIDE = "time / time alone on the same SMs"
ABSOLUTE = ", absolute"


class TimeOnSms(msgspec.Struct, frozen=True, gc=False):
    """An operator alone on ``sms`` SMs, ms measured and simulated (in any one unit of work).

    ``operator`` is the finest name that it is scored by, ``groups`` the coarser ones. ``shape``
    names the curve over SMs that it belongs to ('' for the only one of its kind), ``kernel`` which
    of several kernels or models of that shape it is. ``absolute``: its time itself is comparable
    too. ``fitted``: whether constants may be fitted on it, None if its shape says that.
    """

    operator: str
    groups: tuple[str, ...]
    shape: str
    sms: int
    measured: float
    simulated: float
    line: int
    absolute: bool = True
    fitted: bool | None = None
    kernel: tuple[object, ...] = ()

    @property
    def may_be_fitted(self) -> bool:
        """Whether constants may be fitted on this row; else it judges them."""
        return may_be_fitted(self.shape) if self.fitted is None else self.fitted


class PartitionPoint(msgspec.Struct, frozen=True, gc=False):
    """A measured number beside the simulated one, both in ``unit``; ``sms`` of each side."""

    operator: str
    groups: tuple[str, ...]
    shape: str
    sms: tuple[int, ...]
    unit: str
    measured: float
    simulated: float
    line: int
    fitted: bool


class PartitionPoints(msgspec.Struct):
    """The points of a table, and sentences about what was assumed or left out.

    ``measured_on`` names the GPU that the table says it was measured on, '' if it does not.
    """

    points: list[PartitionPoint] = []
    notes: list[str] = []
    measured_on: str = ""


def over_all_sms(rows: Sequence[TimeOnSms]) -> tuple[list[PartitionPoint], list[str]]:
    """Each curve over its own time on all SMs, and absolute times; sentences on what is left out.

    A curve without a row on the most SMs of the table cannot be related to anything. Rows on
    all SMs are 1 by definition and are no points.
    """
    curves: dict[tuple[str, str, object], list[TimeOnSms]] = defaultdict(list)
    for row in rows:
        curves[row.operator, row.shape, row.kernel].append(row)
    most = max((row.sms for row in rows), default=0)
    points, without = [], 0
    for curve in curves.values():
        whole = [row for row in curve if row.sms == most]
        without += not whole
        # A benchmark may repeat it; the simulated time of a shape is one.
        reference = sum(row.measured for row in whole) / max(1, len(whole))
        for row in curve:
            if whole and row.sms != most:
                points.append(_relative(row, reference, whole[0].simulated))
            if row.absolute:
                points.append(_absolute(row))
    notes = []
    if without:
        notes.append(
            f"{without} of {len(curves)} curves have no row on all {most} SMs of the table: "
            "scored by their times only"
        )
    if rows and all(row.sms == most for row in rows):
        notes.append(f"all rows are on {most} SMs: there is no time on fewer to compare")
    return points, notes


def _relative(row: TimeOnSms, measured: float, simulated: float) -> PartitionPoint:
    """The row over the times on all SMs."""
    return PartitionPoint(
        row.operator,
        row.groups,
        row.shape,
        (row.sms,),
        TIME_OVER_ALL,
        row.measured / measured,
        row.simulated / simulated,
        row.line,
        row.may_be_fitted,
    )


def _absolute(row: TimeOnSms) -> PartitionPoint:
    return PartitionPoint(
        row.operator + ABSOLUTE,
        tuple(group + ABSOLUTE for group in row.groups),
        row.shape,
        (row.sms,),
        MILLISECONDS,
        row.measured,
        row.simulated,
        row.line,
        row.may_be_fitted,
    )
