"""The page's charts as PNG and SVG files, for papers and slides (extra ``plots``)."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from nexusbench.core.errors import UsageError
from nexusbench.core.outputs import atomic_file
from nexusbench.profiling.plots import require_matplotlib
from nexusbench.report.charts import Chart, groups_of, rate_group
from nexusbench.report.escape import plain
from nexusbench.report.figures import PlotlyObject
from nexusbench.report.gather import LoadSection
from nexusbench.report.theme import PALETTE

FORMATS = ("png", "svg")
_LEGEND = 100  # characters of names beside each other
_DASHES = {
    "solid": "-", "dash": "--", "dot": ":", "dashdot": "-.", "longdash": (0, (8, 3)),
    "longdashdot": (0, (8, 3, 2, 3)), "4px,2px": (0, (4, 2)),
}  # fmt: skip
_SYMBOLS = {
    "circle": "o", "diamond": "D", "square": "s", "triangle-up": "^", "cross": "P", "star": "*",
    "hexagon": "h", "x": "x",
}  # fmt: skip


def draw(settings: Sequence[LoadSection], folder: Path) -> list[Path]:
    """Write every chart in both formats into ``folder``; returns the files.

    Raises UsageError without matplotlib, or if the folder cannot be written.
    """
    require_matplotlib()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--plots: cannot write to {folder}: {error.strerror}") from None
    drawn: list[Path] = []
    for name, note, chart in _charts(settings):
        figure = _figure(chart, note)
        for kind in FORMATS:
            path = folder / f"{name}.{kind}"
            with atomic_file(path) as file, warnings.catch_warnings():
                # Signs that the font lacks, and names too long for a layout: pictures show both.
                warnings.simplefilter("ignore", UserWarning)
                # Without the date equal runs give equal files.
                metadata = {"Date": None} if kind == "svg" else None
                figure.savefig(file, format=kind, dpi=150, metadata=metadata)
            drawn.append(path)
    return drawn


def _charts(settings: Sequence[LoadSection]) -> Iterator[tuple[str, str, Chart]]:
    """File name, note and chart."""
    simulated = any(column.first.simulated for s in settings for column in s.columns)
    state = "SIMULATED" if simulated else "measured"
    rates = rate_group(settings)
    for chart in rates.charts if rates is not None else ():
        yield chart.name, state, chart
    for setting in settings:
        several = len(settings) > 1
        note = f"{state}, {setting.title}" if several else state
        prefix = f"{_slug(setting.title)}-" if several else ""
        for group in groups_of(setting):
            for chart in group.charts:
                yield prefix + _slug(chart.name), note, chart


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-.") or "runs"


def _text(text: object) -> str:
    """Text of users: no formulas in it, and no markup of the page's plot library."""
    for entity, sign in (("&lt;", "<"), ("&gt;", ">"), ("&amp;", "&"), ("\u200b", "")):
        text = str(text).replace(entity, sign)
    return plain(str(text).replace("<br>", " "), 60).replace("$", r"\$")


def _figure(chart: Chart, note: str) -> Any:
    """A figure without a window."""
    from matplotlib.figure import Figure

    found = chart.figure
    picture = Figure(figsize=(7.2, max(2.4, found.height / 85)), layout="constrained")
    axes = picture.subplots()
    title = f"{_text(chart.title)} ({_text(note)})"
    picture.suptitle(title, fontsize=10, x=0.01, ha="left")
    layout = dict(found.layout)
    view = next(iter(found.toggles.get("view", [])), None)
    for options in found.toggles.values():
        for side, changes in options[0].layout.items():
            layout[side] = {**layout.get(side, {}), **changes}
    floor: list[float] = []  # of stacked areas: the top of those below
    for trace in found.data:
        if view is None or trace["meta"].get("view", view.key) == view.key:
            _draw(axes, trace, floor)
    _dress(axes, layout)
    handles, labels = axes.get_legend_handles_labels()
    named = dict(zip(labels, handles, strict=True))
    if len(named) > 1:
        # Above the plot, where it hides nothing; long names below each other.
        beside = max(1, min(4, len(named), _LEGEND // max(map(len, named))))
        axes.legend(named.values(), named.keys(), fontsize=8, frameon=False, loc="lower right",
                    bbox_to_anchor=(1, 1), ncols=beside, borderpad=0)  # fmt: skip
    return picture


def _colour(name: str) -> str:
    return PALETTE[name.removeprefix("@")][0]


def _draw(axes: Any, trace: PlotlyObject, floor: list[float]) -> None:
    label = _text(trace["name"]).lstrip("_")
    if trace["type"] == "bar":
        colour = _colour(trace["marker"]["color"])
        names = [_text(name) for name in trace["y"]]
        axes.barh(names, trace["x"], left=trace["base"], color=colour, height=0.6, label=label,
                  edgecolor="white", linewidth=0.4)  # fmt: skip
    elif trace["mode"] == "markers":
        marker = trace["marker"]
        axes.plot(trace["x"], trace["y"], _SYMBOLS[marker["symbol"]], label=label, markersize=3,
                  color=_colour(marker["color"]), alpha=marker["opacity"])  # fmt: skip
    elif "stackgroup" in trace:
        below = floor or [0.0] * len(trace["x"])
        top = [low + value for low, value in zip(below, trace["y"], strict=True)]
        axes.fill_between(trace["x"], below, top, step="post", label=label,
                          color=_colour(trace["fillcolor"]), linewidth=0)  # fmt: skip
        floor[:] = top
    else:
        line = trace["line"]
        symbol = trace.get("marker", {}).get("symbol")
        axes.plot(trace["x"], trace["y"], label=label, color=_colour(line["color"]),
                  linestyle=_DASHES[line.get("dash", "solid")], linewidth=line["width"] * 0.8,
                  marker=_SYMBOLS[symbol] if symbol else None, markersize=4,
                  drawstyle="steps-post" if line.get("shape") == "hv" else "default")  # fmt: skip


def _dress(axes: Any, layout: PlotlyObject) -> None:
    """Axes, grid, bounds."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    for side, name in (("x", "xaxis"), ("y", "yaxis")):
        wanted = layout.get(name, {})
        if wanted.get("type") == "log":
            axes.set(**{f"{side}scale": "log"})
            scale = getattr(axes, name)
            scale.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=8))
            scale.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
            scale.set_minor_formatter(NullFormatter())
        axes.set(**{f"{side}label": _text(wanted.get("title", {}).get("text", ""))})
        if "range" in wanted:
            low, high = wanted["range"]
            log = wanted.get("type") == "log"
            axes.set(**{f"{side}lim": (10**low, 10**high) if log else (low, high)})
        elif wanted.get("rangemode") == "tozero":
            axes.set(**{f"{side}lim": (0, None)})
    if layout.get("yaxis", {}).get("type") == "category":
        axes.invert_yaxis()
    for shape in layout.get("shapes", ()):
        axes.axvline(shape["x0"], color=_colour("muted"), linestyle=":", linewidth=1)
    axes.grid(visible=True, alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)
