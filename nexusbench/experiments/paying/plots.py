"""Pictures of a survey: attainment over load, and the map of made-up traffic."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from nexusbench.core.outputs import atomic_file
from nexusbench.experiments.paying.points import Survey
from nexusbench.experiments.paying.spec import Kind, Traffic
from nexusbench.experiments.paying.tables import cells_of, question_title
from nexusbench.experiments.paying.verdicts import DrawsOfSystem, MapCell, best, side, verdict

_KINDS: tuple[tuple[Kind, str, str], ...] = (
    ("whole", "best one-batch-at-a-time", "--"),
    ("streams", "two streams, no split", ":"),
    ("split", "best split", "-"),
)
# Points of attainment at which the colours end.
_MOST = 30.0


def draw(survey: Survey, folder: Path) -> list[Path]:
    """Write ``loads.svg``, ``grid.svg`` and ``sensitivity.svg`` into ``folder``, each where the
    survey has something to show; needs matplotlib.
    """
    import matplotlib

    from nexusbench.experiments.paying.range_plots import points_over_ranges

    matplotlib.rcParams["svg.hashsalt"] = survey.spec.name  # equal surveys give equal files
    drawn = []
    figures = {
        "loads": _loads(survey), "grid": _grid(survey), "sensitivity": points_over_ranges(survey),
    }  # fmt: skip
    for name, figure in figures.items():
        if figure is not None:
            drawn.append(folder / f"{name}.svg")
            with atomic_file(drawn[-1]) as file:
                figure.savefig(file, format="svg", metadata={"Date": None})
    return drawn


def small_multiples(title: str, rows: int, columns: int) -> tuple[Any, Any]:
    """A figure of so many panels, and its axes as a table."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.4 * columns, 2.5 * rows + 1.0), layout="constrained")
    figure.suptitle(f"{title} (SIMULATED)", fontsize=11)
    return figure, figure.subplots(rows, columns, squeeze=False)


def _loads(survey: Survey) -> Any:
    """A panel per GPU, traffic and SLO: attainment over load of single systems and of kinds."""
    real = [traffic for traffic in survey.spec.traffic if traffic.trace]
    if not real:
        return None
    rows = [(traffic, slo) for traffic in real for slo in traffic.slos]
    gpus = survey.spec.about.gpus
    figure, axes = small_multiples("Requests that keep the SLO, %, over load", len(rows), len(gpus))
    for line, (traffic, slo) in zip(axes, rows, strict=True):
        for axis, gpu in zip(line, gpus, strict=True):
            cells = [c for c in cells_of(survey, traffic) if (c.gpu, c.slo) == (gpu, slo)]
            _panel(axis, survey, cells)
            axis.set_title(f"{gpu} {traffic.name}\n{slo}", fontsize=8)
            axis.set_ylim(-3, 103)
            axis.grid(visible=True, alpha=0.25)
            axis.tick_params(labelsize=7)
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=8, frameon=False)
    return figure


def _panel(axis: Any, survey: Survey, cells: list[MapCell]) -> None:
    about = survey.spec.about
    named = {system.name: system for system in survey.spec.systems}
    for name, mark in ((about.reference, "o"), (about.ordered, "s"), (about.policy, "D")):
        found = [(cell, side(survey, cell, named[name])) for cell in cells]
        _line(axis, found, name, "-", mark)
    for kind, title, dash in _KINDS:
        _line(axis, [(cell, best(survey, cell, kind)) for cell in cells], title, dash, "")


def _line(
    axis: Any, found: list[tuple[MapCell, DrawsOfSystem | None]], label: str, dash: str, mark: str
) -> None:
    points = [(cell.load, one.attained(cell.slo)) for cell, one in found if one is not None]
    if points:
        x, y = zip(*points, strict=True)
        axis.plot(x, y, dash, marker=mark, markersize=3, linewidth=1.1, label=label)


def _grid(survey: Survey) -> Any:
    """A panel per question and GPU: prompt length over output length, at the last SLO."""
    made_up = [traffic for traffic in survey.spec.traffic if not traffic.trace]
    if not made_up:
        return None
    questions, gpus = ("ordered", "split"), survey.spec.about.gpus
    slo = next(iter(made_up[0].slos))
    figure, axes = small_multiples(f"Points of attainment under {slo}", len(questions), len(gpus))
    image = None
    for line, question in zip(axes, questions, strict=True):
        for axis, gpu in zip(line, gpus, strict=True):
            image = _heat(axis, survey, made_up, gpu, slo, question)
            axis.set_title(gpu, fontsize=8)
        title = question_title(survey, question).replace("`", "")
        line[0].set_ylabel(f"{title}\noutput tokens", fontsize=6)
    figure.colorbar(image, ax=axes, shrink=0.7)
    return figure


def _heat(
    axis: Any, survey: Survey, made_up: list[Traffic], gpu: str, slo: str, question: str
) -> Any:
    prompts = sorted({traffic.prompt for traffic in made_up})
    outputs = sorted({traffic.output for traffic in made_up})
    values = [[math.nan] * len(prompts) for _ in outputs]
    for traffic in made_up:
        cell = MapCell(
            gpu=gpu, traffic=traffic.name, load=traffic.loads[0], slo=slo, seeds=traffic.seeds
        )
        found = verdict(survey, cell, question)
        row, column = outputs.index(traffic.output), prompts.index(traffic.prompt)
        if found is not None:
            values[row][column] = found.mean
            sure = "" if found.outcome in ("pays", "costs") else "?"
            text = "=" if found.outcome == "no difference" else f"{found.mean:+.0f}{sure}"
            ink = "white" if abs(found.mean) > 0.6 * _MOST else "black"
            axis.text(column, row, text, ha="center", va="center", fontsize=7, color=ink)
    axis.set_xticks(range(len(prompts)), [f"{prompt:,}" for prompt in prompts], fontsize=7)
    axis.set_yticks(range(len(outputs)), [f"{output}" for output in outputs], fontsize=7)
    axis.set_xlabel("prompt tokens", fontsize=7)
    return axis.imshow(values, cmap="RdBu", vmin=-_MOST, vmax=_MOST, aspect="auto")
