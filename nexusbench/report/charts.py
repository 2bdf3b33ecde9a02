"""Which charts a page has, in which order, and the sentences below them."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from nexusbench.core.parts import parts_of
from nexusbench.core.units import NS_PER_S, counted
from nexusbench.report import figures
from nexusbench.report.figures import Figure
from nexusbench.report.gather import LoadSection, PageColumn
from nexusbench.report.rates import latency_over_rate, lines_of, throughput_over_rate
from nexusbench.report.steps import excerpt, excerpt_ms


class Chart(msgspec.Struct):
    """A figure with its title and what must be said about it; ``keys`` is a legend of colours."""

    name: str
    title: str
    caption: str
    figure: Figure
    keys: tuple[tuple[str, str], ...] = ()


class Group(msgspec.Struct):
    """Charts under one heading."""

    name: str
    title: str
    charts: list[Chart]


_KINDS = (("prefill", "prefill"), ("decode", "decode"), ("mixed", "both in one batch"))
_SPLIT = (("prefill-area", "prefill"), ("decode-area", "decode"), ("ink", "split in force"))


def groups_of(setting: LoadSection) -> list[Group]:
    """The charts of one setting; groups without a chart are left out."""
    groups = [
        Group("latency", "Latency", _latency(setting)),
        Group("time", "Over time", _over_time(setting)),
        Group("requests", "Request by request", _requests(setting)),
        Group("timeline", "Step by step", _timeline(setting)),
        Group("belief", "Belief and truth", _belief(setting)),
    ]
    return [group for group in groups if group.charts]


def rate_group(settings: Sequence[LoadSection]) -> Group | None:
    """The charts over the offered rate; None where nothing was run at two rates."""
    charts = []
    for tag, title, scale, unit in (("ttft", "TTFT", 1e-3, "s"), ("tbt", "TBT", 1.0, "ms")):
        figure = latency_over_rate(settings, tag, title, scale, unit)
        if figure is not None:
            charts.append(Chart(f"rate-{tag}", f"{title} over the offered rate", "", figure))
    figure = throughput_over_rate(settings)
    if figure is not None:
        caption = "Where a line bends, requests arrive faster than the device can serve them."
        charts.append(Chart("rate-output", "Throughput over the offered rate", caption, figure))
    if not charts or not lines_of(settings):
        return None
    return Group("rates", "More traffic", charts)


def _latency(setting: LoadSection) -> list[Chart]:
    charts = []
    for name, title, what, unit, scale in (
        ("ttft", "Time to first token", "TTFT", "s", 1e-3),
        ("tbt", "Time between tokens", "TBT", "ms", 1.0),
    ):
        figure = figures.distribution(setting, name, what, unit, scale)
        if figure is not None:
            caption = _distribution_caption(setting, name)
            charts.append(Chart(name, title, caption, figure))
    return charts


def _distribution_caption(setting: LoadSection, name: str) -> str:
    drawn = [(curve, len(curve.x)) for e in setting.entries if (curve := getattr(e.series, name))]
    thinned = any(curve.of > points for curve, points in drawn)
    noun = "request" if name == "ttft" else "gap"
    sizes = sorted({curve.of for curve, _ in drawn})
    of = counted(sizes[0], noun) if len(sizes) == 1 else f"{sizes[0]:,} to {sizes[-1]:,} {noun}s"
    how = "drawn at exact quantiles, densest in the tail" if thinned else "every one drawn"
    return f"{of} a run, {how}.{_first_seed(setting)}"


def _first_seed(setting: LoadSection) -> str:
    pooled = any(len(entry.runs) > 1 for entry in setting.entries)
    return " Of several seeds the first is drawn." if pooled else ""


def _over_time(setting: LoadSection) -> list[Chart]:
    found = [e.series.over_time for e in setting.entries if e.series.over_time is not None]
    if not found:
        return []
    lengths = sorted({round(series.interval_s, 2) for series in found})
    span = f"{lengths[0]:g} s" if len(lengths) == 1 else f"{lengths[0]:g} to {lengths[-1]:g} s"
    caption = f"The largest number in each interval of {span}."
    labels = {"waiting": "requests waiting", "running": "requests running"}
    queue = figures.over_time(setting, "requests", labels)
    kv = figures.over_time(setting, "%", {"kv": "KV blocks in use, %"})
    charts = []
    if queue is not None:
        charts.append(Chart("queue", "Queue", caption, queue))
    if kv is not None:
        text = f"KV blocks in use as seen at launches: the largest share in each interval of {span}"
        charts.append(Chart("kv", "KV cache", f"{text}.", kv))
    for entry in setting.entries:
        figure = figures.sms_over_time(entry)
        if figure is not None:
            parts = parts_of(entry.device)
            title = f"{parts[0].upper()}{parts[1:]} of {entry.column.label}"
            charts.append(Chart(f"sms-{entry.tone}", title, _sms_caption(entry), figure, _SPLIT))
    whole = [e.column.label for e in setting.entries if not figures.is_divided(e)]
    if whole and len(whole) < len(setting.entries):
        charts[-1].caption += f" Undivided, so not drawn: {', '.join(whole)}."
    return charts


def _sms_caption(entry: PageColumn) -> str:
    found = entry.series.over_time
    assert found is not None
    parts = parts_of(entry.device)
    text = f"{parts[0].upper()}{parts[1:]} on which a batch ran, mean of intervals of "
    text += f"{found.interval_s:.2g} s; blank is idle"
    if found.split is not None:
        changes = found.split.of - 1
        drawn = "each change drawn" if len(found.split.x) != len(found.t) else "drawn as means"
        changed = f"changed {counted(changes, 'time')}, {drawn}" if changes > 0 else "never changed"
        first = next(iter(found.sms))
        text += f". The line is what the split gave to {first}; it {changed}"
    return text + f". A partition that is alone may take all {parts}."


def _requests(setting: LoadSection) -> list[Chart]:
    charts = []
    for name, title, x, y in (
        ("ttft_by_prompt", "TTFT by prompt length", "prompt tokens", "TTFT, s"),
        ("e2e_by_output", "End to end by output length", "output tokens", "end to end, s"),
    ):
        figure = figures.requests(setting, name, x, y)
        if figure is not None:
            points = [p for e in setting.entries if (p := getattr(e.series, name))]
            most, drawn = max(p.of for p in points), max(len(p.x) for p in points)
            caption = f"Up to {drawn:,} of {most:,} requests of a run: evenly spaced by arrival, "
            caption += "and the slowest." if drawn < most else ""
            caption = caption if drawn < most else "Every request."
            charts.append(Chart(name, title, caption, figure))
    return charts


def _timeline(setting: LoadSection) -> list[Chart]:
    figure = excerpt(setting)
    if figure is None:
        return []
    moment = setting.entries[0].runs[0].moment / NS_PER_S
    first = setting.entries[0].column.label
    caption = (
        f"{excerpt_ms(setting):,g} ms, from {moment:.2f} s on, when most requests of {first} "
        "waited. Whole runs, for Perfetto: nexusbench timeline RUN -o FILE.json"
    )
    return [Chart("steps", "Excerpt of the timeline", caption, figure, _KINDS)]


def _belief(setting: LoadSection) -> list[Chart]:
    figure = figures.beliefs(setting)
    if figure is None:
        return []
    parts = []
    for entry in setting.entries:
        found = entry.series.beliefs
        if found is None:
            continue
        errors = [
            f"{words} {estimate.value:.1f} %"
            for words, tag in (
                ("MAPE", "belief_error"),
                ("alone", "belief_error_alone"),
                ("co-running", "belief_error_corunning"),
                ("bias", "belief_bias"),
            )
            if (estimate := entry.column.statistic(tag, "mean")) is not None
        ]
        few = f"; {len(found.actual):,} of {found.of:,} launches drawn, evenly spaced"
        more = few if len(found.actual) < found.of else ""
        parts.append(f"{entry.column.label}: {', '.join(errors)}{more}.")
    caption = (
        "What the cost model that the partitioner asks said a launch would take, and what it took. "
        "Crosses ran beside a neighbour that slowed them. "
    )
    return [Chart("belief", "Predicted and actual step time", caption + " ".join(parts), figure)]
