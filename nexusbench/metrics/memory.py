"""The KV cache: how full, how often too small, how much reused."""

from __future__ import annotations

import numpy as np

from nexusbench.core.events import PREEMPTION_KINDS
from nexusbench.metrics.base import Place, Scalar
from nexusbench.metrics.intervals import IntArray
from nexusbench.metrics.run_events import RunEvents
from nexusbench.metrics.tokens import stable_order


def _rank_within(requests: IntArray, num_requests: int) -> IntArray:
    """For each row, how many earlier rows name the same request."""
    order = stable_order(requests, num_requests)
    counts = np.bincount(requests, minlength=num_requests)
    rank = np.empty(len(requests), dtype=np.int64)
    rank[order] = np.arange(len(requests)) - np.repeat(np.cumsum(counts) - counts, counts)
    return rank


class Preemptions(Scalar):
    """How often a request lost its KV blocks."""

    needs_engine = True
    tag, unit, direction = "preemptions", "times", "lower"
    title = "preemptions"
    formula = "sum(v_i, i in M)"
    place = Place("memory", 10, unit="")

    def value(self, run: RunEvents) -> float:
        """A count over measured requests."""
        return int(run.measured[run.tables["preempted"]["request"]].sum())


class RecomputedTokens(Scalar):
    """Tokens that were computed again after a preemption."""

    needs_engine = True
    tag, unit, direction = "recomputed_tokens", "tokens", "lower"
    title = "tokens recomputed"
    formula = "sum over recompute preemptions j of i in M, admitted again: max(0, lost_j - c_j)"

    def value(self, run: RunEvents) -> float:
        """Tokens lost by preemption and not found in the prefix cache at the next admission."""
        preempted, admitted = run.tables["preempted"], run.tables["admitted"]
        if not len(preempted["request"]):
            return 0
        # The k-th preemption of a request is followed by its (k+1)-th admission.
        width = len(admitted["request"]) + len(preempted["request"]) + 2
        again = admitted["request"] * width + _rank_within(admitted["request"], run.num_requests)
        wanted = preempted["request"] * width + 1
        wanted += _rank_within(preempted["request"], run.num_requests)
        _, lost_rows, found_rows = np.intersect1d(wanted, again, return_indices=True)
        kind = preempted["kind"] == PREEMPTION_KINDS.index("recompute")
        counts = (kind & run.measured[preempted["request"]])[lost_rows]
        lost = preempted["lost_tokens"][lost_rows] - admitted["cached_tokens"][found_rows]
        return int(np.maximum(lost, 0)[counts].sum())


class MeanKvUse(Scalar):
    """Mean share of KV blocks in use while the device was busy."""

    needs_engine = True
    tag, unit, direction = "kv_use_mean", "%", "none"
    title = "KV use, mean"
    formula = "100 sum(u_j y_j) / (K sum(y_j)), y_j = busy time between launches j and j+1"
    place = Place("memory", 20)

    def value(self, run: RunEvents) -> float | None:
        """Percent; the use seen at a launch holds until the next one, idle time does not count."""
        submitted = run.tables["submitted"]
        keep = submitted["time"] >= run.facts.warmup_ns
        times = submitted["time"][keep]
        busy = run.busy.covered_until(np.append(times, np.iinfo(np.int64).max))
        weights = np.diff(busy)
        if not run.facts.kv_blocks or not weights.sum():
            return None
        used = (submitted["kv_used"][keep] * weights).sum() / weights.sum()
        return 100 * float(used) / run.facts.kv_blocks


class PeakKvUse(Scalar):
    """Largest share of KV blocks in use at a launch."""

    needs_engine = True
    tag, unit, direction = "kv_use_peak", "%", "none"
    title = "KV use, peak"
    formula = "100 max(u_j) / K"
    place = Place("memory", 30)

    def value(self, run: RunEvents) -> float | None:
        """Percent."""
        submitted = run.tables["submitted"]
        used = submitted["kv_used"][submitted["time"] >= run.facts.warmup_ns]
        return 100 * int(used.max()) / run.facts.kv_blocks if len(used) else None


class PrefixHitRate(Scalar):
    """Share of prompt tokens that came from the prefix cache."""

    tag, unit, direction = "prefix_hit_rate", "%", "higher"
    title = "prefix hit rate"
    formula = "100 sum(c_i) / sum(p_i), i in M admitted; c_i at the first admission"
    place = Place("memory", 40)

    def value(self, run: RunEvents) -> float | None:
        """Percent; hits of a request on its own blocks after a preemption are no reuse and left
        out.
        """
        rows = run.first_admission
        keep = run.measured & (rows >= 0)
        prompt = int(run.requests["prompt_tokens"][keep].sum())
        found = run.tables["admitted"]["cached_tokens"][rows[keep]]
        if not prompt or found.min() < 0:
            return None
        return 100 * int(found.sum()) / prompt

    def reason(self, run: RunEvents) -> str:
        """A server need not say what it found, nor say what can be."""
        known = run.facts.observed == "engine"
        client = "not every answer says what was found cached, or says what can be"
        return super().reason(run) if known else client
