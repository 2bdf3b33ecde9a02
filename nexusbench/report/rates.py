"""Latency and throughput over the offered rate: what more traffic costs each scheduler."""

from __future__ import annotations

from collections.abc import Sequence

from nexusbench.comparison.view import Column
from nexusbench.core.config import RunConfig
from nexusbench.report.escape import plot_text
from nexusbench.report.figures import (
    DASHES,
    SYMBOLS,
    Figure,
    PlotlyObject,
    ToggleOption,
    axis,
    colour,
)
from nexusbench.report.gather import LoadSection, PageColumn

STATISTICS = ("p95", "mean", "p50", "p99")


def lines_of(settings: Sequence[LoadSection]) -> dict[int, list[PageColumn]]:
    """Policy -> its entries by growing rate; only those seen at two rates or more."""
    found: dict[int, list[PageColumn]] = {}
    for setting in settings:
        for entry in setting.entries:
            if entry.rate is not None:
                found.setdefault(entry.policy, []).append(entry)
    lines = {policy: sorted(group, key=lambda e: e.rate or 0.0) for policy, group in found.items()}
    return {
        policy: group for policy, group in lines.items()
        if len({round(entry.rate or 0.0, 9) for entry in group}) > 1
    }  # fmt: skip


def latency_over_rate(
    settings: Sequence[LoadSection], tag: str, title: str, scale: float, unit: str
) -> Figure | None:
    """Percentiles of one latency over the offered rate."""
    traces = [
        _line(group, tag, name, scale, unit)
        for group in lines_of(settings).values()
        for name in STATISTICS
    ]
    if not any(trace["x"] for trace in traces):
        return None
    layout = {
        "xaxis": axis(_across(settings)),
        "yaxis": axis(f"{title}, {unit}", type="log"),
        "hovermode": "closest",
    }
    options = [ToggleOption(name, name) for name in STATISTICS]
    return Figure(traces, layout, toggles={"view": options})


def throughput_over_rate(settings: Sequence[LoadSection]) -> Figure | None:
    """Output tokens per second over the offered rate: where it bends, the device is full."""
    traces = [
        _line(group, "output_throughput", "value", 1.0, "tok/s")
        for group in lines_of(settings).values()
    ]
    if not any(trace["x"] for trace in traces):
        return None
    layout = {
        "xaxis": axis(_across(settings)),
        "yaxis": axis("output, tok/s", rangemode="tozero"),
        "hovermode": "closest",
    }
    return Figure(traces, layout)


def _across(settings: Sequence[LoadSection]) -> str:
    """What the horizontal axis counts."""
    closed = any(e.column.first.config.concurrency for s in settings for e in s.entries)
    return "users" if closed else "offered, req/s"


def _line(
    group: Sequence[PageColumn], tag: str, name: str, scale: float, unit: str
) -> PlotlyObject:  # fmt: skip
    first = group[0]
    points = [(e.rate, value) for e in group if (value := _value(e.column, tag, name)) is not None]
    # Where a policy has several tones no button stands for its line.
    hides = {"tone": first.tone} if len({e.tone for e in group}) == 1 else {}
    config = first.column.first.config
    label = config.scheduler if isinstance(config, RunConfig) else first.column.label
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "name": plot_text(label),
        "x": [round(rate or 0.0, 4) for rate, _ in points],
        "y": [round(value * scale, 6) for _, value in points],
        "line": {
            "color": colour(first), "width": 2, "dash": DASHES[first.tone % len(DASHES)],
        },
        "marker": {
            "color": colour(first), "size": 8, "symbol": SYMBOLS[first.tone % len(SYMBOLS)],
        },
        "hovertemplate": f"%{{y:.4~g}} {unit} at %{{x:.3~g}}",
        "meta": {**({"view": name} if name != "value" else {}), **hides},
    }  # fmt: skip


def _value(column: Column, tag: str, name: str) -> float | None:
    found = column.statistic(tag, name)
    return None if found is None else found.value
