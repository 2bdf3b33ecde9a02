"""semi-PD's latency models (arXiv 2504.19867, Eq. 1-4): TTFT of a queue, TPOT inverse in SMs."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

UNBOUNDED = 1e30  # ns: the queue only grows


class LatencyLine(msgspec.Struct, frozen=True, gc=False):
    """slope x v + offset."""

    slope: float
    offset: float

    def at(self, v: float) -> float:
        """Its value."""
        return self.slope * v + self.offset


def fit_line(points: Sequence[tuple[float, float]], expected: float) -> LatencyLine:
    """A line of least squares through (v, time), shifted to go through the last point.

    The slope is that of all points, the offset that of the newest, so that a change of traffic
    shows at once. Where the points lie at one v, or fall with v, the slope is ``expected``.
    """
    count = float(len(points))
    mean_v = mean_t = 0.0
    for v, time in points:
        mean_v += v / count
        mean_t += time / count
    spread = product = 0.0
    for v, time in points:
        spread += (v - mean_v) * (v - mean_v)
        product += (v - mean_v) * (time - mean_t)
    slope = expected
    if spread > 1e-12 * mean_v * mean_v and product > 0.0:
        slope = product / spread
    v, time = points[-1]
    return LatencyLine(slope, time - slope * v)


def queueing(x: float, load: float) -> float:
    """1 / (x - lambda) for x % of the SMs under a load of lambda = 100 x rate x seconds per prompt
    on all SMs; UNBOUNDED where the queue has no steady state.
    """
    return 1.0 / (x - load) if x > load else UNBOUNDED


def percentile(values: Sequence[float], percent: float) -> float:
    """The nearest rank: the smallest value that ``percent`` % of all do not exceed."""
    ordered = sorted(values)
    rank = 1
    while rank < len(ordered) and 100.0 * rank < percent * len(ordered):
        rank += 1
    return ordered[rank - 1]
