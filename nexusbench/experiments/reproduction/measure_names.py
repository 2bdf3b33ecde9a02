"""What a claim can be about: metrics by tag and statistic, and numbers made of several."""

from __future__ import annotations

from functools import cache

from nexusbench.core.registry import did_you_mean
from nexusbench.experiments.sweep_spec import SpecReader
from nexusbench.metrics.base import Metric, load_metrics
from nexusbench.metrics.summary import STATISTICS

# Computed from several numbers of a cell, or from several cells.
THROUGHPUT, EXECUTION = "throughput", "execution"
# Scalars that only ``serve = "regret"`` or "oracle" has.
JUDGED = ("regret_mean", "regret_p95", "broken")


@cache
def known_metrics() -> dict[str, Metric]:
    """Every metric by its tag, looked up once: claims ask for them all the time."""
    return dict(load_metrics())


def higher_is_better(measure: str) -> bool:
    """Direction of what is measured."""
    metric = known_metrics().get(measure.partition(".")[0])
    return measure == THROUGHPUT or (metric is not None and metric.direction == "higher")


def check_measure(reader: SpecReader, measure: str, table: str, key: str, nth: int) -> None:
    """Refuse, with its place, what names no number."""
    if measure in (THROUGHPUT, EXECUTION):
        return
    tag, _, statistic = measure.partition(".")
    metrics = known_metrics()
    if tag in JUDGED:
        return
    if tag not in metrics:
        hint = did_you_mean(tag, [THROUGHPUT, EXECUTION, *metrics, *JUDGED])
        raise reader.fault(f"no metric '{tag}'", table, key, hint, nth)
    known = ("value",) if metrics[tag].kind == "scalar" else STATISTICS
    if statistic not in known:
        hint = f"Write {tag}.{known[0]}" + ("" if len(known) == 1 else f" ({', '.join(known)})")
        raise reader.fault(f"'{measure}' names no statistic", table, key, hint, nth)
