"""Metrics of launches: batch sizes, busy time, contention, belief error, host gaps."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar, Literal

import numpy as np

from nexusbench.core.units import NS_PER_US
from nexusbench.core.work import HostGap
from nexusbench.metrics.arrays import BoolArray, FloatArray, IntArray
from nexusbench.metrics.base import Distribution, Scalar, TablePlace
from nexusbench.metrics.run_events import RunEvents


def later_layers(run: RunEvents) -> BoolArray:
    """For each row of ``chunk``, whether it goes on with the chunk of its request's row before.

    A launch of some layers writes a row for each chunk as a whole launch does. Tokens are
    computed twice only after a preemption, so a row that repeats tokens and context of the row
    before, without a preemption between them, is a later part of the same chunk.
    """
    order, same = _compare(run)
    later = np.zeros(len(order), dtype=np.bool_)
    later[order] = same
    return later


def chunk_numbers(run: RunEvents) -> IntArray:
    """For each row of ``chunk`` a number that it shares with the other layers of the same chunk."""
    order, same = _compare(run)
    numbers = np.zeros(len(order), dtype=np.int64)
    numbers[order] = np.cumsum(~same)
    return numbers


def continued(run: RunEvents) -> BoolArray:
    """For each row of ``submitted``, whether it computes later layers of chunks begun before."""
    steps = run.tables["chunk"]["step"][later_layers(run)]
    found: BoolArray = np.isin(run.tables["submitted"]["step"], steps)
    return found


def _compare(run: RunEvents) -> tuple[IntArray, BoolArray]:
    """Rows of ``chunk`` by request and time, and which is the same chunk as the one before it."""
    chunk, preempted, launched = (run.tables[t] for t in ("chunk", "preempted", "submitted"))
    rows, count = np.argsort(launched["step"], kind="stable"), len(chunk["step"])
    if not count:
        return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.bool_)
    time = launched["time"][rows[np.searchsorted(launched["step"], chunk["step"], sorter=rows)]]
    request = np.concatenate((chunk["request"], preempted["request"]))
    times = np.concatenate((time, preempted["time"]))
    is_chunk = np.arange(len(request)) < count
    # Of a preemption and a launch at the same time the preemption is first.
    order = np.lexsort((is_chunk, times, request))
    lost = np.cumsum(~is_chunk[order])[is_chunk[order]]  # preemptions before each row
    order = order[is_chunk[order]]
    same = np.diff(lost, prepend=-1) == 0
    for column in ("request", "tokens", "context"):
        same[1:] &= np.diff(chunk[column][order]) == 0
    return order, same


class BatchSize(Distribution):
    """Requests in a launch."""

    needs_engine = True
    tag, unit, direction = "batch_size", "requests", "none"
    title = "batch size"
    formula = "x_j + h_j (decodes and chunks of launch j)"

    def values(self, run: RunEvents) -> FloatArray:
        """One value per launch."""
        return (run.of_launches("decodes") + run.of_launches("chunks")).astype(np.float64)


class TokensPerStep(Distribution):
    """Rows of the dense layers in one forward pass, however many launches it was cut into."""

    needs_engine = True
    tag, unit, direction = "tokens_per_step", "tokens", "none"
    title = "tokens per step"
    formula = "x_j + q_j (decodes and prompt tokens of launch j, with a pass's first layers)"

    def values(self, run: RunEvents) -> FloatArray:
        """One value per launch; one that repeats its decode step counts one pass, one that goes on
        with the layers of a chunk counts none.
        """
        tokens = run.of_launches("decodes") + run.of_launches("prefill_tokens")
        return tokens[~continued(run)[run.launches.row]].astype(np.float64)


class BusyShare(Scalar):
    """Share of the window in which at least one partition computed."""

    needs_engine = True
    tag, unit, direction = "busy", "%", "none"
    title = "device busy"
    formula = "100 B / T"

    def value(self, run: RunEvents) -> float | None:
        """Percent of the window."""
        return 100 * run.busy.length / run.makespan if run.makespan else None


class ContentionShare(Scalar):
    """Share of computing time that launches would not have taken without a neighbour."""

    needs_engine = True
    tag, unit, direction = "contention", "%", "lower"
    title = "contention"
    formula = "100 sum(max(0, d_j - b_j - z_j)) / sum(d_j - b_j), z_j known"
    # A scheduler that runs one batch at a time has no contention: no value is marked as best.
    place = TablePlace("splits", 60, unit="% of compute", better="none")
    no_value = "the device does not know the time of a launch without its neighbour"

    def value(self, run: RunEvents) -> float | None:
        """Percent; None where the device does not report the time of a launch alone."""
        launches = run.launches
        known = launches.solo >= 0
        actual = (launches.end - launches.start)[known]
        total = int(actual.sum())
        if not total:
            return None
        return 100 * int(np.maximum(actual - launches.solo[known], 0).sum()) / total


class _Belief(Distribution):
    """Relative error of the predicted time of launches that had a prediction, percent."""

    needs_engine = True
    unit = "%"
    no_value = "no such launch had a prediction"
    # Of these launches. Where the time without a neighbour is unknown, a launch is of no kind.
    kind_of_launch: ClassVar[Literal["any", "alone", "corunning"]] = "any"
    signed: ClassVar[bool] = False  # above 0 the belief is too slow

    def values(self, run: RunEvents) -> FloatArray:
        """One value per predicted launch of the kind."""
        launches = run.launches
        actual = launches.end - launches.start
        predicted = run.of_launches("predicted")
        keep = (predicted >= 0) & (actual > 0)
        if self.kind_of_launch != "any":
            keep &= launches.solo >= 0
            keep &= (launches.solo >= actual) == (self.kind_of_launch == "alone")
        error: FloatArray = 100 * (predicted[keep] - actual[keep]) / actual[keep]
        return error if self.signed else np.abs(error)


class BeliefError(_Belief):
    """Size of the error; its mean is the MAPE."""

    tag, direction, title = "belief_error", "lower", "belief error (mean is MAPE)"
    formula = "100 |w_j - (d_j - b_j)| / (d_j - b_j), w_j known"
    place = TablePlace("splits", 90, title="belief error, MAPE", statistics=("mean",))


class BeliefBias(_Belief):
    """Signed error; above 0 the belief is too slow."""

    signed = True
    tag, direction, title = "belief_bias", "none", "belief bias (signed)"
    formula = "100 (w_j - (d_j - b_j)) / (d_j - b_j), w_j known"
    place = TablePlace("splits", 100, title="belief bias", statistics=("mean",))


class BeliefErrorAlone(_Belief):
    """Size of the error of launches without a neighbour."""

    kind_of_launch = "alone"
    tag, direction, title = "belief_error_alone", "lower", "belief error, alone"
    formula = "belief_error of j with z_j = d_j - b_j"


class BeliefBiasAlone(_Belief):
    """Signed error of launches without a neighbour."""

    kind_of_launch = "alone"
    signed = True
    tag, direction, title = "belief_bias_alone", "none", "belief bias, alone"
    formula = "belief_bias of j with z_j = d_j - b_j"


class BeliefErrorCorunning(_Belief):
    """Size of the error of launches that a neighbour slowed down."""

    kind_of_launch = "corunning"
    tag, direction, title = "belief_error_corunning", "lower", "belief error, co-running"
    formula = "belief_error of j with z_j < d_j - b_j"


class BeliefBiasCorunning(_Belief):
    """Signed error of launches that a neighbour slowed down."""

    kind_of_launch = "corunning"
    signed = True
    tag, direction, title = "belief_bias_corunning", "none", "belief bias, co-running"
    formula = "belief_bias of j with z_j < d_j - b_j"


class _Gap(Scalar):
    """Over all launches of the run, the warm-up too, that followed another at once."""

    needs_engine = True
    unit, direction = "us", "lower"
    no_value = "this device does not measure when a partition stands still"

    @abstractmethod
    def of(self, gaps: list[HostGap]) -> float:
        """Nanoseconds."""

    def value(self, run: RunEvents) -> float | None:
        """Microseconds; None on a device that does not measure it."""
        gaps = [gap for gap in run.facts.host_gaps.values() if gap.count]
        return self.of(gaps) / NS_PER_US if gaps else None


class MeanGap(_Gap):
    """The mean over launches, whatever partition they ran on."""

    tag, title = "host_gap", "host gap"
    formula = "mean(y_j), j submitted as soon as its partition's launch before had ended"
    place = TablePlace("host", 20, title="host gap, mean", unit="µs")

    def of(self, gaps: list[HostGap]) -> float:
        """All gaps over their number."""
        return sum(gap.total_ns for gap in gaps) / sum(gap.count for gap in gaps)


class LongestGap(_Gap):
    """The longest of all: a pause of the host, or a graph that was captured."""

    tag, title = "host_gap_longest", "longest host gap"
    formula = "max(y_j), j as in host_gap"

    def of(self, gaps: list[HostGap]) -> float:
        """Of any partition."""
        return float(max(gap.longest_ns for gap in gaps))
