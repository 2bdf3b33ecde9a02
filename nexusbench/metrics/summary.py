"""A run in numbers, and two schedulers compared over seeds; deterministic."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import msgspec
import numpy as np

from nexusbench.core.documents import ReadByKey
from nexusbench.core.errors import InputError, NexusbenchError
from nexusbench.core.faults import fault_of
from nexusbench.core.units import NS_PER_S
from nexusbench.metrics.arrays import MANY
from nexusbench.metrics.base import (
    Direction,
    Distribution,
    Metric,
    Scalar,
    find_metrics,
    load_metrics,
)
from nexusbench.metrics.device_use import split_shares
from nexusbench.metrics.noise import NOISY, LeftOut, is_whole, left_out, rates_left_out
from nexusbench.metrics.run_events import RunEvents

SUMMARY_SCHEMA: Literal[1] = 1
PERCENTILES = (50, 95, 99)
STATISTICS = ("mean", "p50", "p95", "p99", "min", "max")
_OF_DISTRIBUTIONS = (*STATISTICS, "n")
# A percentile with fewer samples than this above it is marked weak.
TAIL_SAMPLES = 10
# Two-sided 95 % quantiles of Student's t for 1..30 degrees of freedom (any table of t).
_T_95 = (
    12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281,
    2.2010, 2.1788, 2.1604, 2.1448, 2.1314, 2.1199, 2.1098, 2.1009, 2.0930, 2.0860,
    2.0796, 2.0739, 2.0687, 2.0639, 2.0595, 2.0555, 2.0518, 2.0484, 2.0452, 2.0423,
)  # fmt: skip
_NORMAL_95 = 1.959964
_HIDDEN = "a client does not see the inside of the server"


SampleCount = Annotated[int, msgspec.Meta(ge=0)]


class Statistics(ReadByKey, frozen=True, kw_only=True):
    """Of ``n`` values; None where there are none. ``weak`` names percentiles with too few samples
    beyond them.
    """

    mean: float | None = None
    p50: float | None = None
    p95: float | None = None
    p99: float | None = None
    min: float | None = None
    max: float | None = None
    n: SampleCount = 0
    weak: list[str] = []


class _Entry(ReadByKey, frozen=True, kw_only=True, omit_defaults=True, tag_field="kind"):
    """One metric of a run."""

    title: str
    unit: str
    direction: Direction


class ScalarEntry(_Entry, frozen=True, kw_only=True, tag="scalar"):
    """A metric with one value; None, with a ``reason``, where the run has none."""

    value: int | float | None  # counts stay integers where they are stored
    reason: str = ""

    @property
    def weak(self) -> Sequence[str]:
        """Nothing: one value has no percentiles."""
        return ()

    def get(self, statistic: str) -> float | None:
        """The ``value``; None for any other statistic."""
        return self.value if statistic == "value" else None


class DistributionEntry(_Entry, frozen=True, kw_only=True, tag="distribution"):
    """A metric with many values: its :class:`Statistics`, and a ``reason`` where ``n`` is 0."""

    mean: float | None
    p50: float | None
    p95: float | None
    p99: float | None
    min: float | None
    max: float | None
    n: SampleCount
    weak: list[str]
    reason: str = ""

    def get(self, statistic: str) -> float | None:
        """One of STATISTICS, or ``n``; None where there is none of that name or no value."""
        return getattr(self, statistic) if statistic in _OF_DISTRIBUTIONS else None


Entry = ScalarEntry | DistributionEntry


class WarmUp(ReadByKey, frozen=True):
    """So many seconds from the start, and the requests that arrived in them, are not measured."""

    seconds: float
    requests: SampleCount


class Summary(ReadByKey, frozen=True, kw_only=True, omit_defaults=True):
    """A run in numbers. ``left_out`` is what statistics are without each tenth of the run, by which
    a lead is judged (docs/metrics.md); ``split_shares`` are percent of launched time; ``failed``
    says of which metrics and plug-ins there is no value because they raised, and why.
    """

    schema: Literal[1]
    simulated: bool
    window_s: tuple[float, float]
    warmup: WarmUp
    slo: dict[str, float]
    metrics: dict[str, Entry]
    left_out: LeftOut = {}
    split_shares: dict[str, float]
    formulas: dict[str, str] = {}
    failed: dict[str, str] = {}

    def value(self, tag: str, statistic: str = "value") -> float | None:
        """One statistic of one metric; None where the run has none."""
        entry = self.metrics.get(tag)
        return None if entry is None else entry.get(statistic)


def summarise(run: RunEvents, metrics: Mapping[str, Metric] | None = None) -> Summary:
    """Every metric of a run, with units, directions and formulas; None (with a reason) where
    undefined.

    ``metrics`` defaults to all of the folder. A metric that raises, or gives what is no finite
    number, has no value, and a run that was served keeps all others. Raises InputError for a
    damaged log.
    """
    failed: dict[str, str] = {}
    if metrics is None:
        found = find_metrics()
        metrics, failed = found.metrics, dict(found.broken)
    warmup = int((run.offered & ~run.measured).sum())
    noise: LeftOut = {tag: {name: [] for name in names} for tag, names in NOISY.items()}
    entries = {tag: _entry(metric, run, noise, failed) for tag, metric in metrics.items()}
    start, end = run.window
    return Summary(
        schema=SUMMARY_SCHEMA,
        simulated=run.facts.simulated,
        window_s=(start / NS_PER_S, end / NS_PER_S),
        warmup=WarmUp(run.facts.warmup_ns / NS_PER_S, warmup),
        slo=dict(run.facts.slo),
        metrics=entries,
        left_out=noise | rates_left_out(run),
        split_shares=split_shares(run),
        formulas={tag: metric.formula for tag, metric in metrics.items()},
        failed=failed,
    )


def _entry(metric: Metric, run: RunEvents, noise: LeftOut, failed: dict[str, str]) -> Entry:
    """One metric's entry. What its statistics are without each block goes to ``noise``, the fault
    of a metric that raises to ``failed``.
    """
    try:
        if metric.needs_engine and run.facts.observed == "client":
            return _entry_of(metric, None, _HIDDEN)
        values = _values(metric, run, noise)
        missing = values is None or (isinstance(values, Statistics) and not values.n)
        return _entry_of(metric, values, str(metric.reason(run)) if missing else "")
    except (InputError, KeyboardInterrupt):
        raise  # the log is damaged: that is not the metric's fault
    except BaseException as error:
        # A user's metric may raise anything, SystemExit too.
        fault = str(error) if isinstance(error, NexusbenchError) else fault_of(error)
        failed[metric.tag] = fault
        return _entry_of(metric, None, f"failed: {fault}")


def _entry_of(metric: Metric, values: Statistics | float | None, reason: str) -> Entry:
    """The entry of a metric that gave ``values``; None for no value."""
    title, unit, direction = metric.title, metric.unit, metric.direction
    if isinstance(metric, Distribution):
        found = values if isinstance(values, Statistics) else Statistics()
        return DistributionEntry(
            title=title, unit=unit, direction=direction, reason=reason,
            **msgspec.structs.asdict(found),
        )  # fmt: skip
    assert not isinstance(values, Statistics)
    return ScalarEntry(title=title, unit=unit, direction=direction, value=values, reason=reason)


def _values(metric: Metric, run: RunEvents, noise: LeftOut) -> Statistics | float | None:
    """What a metric gives. Raises NexusbenchError for what is no number."""
    if isinstance(metric, Distribution):
        values: np.ndarray[Any, np.dtype[Any]] = np.asarray(metric.values(run))
        if values.ndim != 1 or values.dtype.kind not in "fiub":
            raise NexusbenchError(
                f"metric '{metric.tag}' gave {values.ndim}-dimensional {values.dtype}; it must be "
                "a list of numbers"
            )
        if values.dtype.kind != "f":
            values = values.astype(np.float64)
        if metric.tag in noise:
            noise[metric.tag] = left_out(run, metric.tag, values)
        return describe(values, metric.tag)
    assert isinstance(metric, Scalar)
    value: Any = metric.value(run)
    number = isinstance(value, int | float | np.number)
    if value is not None and not number:
        raise NexusbenchError(f"metric '{metric.tag}' gave {type(value).__name__}, not a number")
    plain = value is None or type(value) in (int, float)
    if not plain:
        value = float(value)
    return None if value is None else _finite(value, metric.tag)


def usable_summary(stored: object) -> Summary | None:
    """``stored`` if it is what :func:`summarise` gives here; None where it is to be computed again:
    it lacks something, or a metric that is known here.
    """
    try:
        summary = msgspec.convert(stored, Summary)
    except (msgspec.ValidationError, RecursionError):
        return None
    tags = summary.metrics.keys()
    whole = summary.formulas.keys() == tags and load_metrics().keys() <= tags
    return summary if whole and is_whole(summary.left_out) else None


def describe(values: np.ndarray[Any, np.dtype[Any]], tag: str = "") -> Statistics:
    """The statistics of some values.

    Percentiles interpolate linearly. Very many values are put in another order on the way, to spare
    a copy.
    """
    n = len(values)
    if not n:
        return Statistics()
    mean = _finite(float(values.mean(dtype=np.float64)), tag)
    percentiles = np.percentile(values, PERCENTILES, overwrite_input=n > MANY)
    p50, p95, p99 = (_finite(float(value), tag) for value in percentiles)
    weak = [f"p{q}" for q in PERCENTILES if n * (100 - q) < 100 * TAIL_SAMPLES]
    least, most = float(values.min()), float(values.max())
    return Statistics(mean=mean, p50=p50, p95=p95, p99=p99, min=least, max=most, n=n, weak=weak)


def _finite(value: float, tag: str) -> float:
    if not math.isfinite(value):
        raise NexusbenchError(
            f"metric '{tag}' gave {value}; it must be finite, or None for no value"
        )
    return value


def t_quantile(degrees: int) -> float:
    """97.5 % quantile of Student's t (two-sided 95 %), degrees >= 1; error below 1e-4."""
    if degrees <= len(_T_95):
        return _T_95[degrees - 1]
    # Cornish-Fisher expansion around the normal quantile (Abramowitz & Stegun 26.7.5).
    z, v = _NORMAL_95, degrees
    return z + (z**3 + z) / (4 * v) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * v * v)


class Interval(ReadByKey, frozen=True):
    """Mean and 95 % t-interval of ``n`` values, one per seed; ``low`` and ``high`` are None for a
    single one.
    """

    mean: float
    low: float | None
    high: float | None
    n: int

    @property
    def half(self) -> float | None:
        """Half its width."""
        return None if self.low is None else self.mean - self.low


class Difference(Interval, frozen=True):
    """B minus A over seeds; ``better`` where the interval excludes 0 and the metric has a
    direction.
    """

    better: Literal["a", "b"] | None = None


Differences = dict[str, dict[str, Difference]]  # tag -> statistic -> difference


def interval(values: Sequence[float]) -> Interval:
    """Mean and 95 % t-interval of one value per seed."""
    n = len(values)
    mean = math.fsum(values) / n
    if n < 2:
        return Interval(mean, None, None, n)
    spread = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1))
    half = t_quantile(n - 1) * spread / math.sqrt(n)
    return Interval(mean, mean - half, mean + half, n)


def statistics_of(summary: Summary, tag: str) -> dict[str, float]:
    """The statistics of one metric that have a value: ``{"value": ...}`` or mean, p50 ...; else
    empty.
    """
    names = ("value", *STATISTICS)
    return {name: value for name in names if (value := summary.value(tag, name)) is not None}


def over_seeds(summaries: Sequence[Summary]) -> dict[str, dict[str, Interval]]:
    """Tag -> statistic -> mean over seeds and interval; ``n`` is in how many it had a value."""
    found: dict[str, dict[str, list[float]]] = {}
    for summary in summaries:
        for tag in summary.metrics:
            for name, value in statistics_of(summary, tag).items():
                found.setdefault(tag, {}).setdefault(name, []).append(value)
    return {
        tag: {name: interval(values) for name, values in by_name.items()}
        for tag, by_name in found.items()
    }


def paired(summaries_a: Sequence[Summary], summaries_b: Sequence[Summary]) -> Differences:
    """B minus A over seeds.

    The two sequences hold the same seeds in the same order. Raises NexusbenchError on unequal
    lengths.
    """
    if len(summaries_a) != len(summaries_b):
        raise NexusbenchError(
            f"cannot pair {len(summaries_a)} runs with {len(summaries_b)}; "
            "both sides need the same seeds"
        )
    differences: dict[str, dict[str, list[float]]] = {}
    directions: dict[str, str] = {}
    for one, other in zip(summaries_a, summaries_b, strict=True):
        for tag, entry in one.metrics.items():
            directions[tag] = entry.direction
            left, right = statistics_of(one, tag), statistics_of(other, tag)
            for name in left.keys() & right.keys():
                pairs = differences.setdefault(tag, {}).setdefault(name, [])
                pairs.append(right[name] - left[name])
    return {
        tag: {
            name: _judged(interval(by_name[name]), directions[tag])
            for name in ("value", *STATISTICS)
            if name in by_name
        }
        for tag, by_name in differences.items()
    }


def _judged(found: Interval, direction: str) -> Difference:
    better: Literal["a", "b"] | None = None
    apart = found.low is not None and found.high is not None and (found.low > 0 or found.high < 0)
    if direction != "none" and apart:
        better = "b" if (found.mean > 0) == (direction == "higher") else "a"
    return Difference(found.mean, found.low, found.high, found.n, better)
