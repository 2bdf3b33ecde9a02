"""Summaries with the metrics that a test wants, and nothing else."""

from __future__ import annotations

from typing import Any

from nexusbench.metrics.summary import (
    DistributionEntry,
    Entry,
    ScalarEntry,
    Statistics,
    Summary,
    WarmUp,
)


def scalar(value: float | None, direction: Any = "none") -> ScalarEntry:
    return ScalarEntry(title="", unit="", direction=direction, value=value)


def distribution(direction: Any = "none", **statistics: float) -> DistributionEntry:
    """One of a single value, whose statistics are those given."""
    known: dict[str, Any] = dict.fromkeys(Statistics.__struct_fields__)
    known |= {"n": 1, "weak": [], **statistics}
    return DistributionEntry(title="", unit="", direction=direction, **known)


def summary_of(**metrics: Entry) -> Summary:
    return Summary(
        schema=1, simulated=True, window_s=(0.0, 0.0), warmup=WarmUp(0.0, 0), slo={},
        metrics=metrics, split_shares={},
    )  # fmt: skip
