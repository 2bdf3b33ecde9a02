"""Is an SLO kept? One answer for finished probes and for stopped ones."""

from __future__ import annotations

import math
from typing import Literal

import msgspec
import numpy as np

from nexusbench.experiments.probe import FloatArray, Probe, statistic
from nexusbench.metrics.slo import Bound, Slo

Outcome = Literal["kept", "broken", "open"]
# Where the values of a key stand in a probe; a request's own gaps count by their 99th percentile.
_COLUMNS = {"ttft": "ttft", "queueing": "queueing", "tpot": "tpot", "e2e": "e2e", "tbt": "own_gap"}


class BrokenBound(msgspec.Struct, frozen=True):
    """A bound that is not kept: ``value`` of ``limit``, ms, or percent of requests for a share.

    ``at_least`` marks the value of a stopped run, which could only have become worse.
    """

    bound: str
    value: float | None  # None: infinite, requests did not finish
    limit: float
    excess: float  # how far beyond, as a share of the limit; for ranking
    at_least: bool


class Verdict(msgspec.Struct, frozen=True):
    """``open``: the run was stopped for another SLO's sake, and this one needs the whole of it."""

    outcome: Outcome
    broken: tuple[BrokenBound, ...] = ()


def judge(probe: Probe, slo: Slo) -> Verdict:
    """``slo`` against a probe; broken bounds in order, the worst first."""
    found = [_of_statistic(probe, bound) for bound in slo.of_statistics]
    if slo.of_requests:
        found.append(_of_requests(probe, slo))
    broken = sorted((b for b in found if b is not None), key=lambda b: -b.excess)
    if broken:
        return Verdict("broken", tuple(broken))
    return Verdict("kept" if probe.complete else "open")


def reached(probe: Probe, bound: Bound) -> float:
    """What a probe reached under a bound on a statistic, ms; infinite where too many did not
    finish.
    """
    if bound.key == "tbt":
        return probe.gaps[bound.statistic]
    values = np.sort(column(probe, bound.key))
    return statistic(values[~np.isnan(values)], bound.statistic)


def column(probe: Probe, key: str) -> FloatArray:
    """One value per request under an SLO key, ms; NaN where it does not apply."""
    return np.array(getattr(probe, _COLUMNS[key]), dtype=np.float64)


def attained(probe: Probe, slo: Slo) -> float:
    """Percent of the requests that keep every bound that ``slo`` has on each request."""
    kept = np.ones(len(probe.ttft), dtype=np.bool_)
    for bound in slo.of_requests:
        values = column(probe, bound.key)
        kept &= np.isnan(values) | (values <= bound.limit)
    return 100.0 * float(kept.mean()) if len(kept) else 100.0


def strain(probe: Probe, bounds: dict[str, float]) -> float:
    """How much of its bounds the mean request uses: 1 is a request that just keeps its tightest.

    Requests beyond twice a bound count as 2: how hopeless a miss is does not matter.
    """
    worst = np.zeros(len(probe.ttft))
    for key, limit in bounds.items():
        values = column(probe, key)
        worst = np.maximum(worst, np.where(np.isnan(values), 0.0, np.minimum(values / limit, 2.0)))
    return float(worst.mean()) if len(worst) else 0.0


def _of_statistic(probe: Probe, bound: Bound) -> BrokenBound | None:
    value = reached(probe, bound)
    if value <= bound.limit:
        return None
    excess = value / bound.limit - 1.0
    known = value if math.isfinite(value) else None
    return BrokenBound(str(bound), known, bound.limit, excess, not probe.complete)


def _of_requests(probe: Probe, slo: Slo) -> BrokenBound | None:
    """The share as a whole; it names the bound that most requests break."""
    share = attained(probe, slo)
    if share >= slo.share:
        return None
    misses = {
        str(bound): float(np.nansum(column(probe, bound.key) > bound.limit))
        for bound in slo.of_requests
    }
    worst = max(misses, key=lambda name: misses[name])
    missing, allowed = 100.0 - share, max(100.0 - slo.share, 1e-9)
    return BrokenBound(worst, share, slo.share, missing / allowed - 1.0, not probe.complete)
