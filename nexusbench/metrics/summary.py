"""A run in numbers, and two schedulers compared over seeds; JSON-ready and deterministic."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import msgspec
import numpy as np

from nexusbench.core.errors import InputError, NexusbenchError
from nexusbench.core.faults import fault_of
from nexusbench.core.units import NS_PER_S
from nexusbench.metrics.arrays import MANY
from nexusbench.metrics.base import Distribution, Metric, Scalar, find_metrics, load_metrics
from nexusbench.metrics.device_use import split_shares
from nexusbench.metrics.noise import NOISY, is_whole, left_out, rates_left_out
from nexusbench.metrics.run_events import RunEvents

SUMMARY_SCHEMA = 1
PERCENTILES = (50, 95, 99)
STATISTICS = ("mean", "p50", "p95", "p99", "min", "max")
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


def summarise(run: RunEvents, metrics: Mapping[str, Metric] | None = None) -> dict[str, Any]:
    """Every metric of a run, with units, directions and formulas; None (with a reason) where
    undefined.

    ``metrics`` defaults to all of the folder. A metric that raises, or gives what is no finite
    number, has no value, and a run that was served keeps all others: the entry ``failed`` (only
    there if there are any) says of which plug-in that is true, and why. Raises InputError for a
    damaged log.
    """
    failed: dict[str, str] = {}
    if metrics is None:
        found = find_metrics()
        metrics, failed = found.metrics, dict(found.broken)
    warmup = int((run.offered & ~run.measured).sum())
    noise: dict[str, dict[str, list[float]]] = {
        tag: {name: [] for name in names} for tag, names in NOISY.items()
    }
    entries = {tag: _entry(metric, run, noise, failed) for tag, metric in metrics.items()}
    summary = {
        "schema": SUMMARY_SCHEMA,
        "simulated": run.facts.simulated,
        "window_s": [time / NS_PER_S for time in run.window],
        "warmup": {"seconds": run.facts.warmup_ns / NS_PER_S, "requests": warmup},
        "slo": dict(run.facts.slo),
        "metrics": entries,
        # Statistics without each tenth of the run: what a lead is judged by (docs/metrics.md).
        "left_out": noise | rates_left_out(run),
        "split_shares": split_shares(run),
        "formulas": {tag: metric.formula for tag, metric in metrics.items()},
    }
    return {**summary, "failed": failed} if failed else summary


def _entry(
    metric: Metric,
    run: RunEvents,
    noise: dict[str, dict[str, list[float]]],
    failed: dict[str, str],
) -> dict[str, Any]:
    """One metric's entry. What its statistics are without each block goes to ``noise``, the fault
    of a metric that raises to ``failed``.
    """
    entry: dict[str, Any] = {
        "kind": metric.kind,
        "title": metric.title,
        "unit": metric.unit,
        "direction": metric.direction,
    }
    try:
        if metric.needs_engine and run.facts.observed == "client":
            return {**entry, **_empty(metric), "reason": _HIDDEN}
        values = _values(metric, run, noise)
        missing = values["n"] == 0 if "n" in values else values["value"] is None
        return {**entry, **values, **({"reason": str(metric.reason(run))} if missing else {})}
    except (InputError, KeyboardInterrupt):
        raise  # the log is damaged: that is not the metric's fault
    except BaseException as error:
        # A user's metric may raise anything, SystemExit too.
        fault = str(error) if isinstance(error, NexusbenchError) else fault_of(error)
        failed[metric.tag] = fault
        return {**entry, **_empty(metric), "reason": f"failed: {fault}"}


def _empty(metric: Metric) -> dict[str, Any]:
    return describe(np.empty(0)) if isinstance(metric, Distribution) else {"value": None}


def _values(
    metric: Metric, run: RunEvents, noise: dict[str, dict[str, list[float]]]
) -> dict[str, Any]:
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
    return {"value": None if value is None else _finite(value, metric.tag)}


class _Stored(msgspec.Struct, kw_only=True):
    title: str
    unit: str
    direction: Literal["lower", "higher", "none"]
    reason: str = ""


class _StoredScalar(_Stored, tag_field="kind", tag="scalar", kw_only=True):
    value: float | None


class _StoredDistribution(_Stored, tag_field="kind", tag="distribution", kw_only=True):
    mean: float | None
    p50: float | None
    p95: float | None
    p99: float | None
    min: float | None
    max: float | None
    n: Annotated[int, msgspec.Meta(ge=0)]
    weak: list[str]


class _Warmup(msgspec.Struct, kw_only=True):
    seconds: float
    requests: Annotated[int, msgspec.Meta(ge=0)]


class _StoredSummary(msgspec.Struct, kw_only=True):
    """What the tables take for granted."""

    schema: Literal[1]
    simulated: bool
    window_s: tuple[float, float]
    warmup: _Warmup
    slo: dict[str, float]
    metrics: dict[str, _StoredScalar | _StoredDistribution]
    left_out: dict[str, dict[str, list[float]]]
    split_shares: dict[str, float]
    formulas: dict[str, str]
    failed: dict[str, str] = {}


def usable_summary(stored: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """``stored`` if it is what :func:`summarise` gives here; None where it is to be computed again:
    it lacks something, or a metric that is known here.
    """
    try:
        checked = msgspec.convert(stored, _StoredSummary)
    except (msgspec.ValidationError, RecursionError):
        return None
    tags = checked.metrics.keys()
    whole = checked.formulas.keys() == tags and load_metrics().keys() <= tags
    whole = whole and is_whole(checked.left_out)
    return dict(stored) if stored is not None and whole else None


def describe(values: np.ndarray[Any, np.dtype[Any]], tag: str = "") -> dict[str, Any]:
    """STATISTICS and ``n`` of some values; ``weak`` lists percentiles with too few samples beyond
    them.

    Percentiles interpolate linearly. Without values every statistic is None. Very many values are
    put in another order on the way, to spare a copy.
    """
    n = len(values)
    if not n:
        return {**dict.fromkeys(STATISTICS), "n": 0, "weak": []}
    statistics = {"mean": _finite(float(values.mean(dtype=np.float64)), tag)}
    percentiles = np.percentile(values, PERCENTILES, overwrite_input=n > MANY)
    for q, value in zip(PERCENTILES, percentiles, strict=True):
        statistics[f"p{q}"] = _finite(float(value), tag)
    statistics |= {"min": float(values.min()), "max": float(values.max())}
    weak = [f"p{q}" for q in PERCENTILES if n * (100 - q) < 100 * TAIL_SAMPLES]
    return {**statistics, "n": n, "weak": weak}


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


def interval(values: Sequence[float]) -> dict[str, Any]:
    """Mean and 95 % t-interval of one value per seed; ``low`` and ``high`` are None for a single
    seed.
    """
    n = len(values)
    mean = math.fsum(values) / n
    if n < 2:
        return {"mean": mean, "low": None, "high": None, "n": n}
    spread = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1))
    half = t_quantile(n - 1) * spread / math.sqrt(n)
    return {"mean": mean, "low": mean - half, "high": mean + half, "n": n}


def statistics_of(summary: Mapping[str, Any], tag: str) -> dict[str, float]:
    """The statistics of one metric that have a value: ``{"value": ...}`` or mean, p50 ...; else
    empty.
    """
    entry = summary["metrics"].get(tag, {})
    names = ("value", *STATISTICS)
    return {name: entry[name] for name in names if entry.get(name) is not None}


def over_seeds(summaries: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, dict[str, Any]]]:
    """Tag -> statistic -> mean over seeds and interval; ``n`` is in how many it had a value."""
    found: dict[str, dict[str, list[float]]] = {}
    for summary in summaries:
        for tag in summary["metrics"]:
            for name, value in statistics_of(summary, tag).items():
                found.setdefault(tag, {}).setdefault(name, []).append(value)
    return {
        tag: {name: interval(values) for name, values in by_name.items()}
        for tag, by_name in found.items()
    }


def paired(
    summaries_a: Sequence[Mapping[str, Any]], summaries_b: Sequence[Mapping[str, Any]]
) -> dict[str, dict[str, dict[str, Any]]]:
    """B minus A over seeds: tag -> statistic -> mean difference, 95 % interval, ``n`` and
    ``better``.

    The two sequences hold the same seeds in the same order. ``better`` is "a" or "b" where the
    interval excludes 0 and the metric has a direction, else None. Raises NexusbenchError on unequal
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
        for tag in one["metrics"]:
            directions[tag] = one["metrics"][tag]["direction"]
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


def _judged(difference: dict[str, Any], direction: str) -> dict[str, Any]:
    low, high = difference["low"], difference["high"]
    better = None
    if direction != "none" and low is not None and (low > 0 or high < 0):
        better = "b" if (low > 0) == (direction == "higher") else "a"
    return {**difference, "better": better}
