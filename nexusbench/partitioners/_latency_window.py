"""What semi-PD observes of a run: TTFT, TPOT and load, window by window."""

from __future__ import annotations

from collections import deque

import msgspec

from nexusbench.core.batch import Batch
from nexusbench.core.request import Request
from nexusbench.partitioners._latency_models import percentile
from nexusbench.partitioners._launches import NotedLaunch

PROMPTS = 32  # the last so many give arrival rate and time per prompt


class Observation(msgspec.Struct, frozen=True, gc=False):
    """A window: percentiles in ns (None: nobody to observe), ns of a prompt on all SMs, and
    lambda, the percent of the SMs that prompts keep busy.
    """

    ttft: float | None
    tpot: float | None
    prompt_ns: float
    load: float


class LatencyWindow:
    """Latencies of the launches since the last :meth:`close`.

    TPOT is the mean gap of a request's tokens *in the window*, of those that decode at its end:
    who joins and ends within one window is not seen.
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
