"""Gaps between a request's tokens that overlap another request's prefill, beside those that do not.

After the mixed-load benchmark of open-infer (pegainfer PR 368), which tags each gap as stalled or
steady; there by the time between sending a long prompt and its first token, here by launches.
"""

from __future__ import annotations

from typing import Any

import numpy.typing as npt

from nexusbench.metrics.arrays import BoolArray, FloatArray, to_ms
from nexusbench.metrics.base import Distribution, Scalar
from nexusbench.metrics.run_events import RunEvents


def _gaps(run: RunEvents) -> tuple[npt.NDArray[Any], BoolArray]:
    """Gaps of measured requests, ns, and which of them are stalled."""
    gaps, stalled = run.gaps, run.stalled
    if not run.measured.all():
        kept = run.measured[run.gap_request]
        gaps, stalled = gaps[kept], stalled[kept]
    return gaps, stalled


class StalledShare(Scalar):
    """How many of the gaps between tokens overlap another request's prefill."""

    needs_engine = True
    tag, unit, direction = "stalled_gaps", "%", "lower"
    title = "token gaps that overlap another request's prefill"
    formula = (
        "100 |S| / sum(n_i - 1, i in M), S: gaps (t_i,k-1, t_i,k) of i in M that overlap a launch "
        "(b_j, d_j) with a chunk of another request"
    )
    no_value = "no request got two tokens"

    def value(self, run: RunEvents) -> float | None:
        """Percent of the gaps."""
        _, stalled = _gaps(run)
        return 100.0 * float(stalled.mean()) if len(stalled) else None


class StalledGap(Distribution):
    """Gaps that overlap another request's prefill."""

    needs_engine = True
    tag, unit, direction = "tbt_stalled", "ms", "lower"
    title = "time between tokens, stalled"
    formula = "t_i,k - t_i,k-1 of the gaps of i in M that are in S of stalled_gaps"
    no_value = "no token gap overlaps another request's prefill"

    def values(self, run: RunEvents) -> FloatArray:
        """One value per stalled gap."""
        gaps, stalled = _gaps(run)
        return to_ms(gaps[stalled])


class SteadyGap(Distribution):
    """Gaps that overlap no other request's prefill: what decode does undisturbed."""

    needs_engine = True
    tag, unit, direction = "tbt_steady", "ms", "lower"
    title = "time between tokens, steady"
    formula = "t_i,k - t_i,k-1 of the gaps of i in M that are not in S of stalled_gaps"
    no_value = "every token gap overlaps another request's prefill"

    def values(self, run: RunEvents) -> FloatArray:
        """One value per steady gap."""
        gaps, stalled = _gaps(run)
        return to_ms(gaps[~stalled])
