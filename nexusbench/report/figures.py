"""The interactive charts of runs: plotly figures as plain dictionaries.

Colours are names ("@run-0", "@prefill"): the page puts in those of the theme in force. A trace's
``meta`` says whose it is (``tone``, that of its entry) and in which ``view`` it is shown.
"""

from __future__ import annotations

from typing import Any

import msgspec

from nexusbench.core.parts import unit_of
from nexusbench.report.escape import plot_text
from nexusbench.report.gather import LoadSection, PageColumn
from nexusbench.report.series import Curve, OverTime, Points

# A trace, a layout or a part of one, in the plot library's own names.
PlotlyObject = dict[str, Any]

DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot", "4px,2px")
SYMBOLS = ("circle", "diamond", "square", "triangle-up", "cross", "star", "hexagon")
COLOURS = 6
_BELIEF_TEXT = "actual %{x:.3g} ms, predicted %{y:.3g} ms"


class ToggleOption(msgspec.Struct):
    """One choice of a toggle: ``layout`` is laid over the figure's own while it is chosen."""

    key: str
    label: str
    layout: PlotlyObject = {}


class Figure(msgspec.Struct):
    """What the page needs to draw one chart; ``tone`` is set where all of it is one entry's.

    ``toggles`` has groups of options by name; the first option of each is chosen at first.
    """

    data: list[PlotlyObject]
    layout: PlotlyObject
    height: int = 300
    toggles: dict[str, list[ToggleOption]] = {}
    tone: int | None = None


def axis(title: str, **more: Any) -> PlotlyObject:
    """An axis, in the plot library's format."""
    return {"title": {"text": title}, **more}


def colour(entry: PageColumn) -> str:
    """The name of an entry's colour."""
    return f"@run-{entry.tone % COLOURS}"


def _line(entry: PageColumn, x: Any, y: Any, **more: Any) -> PlotlyObject:
    width = more.pop("width", 2)
    meta = {"tone": entry.tone, **more.pop("meta", {})}
    dash = DASHES[entry.tone % len(DASHES)]
    return {
        "type": "scatter",
        "mode": "lines",
        "name": plot_text(entry.column.label),
        "x": x,
        "y": y,
        "line": {"color": colour(entry), "width": width, "dash": dash},
        "meta": meta,
        **more,
    }


_SCALE = [
    ToggleOption("log", "log", {"xaxis": {"type": "log"}}),
    ToggleOption("linear", "linear", {"xaxis": {"type": "linear"}}),
]


def distribution(
    setting: LoadSection, name: str, what: str, unit: str, scale: float
) -> Figure | None:
    """The shares of values up to, or above, each value. ``name`` is a Curve of DrawnSeries."""
    traces: list[PlotlyObject] = []
    for entry in setting.entries:
        curve: Curve | None = getattr(entry.series, name)
        if curve is None:
            continue
        x = [round(value * scale, 6) for value in curve.x]
        hover = f"%{{y:.4~g}} % within %{{x:.4~g}} {unit}"
        traces.append(
            _line(entry, x, curve.y, hovertemplate=hover, meta={"view": "cdf"})
        )  # fmt: skip
        beyond = [round(100 - share, 6) for share in curve.y]
        hover = f"%{{y:.3~g}} % take longer than %{{x:.4~g}} {unit}"
        # The largest value has nothing beyond it, and no place on a logarithmic axis.
        traces.append(
            _line(entry, x[:-1], beyond[:-1], hovertemplate=hover, meta={"view": "tail"})
        )  # fmt: skip
    if not traces:
        return None
    shares = ToggleOption("cdf", "share within", {"yaxis": axis("share within, %", range=[0, 101])})
    tail = ToggleOption(
        "tail", "tail", {"yaxis": axis("share beyond, %", type="log", range=[-2, 2])}
    )  # fmt: skip
    layout: PlotlyObject = {"xaxis": axis(f"{what}, {unit}"), "hovermode": "closest"}
    bound = setting.columns[0].first.summary.slo.get(name)
    if bound is not None:
        layout["shapes"] = [_bound("x", bound * scale)]
    return Figure(traces, layout, toggles={"view": [shares, tail], "scale": _SCALE})


def _bound(side: str, value: float) -> PlotlyObject:
    """A line at an SLO's bound."""
    other = "y" if side == "x" else "x"
    return {
        "type": "line",
        f"{side}0": value,
        f"{side}1": value,
        f"{other}0": 0,
        f"{other}1": 1,
        f"{other}ref": "paper",
        "line": {"color": "@muted", "width": 1, "dash": "dot"},
    }


def over_time(setting: LoadSection, unit: str, fields: dict[str, str]) -> Figure | None:
    """Lines over the time of the run; ``fields`` of OverTime with the labels of their views."""
    traces: list[PlotlyObject] = []
    for entry in setting.entries:
        found = entry.series.over_time
        for field in fields if found is not None else ():
            traces.append(
                _line(
                    entry, found and found.t, getattr(found, field), width=1.5,
                    meta={"view": field} if len(fields) > 1 else {},
                    hovertemplate=f"%{{y:,.4~g}} {unit} at %{{x:.4~g}} s",
                )
            )  # fmt: skip
            # Dashes would be lost in the steps.
            traces[-1]["line"] |= {"shape": "hv", "dash": "solid"}
    if not traces:
        return None
    bounded = {"range": [0, 102]} if unit == "%" else {"rangemode": "tozero"}
    options = [
        ToggleOption(field, label, {"yaxis": axis(label if len(fields) > 1 else unit, **bounded)})
        for field, label in fields.items()
    ]
    layout: PlotlyObject = {
        "xaxis": axis("time, s"),
        "yaxis": axis(unit, **bounded),
        "hovermode": "closest",
    }
    if setting.entries[0].series.warmup_s:
        layout["shapes"] = [_bound("x", setting.entries[0].series.warmup_s)]
    return Figure(traces, layout, 240, toggles={"view": options} if len(options) > 1 else {})


def is_divided(entry: PageColumn) -> bool:
    """More than one partition computed."""
    found = entry.series.over_time
    return found is not None and len(found.sms) > 1


def sms_over_time(entry: PageColumn) -> Figure | None:
    """Mean SMs at work per partition, stacked, and the split in force; None for undivided runs."""
    found, total = entry.series.over_time, entry.series.num_sms
    if found is None or not is_divided(entry):
        return None
    unit = unit_of(entry.device)
    traces = [
        {
            "type": "scatter",
            "mode": "lines",
            "name": plot_text(name),
            "x": found.t,
            "y": values,
            "stackgroup": "sms",
            "line": {"width": 0, "shape": "hv", "color": _partition_colour(name)},
            "fillcolor": _partition_colour(name),
            "hovertemplate": f"%{{y:.3~g}} {unit} at work at %{{x:.4~g}} s",
            "meta": {},
        }
        for name, values in found.sms.items()
    ]
    if found.split is not None:
        traces.append(_split_line(found, unit))
    layout = {
        "xaxis": axis("time, s"),
        "yaxis": axis(unit, range=[0, total * 1.02]),
        "hovermode": "closest",
    }
    return Figure(traces, layout, 220, tone=entry.tone)


def _partition_colour(name: str) -> str:
    return f"@{name}-area" if name in ("prefill", "decode") else "@mixed-area"


def _split_line(found: OverTime, unit: str) -> PlotlyObject:
    assert found.split is not None
    first = plot_text(next(iter(found.sms)))
    return {
        "type": "scatter",
        "mode": "lines",
        "name": "split",
        "x": found.split.x,
        "y": found.split.y,
        "line": {"color": "@ink", "width": 1.5, "shape": "hv"},
        "hovertemplate": f"split in force: %{{y:.3~g}} {unit} for {first}",
        "meta": {},
    }


def requests(setting: LoadSection, name: str, x: str, y: str) -> Figure | None:
    """One dot per request. ``name`` is a Points of DrawnSeries; y is in seconds."""
    traces = []
    for entry in setting.entries:
        points: Points | None = getattr(entry.series, name)
        if points is None:
            continue
        traces.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": plot_text(entry.column.label),
                "x": points.x,
                "y": points.y,
                "text": [plot_text(text, 40) for text in points.ids],
                "hovertemplate": "request %{text}<br>%{x:,} tokens, %{y:.4~g} s",
                "marker": _marker(entry),
                "meta": {"tone": entry.tone},
            }
        )
    if not traces:
        return None
    options = [
        ToggleOption("linear", "linear", {"yaxis": {"type": "linear", "rangemode": "tozero"}}),
        ToggleOption("log", "log", {"yaxis": {"type": "log"}}),
    ]
    layout = {"xaxis": axis(x, rangemode="tozero"), "yaxis": axis(y), "hovermode": "closest"}
    return Figure(traces, layout, 320, toggles={"scale": options})


def _marker(entry: PageColumn, size: int = 5) -> PlotlyObject:
    return {
        "color": colour(entry),
        "size": size,
        "opacity": 0.55,
        "symbol": SYMBOLS[entry.tone % len(SYMBOLS)],
    }


def beliefs(setting: LoadSection) -> Figure | None:
    """Predicted over actual time of launches; on the diagonal the belief was right."""
    traces: list[PlotlyObject] = []
    times: list[float] = []
    for entry in setting.entries:
        found = entry.series.beliefs
        if found is None:
            continue
        times += [*found.actual, *(value for value in found.predicted if value)]
        for slowed, symbol, text in ((False, "circle", "alone"), (True, "x", "co-running")):
            rows = [row for row, value in enumerate(found.corunning) if value == slowed]
            traces.append(
                {
                    "type": "scatter",
                    "mode": "markers",
                    "name": f"{plot_text(entry.column.label)}, {text}",
                    "x": [found.actual[row] for row in rows],
                    "y": [found.predicted[row] for row in rows],
                    "hovertemplate": _BELIEF_TEXT,
                    "marker": {**_marker(entry, 6), "symbol": symbol},
                    "meta": {"tone": entry.tone},
                }
            )
    if not traces:
        return None
    ends = [min(times) * 0.8, max(times) * 1.25]
    diagonal = {
        "type": "scatter",
        "mode": "lines",
        "name": "predicted = actual",
        "x": ends,
        "y": ends,
        "line": {"color": "@muted", "width": 1, "dash": "dot"},
        "hoverinfo": "skip",
        "meta": {},
    }
    layout = {
        "xaxis": axis("actual, ms", type="log"),
        "yaxis": axis("predicted, ms", type="log"),
        "hovermode": "closest",
    }
    return Figure([diagonal, *traces], layout, 320)
