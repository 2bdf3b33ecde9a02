"""Points of the comparisons over the range of each contested constant, as small multiples."""

from __future__ import annotations

import math
from typing import Any

import msgspec

from nexusbench.experiments.paying.plots import small_multiples
from nexusbench.experiments.paying.points import Survey
from nexusbench.experiments.paying.ranged import in_use_over_seeds, was_ranged
from nexusbench.experiments.paying.spec import Traffic
from nexusbench.experiments.paying.tables import cells_of, question_title, ready_traffic
from nexusbench.experiments.paying.verdicts import QUESTIONS, MapCell, verdict

_WIDTH = 34  # of a title, letters
_STYLES = ("-", "--", ":", "-.")
_COLOURS = 10  # of matplotlib's cycle


Line = list[tuple[float, float]]
Lines = dict[tuple[str, str], Line]


def range_lines(survey: Survey, question: str, constant: str) -> Lines:
    """By GPU and traffic: (value of the constant, points), at its ends and in use; points are the
    mean over the SLOs and loads that were run there.
    """
    lines: Lines = {}
    for gpu, places in survey.places.items():
        if constant not in places.used:
            continue
        values = {place.values[constant]: place.name for place in places.ends
                  if constant in place.values}  # fmt: skip
        values[places.used[constant]] = ""
        for traffic in ready_traffic(survey):
            found = [
                (value, _points(survey, gpu, traffic, question, name))
                for value, name in sorted(values.items())
            ]
            line = [(value, points) for value, points in found if points is not None]
            if len(line) > 1:
                lines[gpu, traffic.name] = line
    return lines


def _points(survey: Survey, gpu: str, traffic: Traffic, question: str, place: str) -> float | None:
    """The mean over SLOs and loads; None if one of them is missing or infinite."""
    cells: list[MapCell] = [
        msgspec.structs.replace(in_use_over_seeds(survey, cell), constant=place)
        for cell in cells_of(survey, traffic)
        if cell.gpu == gpu and was_ranged(survey, cell)
    ]
    answers = [verdict(survey, cell, question) for cell in cells]
    means = [answer.mean for answer in answers if answer is not None]
    known = len(means) == len(cells) and all(map(math.isfinite, means))
    return math.fsum(means) / len(means) if means and known else None


def points_over_ranges(survey: Survey) -> Any:
    """A panel per comparison and constant, a line per GPU and traffic; in use is filled. None where
    no constant was run at its ends.
    """
    constants = sorted({key for places in survey.places.values() for key in places.used})
    panels = {(q, c): range_lines(survey, q, c) for q in QUESTIONS for c in constants}
    if not any(panels.values()):
        return None
    title = "Points of attainment over the range of each constant, the others as in use"
    figure, axes = small_multiples(title, len(QUESTIONS), len(constants))
    handles: dict[str, Any] = {}
    for row, question in zip(axes, QUESTIONS, strict=True):
        drawn = [y for c in constants for line in panels[question, c].values() for _, y in line]
        for axis, constant in zip(row, constants, strict=True):
            handles |= _panel(axis, survey, panels[question, constant], constant)
            axis.set_title(constant, fontsize=8)
            if drawn:  # one scale along a row: which constant matters is to be seen
                axis.set_ylim(min(0.0, *drawn) - 3.0, max(0.0, *drawn) + 3.0)
        row[0].set_ylabel(_wrapped(question_title(survey, question)), fontsize=7)
    figure.legend(
        handles.values(), handles.keys(), loc="outside lower center", ncols=4, fontsize=8,
        frameon=False,
    )  # fmt: skip
    return figure


def _panel(axis: Any, survey: Survey, lines: Lines, constant: str) -> dict[str, Any]:
    """Colours are GPUs, dashes traffic."""
    gpus = list(survey.spec.about.gpus)
    traffics = [traffic.name for traffic in ready_traffic(survey)]
    handles = {}
    axis.axhline(0, color="black", linewidth=0.6)
    for (gpu, traffic), line in lines.items():
        colour = f"C{gpus.index(gpu) % _COLOURS}"
        style = _STYLES[traffics.index(traffic) % len(_STYLES)]
        x, y = zip(*line, strict=True)
        (handles[f"{gpu} {traffic}"],) = axis.plot(
            x, y, style, color=colour, marker="o", markersize=3, linewidth=1.1,
            markerfacecolor="white",
        )  # fmt: skip
        used = survey.places[gpu].used[constant]
        axis.plot(used, dict(line).get(used, math.nan), "o", color=colour, markersize=4)
    axis.grid(visible=True, alpha=0.25)
    axis.tick_params(labelsize=7)
    return handles


def _wrapped(title: str) -> str:
    import textwrap

    return "\n".join(textwrap.wrap(title.replace("`", ""), _WIDTH))
