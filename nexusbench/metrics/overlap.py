"""Which gaps between a request's tokens overlap the prefill of another request."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from nexusbench.metrics.arrays import BoolArray, IntArray, Parts, gap_steps

if TYPE_CHECKING:
    from nexusbench.metrics.run_events import Launches

Table = Mapping[str, npt.NDArray[Any]]


class PrefillLaunches:
    """Completed launches that compute prompts, to be asked which gaps they overlap.

    A launch [b, d) overlaps a gap (u, v) if b < v and d > u. As every launch with d <= u has b < v
    too, the number of those that overlap is |{b < v}| - |{d <= u}|: two look-ups in sorted times,
    and as gaps begin and end with steps, one each for a step. Launches with prompts of the gap's
    own request alone, recomputed after a preemption, are counted in the same way and taken off.
    """

    def __init__(
        self, launches: Launches, submitted: Table, chunk: Table, first_token: IntArray
    ) -> None:
        self._size = len(first_token)
        chunks = submitted["chunks"][launches.row]
        begin, end = launches.start, launches.end
        self._begins, self._ends = np.sort(begin[chunks > 0]), np.sort(end[chunks > 0])
        alone = np.flatnonzero(chunks == 1)
        order = np.argsort(chunk["step"], kind="stable")
        steps = submitted["step"][launches.row[alone]]
        owner = chunk["request"][order[np.searchsorted(chunk["step"], steps, sorter=order)]]
        # A gap lies behind a request's first token, so only later prefills of its own can be in it.
        again = (first_token[owner] >= 0) & (begin[alone] >= first_token[owner])
        alone, owner = alone[again], owner[again]
        self._times = np.unique(np.concatenate((begin[alone], end[alone])))
        self._own_begins = np.sort(self._key(owner, begin[alone], "left"))
        self._own_ends = np.sort(self._key(owner, end[alone], "left"))
        self._recomputed = np.zeros(self._size, dtype=np.bool_)
        self._recomputed[owner] = True

    def _key(self, request: IntArray, time: IntArray, side: Any) -> IntArray:
        """Grows with request, then time, which counts by its place among those of recomputing."""
        key: IntArray = request * (len(self._times) + 1) + np.searchsorted(self._times, time, side)
        return key

    def overlapped_gaps(self, parts: Parts, times: IntArray, tokens: IntArray) -> BoolArray:
        """For each gap, in order of the later token, whether the prefill of another overlaps it.

        ``parts`` gives the log's token column in pieces, ``times`` (ns) and ``tokens`` are the
        steps'. Beside the result nothing grows with the number of tokens.
        """
        begun = np.searchsorted(self._begins, times, side="left")
        ended = np.searchsorted(self._ends, times, side="right")
        found = [np.zeros(0, dtype=np.bool_)]
        for request, before, after in gap_steps(parts, tokens, self._size):
            count = begun[after] - ended[before]
            rows = np.flatnonzero(self._recomputed[request])
            if len(rows):
                owner = request[rows].astype(np.int64)
                # Launches of requests with a smaller index are in both numbers.
                last = self._key(owner, times[after[rows]], "left")
                first = self._key(owner, times[before[rows]], "right")
                count[rows] -= np.searchsorted(self._own_begins, last, side="left")
                count[rows] += np.searchsorted(self._own_ends, first, side="left")
            found.append(count > 0)
        return np.concatenate(found)
