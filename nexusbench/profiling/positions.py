"""Where on the SMs to measure: legal counts, spread out, and refined where a line bends."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise

import msgspec

from nexusbench.core.batch import Split
from nexusbench.core.specs import DeviceSpec
from nexusbench.profiles.points import PointSetting
from nexusbench.profiling.desk import ShapedBatch

BEND = 0.02  # a line is refined until linear interpolation in 1/SMs is about this good
FINE_BEND = 0.005  # ... a reference line, from which saturation points are read


class BatchOverSms(msgspec.Struct, frozen=True):
    """One batch over SMs: ``start``, then more of ``legal`` where it bends, ``budget`` in all."""

    work: ShapedBatch
    legal: tuple[int, ...]
    start: tuple[int, ...]
    budget: int
    bend: float = BEND

    def setting(self, sms: int) -> PointSetting:
        """That position of the line."""
        shape = self.work.shape
        kind = "prefill" if shape.chunks else "decode"
        return PointSetting(kind, shape, sms, contexts=self.work.contexts)  # type: ignore[arg-type]


def refine(line: BatchOverSms, measured: Mapping[int, float]) -> int | None:
    """The next SM count to measure on a line, or None when it is smooth or its budget is spent.

    Bisects the interval in which linear interpolation in 1/SMs is worst, by the bend of the curve
    at its ends. Depends on nothing but ``measured`` (ns by SM count).
    """
    for sms in line.start:
        if sms not in measured:
            return sms
    if len(measured) >= min(line.budget, len(line.legal)):
        return None
    for error, low, high in sorted(_intervals(measured), reverse=True):
        if error <= line.bend:
            break
        between = [sms for sms in line.legal if low < sms < high]
        if between:
            middle = 2 / (1 / low + 1 / high)
            return min(between, key=lambda sms: (abs(sms - middle), sms))
    return None


def _intervals(measured: Mapping[int, float]) -> list[tuple[float, int, int]]:
    """(interpolation error as a share of the latency, SMs at the ends) of each interval.

    With x = 1/SMs the error in the middle of an interval of width h is f'' h^2 / 8, and f'' at a
    position is the change of slope there over half the distance of its neighbours.
    """
    positions = sorted(measured)
    curvature = dict.fromkeys(positions, 0.0)
    for a, b, c in zip(positions, positions[1:], positions[2:], strict=False):
        left = (measured[a] - measured[b]) / (1 / a - 1 / b)
        right = (measured[b] - measured[c]) / (1 / b - 1 / c)
        curvature[b] = abs(left - right) / ((1 / a - 1 / c) / 2)
    found = []
    for low, high in pairwise(positions):
        width = 1 / low - 1 / high
        bend = max(curvature[low], curvature[high]) * width * width / 8
        found.append((bend / min(measured[low], measured[high]), low, high))
    return found


def legal_sms(spec: DeviceSpec, phase: str) -> tuple[int, ...]:
    """SM counts that a legal split can give ``phase``, and all SMs; growing."""
    counts = {split.of(phase) for split in spec.splits if phase in split.partitions}
    return tuple(sorted(counts | {spec.num_sms}))


def spread(legal: Sequence[int], count: int) -> tuple[int, ...]:
    """About ``count`` of the growing ``legal``, both ends among them, by equal ratios."""
    if len(legal) <= count:
        return tuple(legal)
    if count < 2:
        return (legal[-1],)
    ratio = (legal[-1] / legal[0]) ** (1 / (count - 1))
    wanted = [legal[0] * ratio**i for i in range(count)]
    found = {min(legal, key=lambda sms: (abs(sms / w - 1), sms)) for w in wanted}
    return tuple(sorted(found | {legal[0], legal[-1]}))


def spread_splits(spec: DeviceSpec, count: int, least_share: float = 0.0) -> tuple[Split, ...]:
    """About ``count`` of the disjoint legal splits, evenly from few to many SMs for prefill.

    Overlapping splits are no pair of partitions with SMs of their own; they are left out, and so
    are those that give a side less than ``least_share`` of the SMs.
    """
    least = least_share * spec.num_sms
    disjoint = [x for x in spec.splits if not x.overlapping and min(x.sms) >= least]
    return tuple(disjoint[i] for i in even(len(disjoint), count))


def picked(values: Sequence[int], count: int) -> list[int]:
    """About ``count`` of the values, both ends among them."""
    return [values[i] for i in even(len(values), count)]


def even(length: int, count: int) -> Iterator[int]:
    """``count`` positions out of ``length``, evenly, both ends among them (the last if one)."""
    if length <= count:
        yield from range(length)
    elif count == 1:
        yield length - 1
    else:
        yield from sorted({round(i * (length - 1) / (count - 1)) for i in range(count)})
