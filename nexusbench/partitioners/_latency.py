"""What semi-PD observes of a run (TTFT, TPOT, load), window by window, and its latency models: TTFT
of a queue, TPOT inverse in SMs (arXiv 2504.19867, Eq. 1-4).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import msgspec

from nexusbench.core.batch import Batch
from nexusbench.core.request import Request
from nexusbench.partitioners._launches import NotedLaunch

UNBOUNDED = 1e30  # ns: the queue only grows
PROMPTS = 32  # the last so many give arrival rate and time per prompt


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


class Observation(msgspec.Struct, frozen=True, gc=False):
    """A window: percentiles in ns (None: no request to observe), ns of a prompt on all SMs, and
    lambda, the percent of the SMs that prompts keep busy.
    """

    ttft: float | None
    tpot: float | None
    prompt_ns: float
    load: float


class LatencyWindow:
    """Latencies of the launches since the last :meth:`close`.

    TPOT is the mean gap of a request's tokens *in the window*, of those that decode at its end:
    one that joins and ends within a window is not observed.
    """

    def __init__(self, num_sms: int) -> None:
        self._num_sms = num_sms
        self.launches = 0
        self._ttft: list[float] = []
        self._prompts: deque[tuple[int, float]] = deque(maxlen=PROMPTS)  # arrival, ns on all SMs
        self._service = 0.0  # ns on all SMs, of prompts that are not done yet
        self._decodes: list[Request] = []
        self._stepped = self._began = 0  # when the last decode step, the window
        self._marks: dict[int, tuple[int, int]] = {}  # index -> when, and tokens at that time

    def add(self, batch: Batch, launch: NotedLaunch | None, now: int) -> None:
        """A step of ``batch`` ended at ``now``."""
        self.launches += 1
        if batch.decodes:
            self._decodes, self._stepped = batch.decodes, now
        if batch.chunks and launch is not None:
            self._service += launch.ns * (launch.sms / self._num_sms)
        first = [
            r
            for r in [chunk.request for chunk in batch.chunks]
            if r.num_tokens == r.num_prompt_tokens + 1 and r.num_computed_tokens + 1 == r.num_tokens
        ]
        for request in first:
            self._ttft.append(float(now - request.arrival_ns))
            self._prompts.append((request.arrival_ns, self._service / len(first)))
            self._marks[request.index] = (now, request.num_tokens)
        if first:
            self._service = 0.0

    def close(self, percent: float, now: int) -> Observation:
        """The window's observation at that percentile; the next window begins."""
        tpot = []
        marks = {i: mark for i, mark in self._marks.items() if mark[0] >= self._began}
        for request in self._decodes:
            when, tokens = self._marks.get(request.index, (self._stepped, request.num_tokens))
            if request.num_tokens > tokens:
                tpot.append((self._stepped - when) / (request.num_tokens - tokens))
            marks[request.index] = (self._stepped, request.num_tokens)
        prompt_ns, load = self._load()
        made = Observation(
            percentile(self._ttft, percent) if self._ttft else None,
            percentile(tpot, percent) if tpot else None,
            prompt_ns,
            load,
        )
        self._marks, self._began, self._ttft, self.launches = marks, now, [], 0
        return made

    def _load(self) -> tuple[float, float]:
        """Mean ns of a prompt on all SMs, and lambda = 100 x arrival rate x that."""
        count = len(self._prompts)
        if count < 2:
            return 0.0, 0.0
        work, first, last = 0.0, self._prompts[0][0], self._prompts[0][0]
        for arrival, ns in self._prompts:
            work += ns
            first, last = min(first, arrival), max(last, arrival)
        mean = work / count
        return mean, 100.0 * (count - 1) * mean / (last - first) if last > first else 0.0
