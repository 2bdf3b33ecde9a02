"""Metrics of the device: KV cache, SM splits, and use of its measured limits (MFU, MBU)."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar, NamedTuple

import numpy as np

from nexusbench.core.events import PREEMPTION_KINDS
from nexusbench.core.units import NS_PER_S
from nexusbench.core.work import Work
from nexusbench.metrics.arrays import IntArray, stable_order, time_with_several
from nexusbench.metrics.base import Scalar, TablePlace
from nexusbench.metrics.launches import later_layers
from nexusbench.metrics.run_events import RunEvents


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
    place = TablePlace("memory", 10, unit="")

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
    place = TablePlace("memory", 20)

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
    place = TablePlace("memory", 30)

    def value(self, run: RunEvents) -> float | None:
        """Percent."""
        submitted = run.tables["submitted"]
        used = submitted["kv_used"][submitted["time"] >= run.facts.warmup_ns]
        return 100 * int(used.max()) / run.facts.kv_blocks if len(used) else None


class PrefixHitRate(Scalar):
    """Share of prompt tokens found in the prefix cache."""

    tag, unit, direction = "prefix_hit_rate", "%", "higher"
    title = "prefix hit rate"
    formula = "100 sum(c_i) / sum(p_i), i in M admitted; c_i at the first admission"
    place = TablePlace("memory", 40)

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
        """A server may leave out cached tokens, or report impossible numbers of them."""
        known = run.facts.observed == "engine"
        client = "not every answer says what was found cached, or says what can be"
        return super().reason(run) if known else client


class _MeanSms(Scalar):
    """SMs that one partition had, averaged over the time it computed."""

    needs_engine = True
    unit, direction = "SMs", "none"
    partition: ClassVar[str]

    def value(self, run: RunEvents) -> float | None:
        """SMs; None where the partition computed nothing."""
        # Of several engines, all have such a partition: all@0, all@1.
        names = [name.partition("@")[0] for name in run.facts.partitions]
        if self.partition not in names:
            return None
        codes = [code for code, name in enumerate(names) if name == self.partition]
        keep = np.isin(run.of_launches("partition"), codes)
        time = (run.launches.end - run.launches.start)[keep]
        total = int(time.sum())
        return int((run.of_launches("sms")[keep] * time).sum()) / total if total else None

    def reason(self, run: RunEvents) -> str:
        """Names the partition."""
        return f"the partition '{self.partition}' computed nothing"


class PrefillSms(_MeanSms):
    """SMs of the prefill partition."""

    tag, title, partition = "sms_prefill", "SMs of prefill", "prefill"
    formula = "sum(m_j (d_j - b_j)) / sum(d_j - b_j), j on partition prefill"
    place = TablePlace("splits", 10, title="SMs of prefill, mean", unit="")


class DecodeSms(_MeanSms):
    """SMs of the decode partition."""

    tag, title, partition = "sms_decode", "SMs of decode", "decode"
    formula = "sum(m_j (d_j - b_j)) / sum(d_j - b_j), j on partition decode"
    place = TablePlace("splits", 20, title="SMs of decode, mean", unit="")


class WholeSms(_MeanSms):
    """SMs of the undivided device."""

    tag, title, partition = "sms_all", "SMs undivided", "all"
    formula = "sum(m_j (d_j - b_j)) / sum(d_j - b_j), j on partition all"
    place = TablePlace("splits", 30, title="SMs undivided, mean", unit="")


class TimeInForce(Scalar):
    """Share of busy time with two partitions computing: only then is a split in force. Engines that
    run side by side each have a GPU to themselves.
    """

    needs_engine = True
    tag, unit, direction = "split_in_force", "%", "none"
    title = "split in force"
    formula = "100 |{t : two partitions compute}| / B"
    place = TablePlace("splits", 40, unit="% of busy")

    def value(self, run: RunEvents) -> float | None:
        """Percent of the device's busy time."""
        if any("@" in name for name in run.facts.partitions):
            return 0.0 if run.busy.length else None
        codes = np.unique(run.of_launches("partition"))
        together = time_with_several([run.busy_of(int(code)) for code in codes])
        return 100 * together / run.busy.length if run.busy.length else None


def _count_changes(run: RunEvents) -> int:
    """Changes of the split after the first launch; setting the first split is no change."""
    changes, launched = run.tables["repartitioned"]["time"], run.tables["submitted"]["time"]
    if not len(launched):
        return 0
    return int(((changes > launched.min()) & (changes >= run.facts.warmup_ns)).sum())


class Repartitions(Scalar):
    """How often the split changed after the first launch."""

    needs_engine = True
    tag, unit, direction = "repartitions", "times", "none"
    title = "re-partitions"
    formula = "R = |{changes of the split after the first launch}|"
    place = TablePlace("splits", 50, unit="")

    def value(self, run: RunEvents) -> float:
        """A count."""
        return _count_changes(run)


class RepartitionRate(Scalar):
    """Changes of the split per minute."""

    needs_engine = True
    tag, unit, direction = "repartition_rate", "1/min", "none"
    title = "re-partitions per minute"
    formula = "60 R / T"

    def value(self, run: RunEvents) -> float:
        """Per minute of the window; 0 in a window of no length."""
        return _count_changes(run) * 60 * NS_PER_S / run.makespan if run.makespan else 0.0


def split_shares(run: RunEvents) -> dict[str, float]:
    """Percent of launched time under each split, e.g. ``{"36/56": 80.0}``; no metric, but a view of
    them.
    """
    code, time = run.of_launches("split"), run.launches.end - run.launches.start
    known = (code >= 0) & (code < len(run.facts.splits))
    totals = np.bincount(code[known], weights=time[known], minlength=len(run.facts.splits))
    shares: dict[str, float] = {}
    for split, total in zip(run.facts.splits, totals.tolist(), strict=True):
        if total:
            name = "/".join(map(str, split))
            shares[name] = shares.get(name, 0.0) + 100 * total / float(totals.sum())
    return shares


class Counts(NamedTuple):
    """FLOPs and bytes of the measured launches."""

    flops: float
    bytes: float


def count_work(run: RunEvents, work: Work) -> Counts | None:
    """The work of every forward pass that began after the warm-up; None if prompts were computed
    layer by layer, where the log does not say how many layers a launch had.

    Weights count once a pass, keys and values once for each request that reads or writes them;
    activations are left out, they stay in the caches.
    """
    if later_layers(run).any():
        return None
    passes, submitted = run.iterations, run.tables["submitted"]
    keep = passes.start >= run.facts.warmup_ns
    launch = passes.launch[keep]
    made = run.tables["step_done"]["tokens"][keep].astype(np.float64)
    decodes = submitted["decodes"][launch].astype(np.float64)
    # Each repetition of a decode launch sees one more token of each request.
    keys = submitted["decode_context"][launch] + decodes * (1 + _turn(launch))
    queries = decodes + submitted["prefill_tokens"][launch]
    pairs, read = _chunk_work(run)
    pairs, read = keys + pairs[launch], keys + read[launch]
    flops = work.token_flops * queries + work.head_flops * made + work.pair_flops * pairs
    moved = work.weight_bytes + work.head_bytes * (made > 0) + work.kv_bytes * (read + queries)
    return Counts(float(flops.sum()), float(moved.sum()))


def _turn(launch: np.ndarray) -> np.ndarray:
    """For each pass, how many of its launch came before it; passes are in order of their ends."""
    order = np.argsort(launch, kind="stable")
    ordered = launch[order]
    new = np.flatnonzero(np.diff(ordered, prepend=-1))
    turn = np.empty(len(launch), dtype=np.int64)
    turn[order] = np.arange(len(launch)) - np.repeat(new, np.diff(np.append(new, len(launch))))
    return turn


def _chunk_work(run: RunEvents) -> tuple[np.ndarray, np.ndarray]:
    """(query, key) pairs and keys read by the chunks of each launch, by its row."""
    chunk, submitted = run.tables["chunk"], run.tables["submitted"]
    count = len(submitted["step"])
    if not len(chunk["step"]):
        return np.zeros(count), np.zeros(count)
    order = np.argsort(submitted["step"], kind="stable")
    row = order[np.searchsorted(submitted["step"], chunk["step"], sorter=order)]
    tokens, context = chunk["tokens"].astype(np.float64), chunk["context"]
    pairs = tokens * (context + (tokens + 1) / 2)
    return (
        np.bincount(row, weights=pairs, minlength=count),
        np.bincount(row, weights=context + tokens, minlength=count),
    )


class _Utilization(Scalar):
    """A share of one limit over the time in which the device computed."""

    needs_engine = True
    unit, direction = "%", "higher"

    @abstractmethod
    def share(self, counts: Counts, work: Work) -> float:
        """Seconds that the work takes at the limit."""

    def value(self, run: RunEvents) -> float | None:
        """Percent; None where the work or the limit is unknown."""
        work, busy = run.facts.work, run.busy.length
        if work is None or not busy:
            return None
        counts = count_work(run, work)
        return None if counts is None else 100 * self.share(counts, work) * NS_PER_S / busy

    def reason(self, run: RunEvents) -> str:
        """Names the missing input."""
        if run.facts.work is None:
            if run.facts.simulated:
                return "the limits of this device were not measured"
            return "the limits of this device, or the model's work by token, are not known"
        if not run.busy.length:
            return "nothing was computed"
        return "prompts were computed layer by layer, and the log does not say how many at a time"


class FlopUtilization(_Utilization):
    """MFU: the model's FLOPs against a large GEMM's rate (PaLM, arXiv 2204.02311, appendix B)."""

    tag, title = "mfu", "MFU"
    formula = "100 sum(o_j) / (P B)"
    place = TablePlace("splits", 70, unit="% of GEMM rate")

    def share(self, counts: Counts, work: Work) -> float:
        """Seconds of GEMM."""
        return counts.flops / work.peak_flops


class BandwidthUtilization(_Utilization):
    """MBU: weights, keys and values against the rate of reading memory."""

    tag, title = "mbu", "MBU"
    formula = "100 sum(r_j) / (W B)"
    place = TablePlace("splits", 80, unit="% of read rate")

    def share(self, counts: Counts, work: Work) -> float:
        """Seconds of reading."""
        return counts.bytes / work.peak_bytes
