"""What ``nexusbench pays`` does and shows."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path

import msgspec
from rich.console import Console
from rich.text import Text

from nexusbench import __version__
from nexusbench.cli._console import counted, results_console, say
from nexusbench.cli._countdown import Countdown, duration
from nexusbench.cli._grid import TextGrid
from nexusbench.cli._screen import badge
from nexusbench.cli._session import JSON_SCHEMA
from nexusbench.cli.outlet import beside_results, end_with
from nexusbench.comparison.load import rate_text
from nexusbench.core.errors import NexusbenchError
from nexusbench.core.outputs import make_folder
from nexusbench.experiments.over_range import OverRange, constants_of, range_words
from nexusbench.experiments.paying.plots import draw
from nexusbench.experiments.paying.points import Survey
from nexusbench.experiments.paying.ranged import over_ranges
from nexusbench.experiments.paying.spec import MapSpec, load_map
from nexusbench.experiments.paying.survey import Surveyor
from nexusbench.experiments.paying.survey_files import write_survey
from nexusbench.experiments.paying.tables import cells_of, question_title
from nexusbench.experiments.paying.verdicts import (
    QUESTIONS,
    DrawsOfSystem,
    MapCell,
    MapVerdict,
    judge,
    sides,
)
from nexusbench.experiments.pool import cores

_MOST_ERRORS = 10
_MOST_TOLD = 6  # places, in a warning
_LEGEND = (
    "points: requests that keep the SLO, percent, more than with the other side, paired by draw; "
    "(other -> this). ? is an interval that allows no verdict, = one within 2 points of none"
)

_RANGE_LEGEND = (
    "over the ranges: with each contested constant of the GPU at its ends, and with all of them "
    "drawn. Turns: where the points leave what the verdict says, straight between the runs"
)


class AskedMap(msgspec.Struct, frozen=True, kw_only=True):
    """The options of ``nexusbench pays``."""

    spec: Path
    output: Path | None
    quick: bool
    jobs: int | None
    dry_run: bool
    cache: Path
    fresh: bool


def show_map(asked: AskedMap, *, as_json: bool, quiet: bool) -> None:
    """Run (or only plan) the map; exits 1 if a run failed."""
    spec = load_map(asked.spec, quick=asked.quick)
    folder = asked.output or Path("results") / spec.name
    if not asked.dry_run:
        make_folder(folder)
    jobs = asked.jobs or cores()
    if not quiet:
        print(f"{spec.name}: finding capacities", file=sys.stderr, flush=True)
    countdowns: list[Countdown] = []

    def step(what: str) -> None:
        for countdown in countdowns:
            countdown.step(what)

    surveyor = Surveyor(spec, asked.cache, jobs=jobs, fresh=asked.fresh, step=step)
    todo = surveyor.prepare()
    seconds = surveyor.estimated_seconds() / jobs
    kept = len(surveyor.survey.rows)
    plan = f"{counted(todo, 'run')} to make, {kept:,} kept"
    if todo:
        plan += f", about {duration(seconds)} on {counted(jobs, 'core')}"
    if asked.dry_run:
        print(f"{spec.name}: {plan}")
        return
    if not quiet:
        print(f"{spec.name}: {plan}", file=sys.stderr, flush=True)
    countdowns.append(Countdown(spec.name, todo, quiet=quiet))
    survey = surveyor.run()
    countdowns[0].end(counted(todo, "run"))
    faults: list[NexusbenchError] = []
    with beside_results(faults):  # the runs are kept
        write_survey(survey, folder, asked.spec, quick=asked.quick)
        if find_spec("matplotlib") is not None:
            draw(survey, folder)
    _show(survey, folder, as_json=as_json)
    sys.stdout.flush()
    errors = sorted({f"{p.system}: {row.error}" for p, row in survey.rows.items() if row.error})
    for error in errors[:_MOST_ERRORS]:
        print(f"error: {error}", file=sys.stderr)
    end_with(*faults)
    if errors:
        raise SystemExit(NexusbenchError.exit_code)


class _Answer(msgspec.Struct, frozen=True):
    cell: MapCell
    question: str
    mine: DrawsOfSystem
    other: DrawsOfSystem
    found: MapVerdict
    over: OverRange | None  # the ranges; None where it was not run over them

    @property
    def overloaded(self) -> tuple[str, ...]:
        """The sides on which requests arrive faster than they leave."""
        both = (("other", self.other), ("this", self.mine))
        return tuple(name for name, one in both if one.load is not None)


def _answers(survey: Survey) -> Iterator[_Answer]:
    for traffic in survey.spec.traffic:
        for cell in cells_of(survey, traffic):
            for question in QUESTIONS:
                both = sides(survey, cell, question)
                if both is not None:
                    found = judge(*both, "attained", cell.slo)
                    over = over_ranges(survey, cell, question)
                    yield _Answer(cell, question, *both, found, over)


def _show(survey: Survey, folder: Path, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(_document(survey, folder), indent=2))
        return
    console = results_console()
    console.print(Text.assemble(("nexusbench pays", "bold"), "  ", badge(True)))
    answers = list(_answers(survey))
    for line in _load_lines(answers):
        say(console, f"WARNING: {line}", "bold red")
    crowded = any(answer.overloaded for answer in answers)
    ranged = any(answer.over is not None for answer in answers)
    for question in QUESTIONS:
        title = question_title(survey, question).replace("`", "")
        grid = TextGrid(
            title, ("GPU", "traffic", "SLO", "load %", "verdict", "points", "other", "this",
                    *(["overloaded"] * crowded), *(["over the ranges"] * ranged)),
            keys=4, texts=(0, 1, 2, 4, *([8 + crowded] * ranged)),
        )  # fmt: skip
        for answer in answers:
            if answer.question == question:
                cell, found = answer.cell, answer.found
                grid.add(
                    cell.gpu, cell.traffic, cell.slo, f"{cell.load:g}", found.outcome,
                    f"{found.mean:+.1f}", f"{found.other:.1f}", f"{found.mine:.1f}",
                    *([" and ".join(answer.overloaded) or "no"] * crowded),
                    *([_range_cell(answer.over)] * ranged),
                )  # fmt: skip
        grid.show(console)
        if ranged:
            say(console, _range_line([a.over for a in answers if a.question == question]))
    say(console, _LEGEND, "dim")
    if ranged:
        say(console, _RANGE_LEGEND, "dim")
    _say_cut(console, survey.spec)
    console.print(f"table  {folder}", soft_wrap=True)


def _range_cell(over: OverRange | None) -> str:
    return "-" if over is None else range_words(over, lambda points: f"{points:+.1f}")


def _range_line(found: Sequence[OverRange | None]) -> str:
    """How many cells of a comparison hold over the ranges, and what the others do."""
    known = [over for over in found if over is not None]
    number = Counter(over.verdict for over in known)
    names = Counter(name for over in known for name in constants_of(over))
    hanging = ", ".join(f"{name} {count}" for name, count in names.most_common())
    return (
        f"over the ranges: of {counted(len(known), 'cell')} {number['holds']:,} hold, "
        f"{number['hangs']:,} hang on a constant{f' ({hanging})' if hanging else ''}, "
        f"{number['fails']:,} fail, {number['open']:,} are open in use"
    )


def _load_lines(answers: Sequence[_Answer]) -> list[str]:
    """Names the places of the map at which requests arrive faster than they leave."""
    places = {(a.cell.gpu, a.cell.traffic, a.cell.load) for a in answers}
    told: dict[tuple[str, str, float], str] = {}
    for answer in answers:
        cell = answer.cell
        key = (cell.gpu, cell.traffic, cell.load)
        loads = [load for one in (answer.mine, answer.other) if (load := one.load) is not None]
        if loads and key not in told:
            offered, finished = (
                rate_text(rate) for rate in (loads[0].offered_rate, loads[0].finished_rate)
            )
            told[key] = (
                f"{cell.gpu} {cell.traffic} at {cell.load:g} % (offered {offered}, finished "
                f"{finished} req/s while they arrived)"
            )
    if not told:
        return []
    more = f"; and {len(told) - _MOST_TOLD:,} more" if len(told) > _MOST_TOLD else ""
    return [
        f"requests arrive faster than they leave on a side of {len(told):,} of "
        f"{counted(len(places), 'place')} of the map: {'; '.join(list(told.values())[:_MOST_TOLD])}"
        f"{more}. Which requests keep an SLO there says more of the backlog, which grows with the "
        "length of the trace, than of the way of serving"
    ]


def _say_cut(console: Console, spec: MapSpec) -> None:
    if spec.cut:
        say(console, f"--quick: {'; '.join(spec.cut)}", "dim")


def _document(survey: Survey, folder: Path) -> dict[str, object]:
    return {
        "schema": JSON_SCHEMA, "command": "pays", "nexusbench": __version__, "simulated": True,
        "map": survey.spec.name, "cut": list(survey.spec.cut), "output": str(folder),
        "capacity": [
            {"gpu": gpu, "traffic": traffic, "requests_per_s": value}
            for (gpu, traffic), value in survey.capacity.items()
        ],
        "places": msgspec.to_builtins(survey.places),
        "cells": [
            {
                "gpu": cell.gpu, "traffic": cell.traffic, "load": cell.load, "slo": cell.slo,
                "question": answer.question, "overloaded": list(answer.overloaded),
                **_finite(answer.found),
                "over_ranges": None if answer.over is None else _finite(answer.over),
            }
            for answer in _answers(survey)
            for cell in (answer.cell,)
        ],
    }  # fmt: skip


def _finite(found: MapVerdict | OverRange) -> dict[str, object]:
    """A verdict as JSON, in which infinity becomes null."""
    return json.loads(msgspec.json.encode(found))  # type: ignore[no-any-return]
