"""Which leads count: beyond the noise, and not over requests that were turned away."""

from __future__ import annotations

import math
from collections.abc import Sequence

from nexusbench.comparison.view import Column, Estimate
from nexusbench.metrics.base import tags_counting_refused
from nexusbench.metrics.noise import half_interval

# Differences below this are called equal: the simulator's own noise is of that size.
EQUAL = 0.01
_SAME_SHARE = 1e-9


def is_level(best: Estimate, other: Estimate) -> bool:
    """Too near to call: within 1 %, within the noise of one run, or with intervals over seeds that
    overlap.
    """
    return abs(other.value - best.value) <= max(
        _least(best), _seeds(best, other), noise(best, other)
    )


def noise(one: Estimate, other: Estimate) -> float:
    """Half the 95 % interval of their difference that parts of one run show (metrics/noise.py); 0
    where that is not known.
    """
    together = half_interval(one.left_out, other.left_out)
    if together is not None:
        return together
    # Of runs that were cut into other numbers of blocks: as if they had nothing in common.
    return math.hypot(*(half_interval(each.left_out) or 0.0 for each in (one, other)))


def within(best: Estimate, others: Sequence[Estimate]) -> str:
    """Within what ``others``, all level with ``best``, are."""
    if all(abs(other.value - best.value) <= _least(best) for other in others):
        seeded = any(estimate.half is not None for estimate in (best, *others))
        return "within 1 % or the spread over seeds" if seeded else "within 1 %"
    if all(
        abs(other.value - best.value) <= max(_least(best), _seeds(best, other)) for other in others
    ):
        return "within 1 % or the spread over seeds"
    return "within the noise of one run"


def _least(best: Estimate) -> float:
    return EQUAL * abs(best.value)


def _seeds(one: Estimate, other: Estimate) -> float:
    return (one.half or 0.0) + (other.half or 0.0)


def fully_served(columns: Sequence[Column]) -> list[Column]:
    """Those that finished as large a share of their requests, and of these requests' tokens, as any
    other: the figures of the rest are of those that were not turned away.
    """
    shares = [column.served for column in columns]
    most = [max(found, default=0.0) - _SAME_SHARE for found in zip(*shares, strict=True)]
    return [
        column
        for column, found in zip(columns, shares, strict=True)
        if all(share >= least for share, least in zip(found, most, strict=True))
    ]


def rivals_in(
    columns: Sequence[Column],
    tag: str,
    found: Sequence[Estimate | None] | None = None,
    *,
    less: bool,
) -> list[Column]:
    """The columns that may be ranked in a metric. Turning requests away improves a latency, and a
    rate too: of those that did, only those count that are behind all the same, by their values
    ``found``.
    """
    if tag in tags_counting_refused():
        return list(columns)
    served = fully_served(columns)
    if found is None:
        return served
    pairs = list(zip(columns, found, strict=True))
    known = [estimate for column, estimate in pairs if estimate and column in served]
    if not known:
        return served
    best = (min if less else max)(known, key=lambda estimate: estimate.value)
    sign = 1 if less else -1
    return [
        column
        for column, estimate in pairs
        if column in served
        or (
            estimate is not None
            and sign * (estimate.value - best.value) > 0
            and not is_level(best, estimate)
        )
    ]
