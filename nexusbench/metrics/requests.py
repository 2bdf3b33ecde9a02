"""Metrics of whole requests: outcomes, throughput, goodput under an SLO, cost."""

from __future__ import annotations

from abc import abstractmethod

import numpy as np

from nexusbench.core.events import OUTCOMES
from nexusbench.core.units import NS_PER_MS, NS_PER_S
from nexusbench.metrics.arrays import BoolArray, FloatArray, stable_order
from nexusbench.metrics.base import Scalar, TablePlace
from nexusbench.metrics.latency import came_at_once
from nexusbench.metrics.run_events import RunEvents


class Offered(Scalar):
    """Requests that arrived after the warm-up."""

    counts_refused = True
    tag, unit, direction = "offered", "requests", "none"
    title = "offered"
    formula = "|M|"

    def value(self, run: RunEvents) -> float:
        """A count."""
        return int(run.measured.sum())


class _Ended(Scalar):
    """Requests with one outcome; the tag is the outcome."""

    counts_refused = True
    unit = "requests"

    def value(self, run: RunEvents) -> float:
        """A count."""
        return int((run.measured & (run.outcome == OUTCOMES.index(self.tag))).sum())


class Finished(_Ended):
    """Requests that got all their tokens."""

    tag, direction, title = "finished", "higher", "finished"
    formula = "|F|"
    place = TablePlace("throughput", 10, title="requests finished", unit="")


class FinishedWork(Scalar):
    """Share of the offered tokens whose requests finished; rejecting long requests lowers it."""

    counts_refused = True
    tag, unit, direction = "finished_work", "%", "higher"
    title = "finished, of the tokens offered"
    formula = "100 sum(p_i + o_i, i in F) / sum(p_i + o_i, i in M), o_i output tokens of the trace"
    no_value = "no request was offered"

    def value(self, run: RunEvents) -> float | None:
        """Percent; None where nothing was offered."""
        tokens = run.requests["prompt_tokens"] + run.requests["output_tokens"]
        offered = int(tokens[run.measured].sum())
        return 100 * int(tokens[run.finished].sum()) / offered if offered else None


class FinishedByToken(Scalar):
    """Finished requests that a token of the model ended before the trace's length."""

    counts_refused = True
    tag, unit, direction = "finished_stop", "requests", "none"
    title = "finished by an end token"
    formula = "|{i in F : reason stop}|"
    place = TablePlace(
        "throughput", 11, title="by an end token", unit="", part_of="finished", only_if_any=True
    )

    def value(self, run: RunEvents) -> float:
        """A count."""
        if "stop" not in run.facts.strings:
            return 0
        ended = run.tables["ended"]
        stopped = ended["request"][ended["reason"] == run.facts.strings.index("stop")]
        return int(run.finished[stopped].sum())


class Rejected(_Ended):
    """Requests that could never be served, such as one longer than the context."""

    tag, direction, title = "rejected", "lower", "rejected"
    formula = "|{i in M : outcome rejected}|"
    place = TablePlace("throughput", 20, unit="", only_if_any=True)


class Failed(_Ended):
    """Requests that the engine gave up."""

    tag, direction, title = "failed", "lower", "failed"
    formula = "|{i in M : outcome failed}|"
    place = TablePlace("throughput", 30, unit="", only_if_any=True)


class Cancelled(_Ended):
    """Requests that were called off."""

    tag, direction, title = "cancelled", "lower", "cancelled"
    formula = "|{i in M : outcome cancelled}|"
    place = TablePlace("throughput", 40, unit="", only_if_any=True)


class Unfinished(Scalar):
    """Requests without an end: the run was killed or interrupted."""

    counts_refused = True
    tag, unit, direction = "unfinished", "requests", "lower"
    title = "unfinished"
    formula = "|{i in M : no outcome}|"
    place = TablePlace("throughput", 50, unit="", only_if_any=True)

    def value(self, run: RunEvents) -> float:
        """A count."""
        return int((run.measured & (run.outcome < 0)).sum())


class _Rate(Scalar):
    """Something counted, per second of the window."""

    no_value = "the measured part of the run has no length"

    @abstractmethod
    def count(self, run: RunEvents) -> int:
        """The count over the window."""

    def value(self, run: RunEvents) -> float | None:
        """The rate; None where the window is empty."""
        return self.count(run) * NS_PER_S / run.makespan if run.makespan else None


class Makespan(Scalar):
    """Length of the measured window."""

    tag, unit, direction = "makespan", "s", "lower"
    title = "makespan"
    formula = "T = max(e_i, t_i,k) - min(a_i), i in M"

    def value(self, run: RunEvents) -> float | None:
        """Seconds; None where nothing was measured."""
        return run.makespan / NS_PER_S if run.measured.any() else None


class RequestThroughput(_Rate):
    """Finished requests per second."""

    tag, unit, direction = "request_throughput", "req/s", "higher"
    title = "request throughput"
    formula = "|F| / T"
    place = TablePlace("throughput", 60, per_gpu=True)

    def count(self, run: RunEvents) -> int:
        """Finished requests."""
        return int(run.finished.sum())


class OutputThroughput(_Rate):
    """Generated tokens per second."""

    tag, unit, direction = "output_throughput", "tok/s", "higher"
    title = "output token throughput"
    formula = "sum(n_i, i in M) / T"
    place = TablePlace("throughput", 70, title="output throughput", per_gpu=True)

    def count(self, run: RunEvents) -> int:
        """Tokens generated for measured requests."""
        return int(run.num_output_tokens[run.measured].sum())


class TotalThroughput(_Rate):
    """Prompt and generated tokens per second."""

    tag, unit, direction = "total_throughput", "tok/s", "higher"
    title = "total token throughput"
    formula = "sum(p_i + n_i, i in G) / T"

    def count(self, run: RunEvents) -> int:
        """Prompt tokens (once, cached ones too) and output tokens of answered requests."""
        tokens = run.requests["prompt_tokens"] + run.num_output_tokens
        return int(tokens[run.answered].sum())


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
    """Which requests were measured, finished, and kept every bound of the run's SLO. A bound
    on gaps counts as broken where all tokens of a request arrived in one delivery.
    """
    kept = run.finished.copy()
    for key, bound in run.facts.slo.items():
        if key in ("tpot", "tbt"):
            kept &= ~came_at_once(run)
        kept &= _reached(run, key) <= bound * NS_PER_MS
    return kept


def _reached(run: RunEvents, key: str) -> FloatArray:
    """Each request's value under one SLO key, ns; defined for finished requests only."""
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
    no_value = _NO_SLO
    place = TablePlace("throughput", 80, per_gpu=True)

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
    place = TablePlace("throughput", 90, unit="% of offered")

    def value(self, run: RunEvents) -> float | None:
        """Percent of offered; failed, rejected, cancelled and unfinished requests are misses."""
        offered = int(run.measured.sum())
        return 100 * int(met(run).sum()) / offered if run.facts.slo and offered else None

    def reason(self, run: RunEvents) -> str:
        """Without an SLO there is no attainment."""
        return "no request was offered" if run.facts.slo else _NO_SLO


_TOKENS = 1e6
_SECONDS_PER_HOUR = 3600.0


class _PerToken(Scalar):
    """Something that all GPUs use up over the window, idle or not, per output token."""

    direction = "lower"

    @abstractmethod
    def rate(self, run: RunEvents) -> float | None:
        """Use of one GPU per second; None where it is not given."""

    def value(self, run: RunEvents) -> float | None:
        """Use over the window per token generated for measured requests."""
        rate, tokens = self.rate(run), int(run.num_output_tokens[run.measured].sum())
        if rate is None or not tokens:
            return None
        return rate * run.facts.gpus * run.makespan / NS_PER_S / tokens

    def reason(self, run: RunEvents) -> str:
        """No price or power is given, or no token was generated."""
        return "no token was generated" if self.rate(run) is not None else self.missing

    missing = ""


class CostPerMillionTokens(_PerToken):
    """Dollars of GPU time for a million output tokens."""

    tag, unit = "cost_per_mtok", "$/M output tokens"
    title = "cost per million output tokens"
    formula = "1e6 g price T / (3600 sum(n_i, i in M)), g GPUs at price $/h each"
    place = TablePlace("throughput", 100, title="cost", unit="$/M output tok")
    missing = "no price was given (--price-per-hour)"

    def rate(self, run: RunEvents) -> float | None:
        """Dollars per second and GPU, for a million tokens."""
        price = run.facts.price_per_hour
        return None if price is None else price * _TOKENS / _SECONDS_PER_HOUR


class JoulesPerToken(_PerToken):
    """Energy for an output token."""

    tag, unit = "joules_per_token", "J/token"
    title = "energy per output token"
    formula = "g watts T / sum(n_i, i in M), g GPUs of watts each"
    place = TablePlace("throughput", 110, title="energy", unit="J/output token")
    missing = "no power was given (--watts)"

    def rate(self, run: RunEvents) -> float | None:
        """Watts."""
        return run.facts.watts
