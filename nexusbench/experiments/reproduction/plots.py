"""Pictures of an experiment: every system over the rates or sizes, as the paper draws them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nexusbench.core.outputs import atomic_file
from nexusbench.experiments.reproduction.outcome_files import Done
from nexusbench.experiments.reproduction.run import SystemAtPoint

PANELS = {
    "ttft.mean": "TTFT mean, ms", "ttft.p95": "TTFT P95, ms", "tbt.mean": "TBT mean, ms",
    "tbt.p95": "TBT P95, ms", "normalised_latency.mean": "normalised latency mean, ms/token",
    "normalised_latency.p95": "normalised latency P95, ms/token",
}  # fmt: skip
OFFLINE = {"makespan.value": "makespan, s"}
_MARKS = "osD^vP*X<>hd"
_AXES = {"request_rate": "requests/s", "limit": "requests"}


def draw(done: Done, folder: Path) -> Path | None:
    """Write ``<experiment>.svg``; None if nothing of it is a curve. Needs matplotlib."""
    axis = _axis(done.lines)
    if axis is None:
        return None
    import matplotlib
    from matplotlib.figure import Figure

    matplotlib.rcParams["svg.hashsalt"] = done.experiment  # equal runs give equal files
    panels = PANELS if axis == "request_rate" else OFFLINE
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(4.2 * columns, 3.2 * rows + 1.0), layout="constrained")
    figure.suptitle(f"{done.title} ({done.device}, SIMULATED)", fontsize=11)
    grid = figure.subplots(rows, columns, squeeze=False)
    for place, (measure, title) in zip(grid.flat, panels.items(), strict=False):
        _panel(place, done, axis, measure, title)
    handles, labels = grid.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    path = folder / f"{done.experiment}.svg"
    with atomic_file(path) as file:
        figure.savefig(file, format="svg", metadata={"Date": None})
    return path


def _axis(lines: tuple[SystemAtPoint, ...]) -> str | None:
    """The field that the points differ in, if there are numbers of two of them."""
    for key in _AXES:
        if len({line.point.get(key) for line in lines if line.values}) > 1:
            return key
    return None


def _panel(place: Any, done: Done, axis: str, measure: str, title: str) -> None:
    for number, system in enumerate(dict.fromkeys(line.system for line in done.lines)):
        pairs = sorted(
            (line.point[axis], value)
            for line in done.lines
            if line.system == system and (value := line.values.get(measure)) is not None
        )
        if pairs:
            x, y = zip(*pairs, strict=True)
            mark = _MARKS[number % len(_MARKS)]
            style = "-" if number < 10 else "--"
            place.plot(x, y, style, marker=mark, markersize=3, linewidth=1.1, label=system)
    place.set(xlabel=_AXES[axis], title=title, yscale="log")
    place.title.set_fontsize(9)
    place.grid(visible=True, alpha=0.25)
    place.tick_params(labelsize=8)
