"""Sets of time intervals as arrays: union, length, and how long several of them hold at once."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]


class Intervals(NamedTuple):
    """Disjoint intervals in growing order, ns."""

    starts: IntArray
    ends: IntArray

    @property
    def length(self) -> int:
        """Total length, ns."""
        return int((self.ends - self.starts).sum())

    def covered_until(self, times: IntArray) -> FloatArray:
        """How much of the set lies before each time, ns."""
        if not len(self.starts):
            return np.zeros(len(times))
        points = np.column_stack((self.starts, self.ends)).ravel()
        lengths = self.ends - self.starts
        after = np.cumsum(lengths)
        covered = np.column_stack((after - lengths, after)).ravel()
        result: FloatArray = np.interp(times, points, covered)
        return result


def union(starts: IntArray, ends: IntArray) -> Intervals:
    """The union of any intervals ``[starts, ends)``, in any order."""
    if not len(starts):
        return Intervals(starts, ends)
    order = np.argsort(starts, kind="stable")
    starts, reach = starts[order], np.maximum.accumulate(ends[order])
    gap = starts[1:] > reach[:-1]
    return Intervals(starts[np.append(True, gap)], reach[np.append(gap, True)])


def time_with_several(sets: list[Intervals]) -> int:
    """For how long at least two of the sets hold at the same time, ns."""
    if len(sets) < 2:
        return 0
    starts = np.concatenate([one.starts for one in sets])
    ends = np.concatenate([one.ends for one in sets])
    times = np.concatenate((starts, ends))
    changes = np.concatenate((np.ones_like(starts), -np.ones_like(ends)))
    order = np.argsort(times, kind="stable")
    times, active = times[order], np.cumsum(changes[order])
    return int(np.diff(times)[active[:-1] >= 2].sum())
