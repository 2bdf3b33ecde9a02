"""Service-level objectives: goodput and attainment. What did not finish is a miss."""

from __future__ import annotations

import numpy as np

from nexusbench.core.units import NS_PER_MS, NS_PER_S
from nexusbench.metrics.at_once import came_at_once
from nexusbench.metrics.base import Place, Scalar
from nexusbench.metrics.intervals import FloatArray
from nexusbench.metrics.run_events import BoolArray, RunEvents
from nexusbench.metrics.tokens import stable_order

_NO_SLO = "no SLO was given, e.g. ttft:500 tbt:50"


def request_p99_gaps(run: RunEvents) -> FloatArray:
    """Each request's own 99th percentile gap, ns (linear interpolation); 0 without gaps."""
    if not len(run.gaps):
        return np.zeros(run.num_requests)
    by_size = np.argsort(run.gaps)
    by_request = by_size[stable_order(run.gap_request[by_size], run.num_requests)]
    ordered = run.gaps[by_request].astype(np.int64)
    count = np.bincount(run.gap_request, minlength=run.num_requests)
    last = np.maximum(count - 1, 0)
    place = 0.99 * last
    low = place.astype(np.int64)
    first = np.minimum(np.cumsum(count) - count, len(ordered) - 1)
    below = ordered[np.minimum(first + low, len(ordered) - 1)]
    above = ordered[np.minimum(first + np.minimum(low + 1, last), len(ordered) - 1)]
    return np.where(count > 0, below + (above - below) * (place - low), 0.0)


def met(run: RunEvents) -> BoolArray:
    """Which requests were measured, finished, and kept every bound of the run's SLO. A bound that
    cannot be judged, for the tokens came all at once, is not kept.
    """
    kept = run.finished.copy()
    for key, bound in run.facts.slo.items():
        if key in ("tpot", "tbt"):
            kept &= ~came_at_once(run)
        kept &= _reached(run, key) <= bound * NS_PER_MS
    return kept


def _reached(run: RunEvents, key: str) -> FloatArray:
    """What each request reached under one SLO key, ns; only the finished are meaningful."""
    if key == "ttft":
        return (run.first_token - run.arrival).astype(np.float64)
    if key == "e2e":
        return (run.ended - run.arrival).astype(np.float64)
    if key == "tpot":
        # A request of one token has no gap and keeps any bound.
        time = np.where(run.num_gaps > 0, run.last_token - run.first_token, 0)
        return time / np.maximum(run.num_gaps, 1)
    return request_p99_gaps(run)


class Goodput(Scalar):
    """Requests per second that kept every SLO."""

    counts_refused = True
    tag, unit, direction = "goodput", "req/s", "higher"
    title = "goodput"
    formula = "|{i in F : every SLO kept}| / T"
    place = Place("throughput", 80, per_gpu=True)

    def value(self, run: RunEvents) -> float | None:
        """The rate; None without an SLO."""
        if not run.facts.slo or not run.makespan:
            return None
        return int(met(run).sum()) * NS_PER_S / run.makespan

    def reason(self, run: RunEvents) -> str:
        """Without an SLO there is no goodput."""
        return "the measured part of the run has no length" if run.facts.slo else _NO_SLO


class Attainment(Scalar):
    """Share of the offered requests that kept every SLO."""

    counts_refused = True
    tag, unit, direction = "attainment", "%", "higher"
    title = "SLO attainment"
    formula = "100 |{i in F : every SLO kept}| / |M|"
    place = Place("throughput", 90, unit="% of offered")

    def value(self, run: RunEvents) -> float | None:
        """Percent of offered; failed, rejected, cancelled and unfinished requests are misses."""
        offered = int(run.measured.sum())
        return 100 * int(met(run).sum()) / offered if run.facts.slo and offered else None

    def reason(self, run: RunEvents) -> str:
        """Without an SLO there is no attainment."""
        return "no request was offered" if run.facts.slo else _NO_SLO
