"""What ``nexusbench sweep`` does and shows."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from nexusbench import __version__
from nexusbench.cli._console import counted, results_console, say
from nexusbench.cli._countdown import Countdown, duration
from nexusbench.cli._grid import TextGrid
from nexusbench.cli._screen import badge
from nexusbench.cli._session import JSON_SCHEMA
from nexusbench.comparison.load import load_of, rate_text, worst_load
from nexusbench.comparison.rows import decimals
from nexusbench.core.errors import InputError, NexusbenchError
from nexusbench.core.outputs import check_replaceable, make_folder
from nexusbench.core.printable import one_line
from nexusbench.experiments.cells import CELL_SUFFIX, SweepCell
from nexusbench.experiments.pool import cores
from nexusbench.experiments.store import Store
from nexusbench.experiments.sweep import SweepPlan, estimated_seconds, plan_sweep, run_sweep
from nexusbench.experiments.sweep_spec import load_sweep
from nexusbench.experiments.sweep_table import sweep_table, write_sweep
from nexusbench.serving.opening import check_run, decisive

if TYPE_CHECKING:
    from rich.console import Console

# Title, tag and statistic of the table on the screen; the file holds all metrics.
_SHOWN = (
    ("TTFT mean, ms", "ttft", "mean"),
    ("TTFT p99, ms", "ttft", "p99"),
    ("TBT p99, ms", "tbt", "p99"),
    ("e2e mean, ms", "e2e", "mean"),
    ("output tok/s", "output_throughput", "value"),
    ("goodput, req/s", "goodput", "value"),
    ("attained, %", "attainment", "value"),
)
# Shown if some request did not finish.
_FINISHED = ("finished, %", "finished", "value")
_MOST_ROWS = 60
_MOST_ERRORS = 10
_MOST_TOLD = 6  # rows in a warning
_ALL = 100.0


class SweepPlace(msgspec.Struct, frozen=True, kw_only=True):
    """Where cells are kept, where they run, and where the table is written."""

    cache: Path
    output: Path | None = None
    jobs: int | None = None
    ray: str | None = None
    fresh: bool = False


def show_sweep(spec: Path, place: SweepPlace, *, dry_run: bool, as_json: bool, quiet: bool) -> None:
    """Run (or only plan) the sweep of ``spec``; exits 1 if a cell failed."""
    sweep = load_sweep(spec)
    store = Store(place.cache, CELL_SUFFIX, fresh=place.fresh)
    plan = plan_sweep(sweep, store)
    _check(plan)
    jobs = place.jobs or cores()
    if jobs > 1 and not plan.simulated and place.ray is None:
        print("a real device takes one run at a time: --jobs 1", file=sys.stderr)
        jobs = 1
    if dry_run:
        _show_plan(plan, jobs, as_json=as_json)
        return
    output = place.output or Path("results") / f"{sweep.name}.parquet"
    check_replaceable(output)
    make_folder(output.parent)
    cells = _run(plan, store, place, jobs, quiet=quiet)
    fault = ""
    try:
        write_sweep(sweep_table(sweep, plan.keys, cells), output)
    except NexusbenchError as error:
        fault = str(error)  # reported at the end, after the results
    bad = {index: cell for index, cell in sorted(cells.items()) if not cell.ok}
    if as_json:
        document = _document(plan, cells, None if fault else output)
        print(json.dumps(document, indent=2, allow_nan=False))
    else:
        _show(plan, cells, None if fault else output)
    sys.stdout.flush()
    for index, cell in list(bad.items())[:_MOST_ERRORS]:
        print(f"error: cell {index} ({_name(plan, index)}): {cell.error}", file=sys.stderr)
    if len(bad) > _MOST_ERRORS:
        more = len(bad) - _MOST_ERRORS
        print(f"error: {counted(more, 'more cell')} failed; see {output}", file=sys.stderr)
    if fault:
        print(f"error: {fault}", file=sys.stderr)
    if bad or fault:
        raise SystemExit(NexusbenchError.exit_code)


def _run(
    plan: SweepPlan, store: Store, place: SweepPlace, jobs: int, *, quiet: bool
) -> dict[int, SweepCell]:
    cells = dict(plan.kept)
    todo = plan.todo
    where = f"Ray at {place.ray}" if place.ray else counted(min(jobs, max(1, len(todo))), "core")
    if not quiet:
        kept = f"{len(plan.kept):,} kept, " if plan.kept else ""
        line = f"{plan.sweep.name}: {counted(len(plan.keys), 'cell')}, {kept}{len(todo):,} to run"
        print(f"{line} on {where}", file=sys.stderr, flush=True)
    if not todo:
        return cells
    countdown = Countdown(plan.sweep.name, len(todo), quiet=quiet)
    for index, cell in run_sweep(plan, store, jobs=jobs, ray=place.ray):
        cells[index] = cell
        countdown.step(_name(plan, index) + ("" if cell.ok else " FAILED"))
    countdown.end(counted(len(todo), "cell"))
    return cells


def _check(plan: SweepPlan) -> None:
    """Refuse a profile, kernel table or cost model that a cell cannot use before other cells have
    run for hours. Valid inputs that do not fit together fail in that cell only.
    """
    checked: set[bytes] = set()
    for index in plan.todo:
        config = plan.sweep.configs[index]
        if (alike := decisive(config)) in checked:
            continue
        checked.add(alike)
        try:
            check_run(config)
        except InputError as error:
            raise InputError(
                f"cell {index} ({_name(plan, index)}) cannot run: {error}. To run the others, "
                "leave it out with [[exclude]]"
            ) from None
        except Exception:  # a plug-in may raise anything
            continue


def _name(plan: SweepPlan, index: int) -> str:
    """The values of a cell's axes as text."""
    config = plan.sweep.configs[index]
    return " ".join(f"{axis}={_text(getattr(config, axis))}" for axis in plan.sweep.axes) or "only"


def _text(value: object) -> str:
    if isinstance(value, dict):
        return ",".join(f"{key}:{bound:g}" for key, bound in value.items()) or "-"
    if isinstance(value, float):
        return f"{value:g}"
    return "-" if value is None else one_line(value)


def _show_plan(plan: SweepPlan, jobs: int, *, as_json: bool) -> None:
    todo = plan.todo
    alone = estimated_seconds(plan, todo)
    seconds = None if alone is None else alone / min(jobs, max(1, len(todo)))
    if as_json:
        document = {
            "schema": JSON_SCHEMA,
            "command": "sweep",
            "nexusbench": __version__,
            "dry_run": True,
            "cells": [
                {"cell": index, "key": key, "kept": index in plan.kept, "name": _name(plan, index)}
                for index, key in enumerate(plan.keys)
            ],
            "to_run": len(todo),
            "estimated_seconds": seconds,
        }
        print(json.dumps(document, indent=2))
        return
    console = results_console()
    for index in range(len(plan.keys)):
        mark = "kept" if index in plan.kept else "run "
        console.print(f"{mark}  {index:>4}  {_name(plan, index)}", soft_wrap=True)
    for line in _left_out(plan):
        say(console, line, "dim")
    known = "" if not todo else ", no estimate: nothing like them was run yet"
    if seconds is not None and todo:
        known = f", about {duration(seconds)} on {counted(jobs, 'core')}, from what like cells took"
    say(console, f"{counted(len(plan.keys), 'cell')}: {len(plan.kept):,} kept, {len(todo):,} to "
        f"run{known}", "bold")  # fmt: skip


def _left_out(plan: SweepPlan) -> list[str]:
    lines = []
    if plan.sweep.excluded:
        lines.append(f"left out by [[exclude]]: {plan.sweep.excluded:,}")
    if plan.sweep.repeated:
        lines.append(f"the same as another one, and run once: {plan.sweep.repeated:,}")
    return lines


def _show(plan: SweepPlan, cells: Mapping[int, SweepCell], output: Path | None) -> None:
    from rich.text import Text

    console = results_console()
    simulated = [cell.simulated for cell in cells.values() if cell.ok]
    title = Text.assemble(("nexusbench sweep", "bold"), "  ", badge(all(simulated)))
    console.print(title)
    failures = sum(not cell.ok for cell in cells.values())
    bad = f", {failures:,} FAILED" if failures else ""
    say(console, f"{plan.sweep.name}: {counted(len(cells), 'cell')}{bad}")
    for line in _left_out(plan):
        say(console, line, "dim")
    _show_table(console, plan, cells)
    if output is not None:
        console.print(f"table  {output}", soft_wrap=True)


def _show_table(console: Console, plan: SweepPlan, cells: Mapping[int, SweepCell]) -> None:
    """One row per combination; figures are means over its seeds."""
    axes = [axis for axis in plan.sweep.axes if axis != "seed"] or ["scheduler"]
    groups: dict[tuple[str, ...], list[SweepCell]] = {}
    for index in sorted(cells):
        config = plan.sweep.configs[index]
        named = tuple(_text(getattr(config, axis)) for axis in axes)
        groups.setdefault(named, []).append(cells[index])
    _say_load(console, groups)
    means = {
        column: [_mean(members, *column[1:]) for members in groups.values()] for column in _SHOWN
    }
    finished = [_finished(members) for members in groups.values()]
    if any(share is not None and share < _ALL for share in finished):
        means = {_FINISHED: finished, **means}
    shown = {
        column: values
        for column, values in means.items()
        if any(value is not None for value in values)
    }
    crowded = {named: _crowded(members) for named, members in groups.items()}
    marked = any(mark != "no" for mark in crowded.values())
    titles = (*axes, "runs", *(["overloaded"] * marked), *(title for title, *_ in shown))
    grid = TextGrid("", titles, keys=len(axes), texts=range(len(axes)))
    places = [decimals([value for value in found if value is not None]) for found in shown.values()]
    for row, (named, members) in enumerate(list(groups.items())[:_MOST_ROWS]):
        good = sum(cell.ok for cell in members)
        count = f"{good}" if good == len(members) else f"{good} of {len(members)}"
        values = [found[row] for found in shown.values()]
        numbers = [
            "-" if value is None else f"{value:,.{digits}f}"
            for value, digits in zip(values, places, strict=True)
        ]
        grid.add(*named, count, *([crowded[named]] * marked), *numbers)
    grid.show(console)
    if len(groups) > _MOST_ROWS:
        say(console, f"{len(groups) - _MOST_ROWS:,} more rows are in the table", "dim")
    if "seed" in plan.sweep.axes:
        say(console, "each row is the mean over its seeds", "dim")


def _finished(cells: Sequence[SweepCell]) -> float | None:
    """Percent of the offered requests that finished; latencies cover only these."""
    offered, finished = (_mean(cells, tag, "value") for tag in ("offered", "finished"))
    return None if finished is None or not offered else _ALL * finished / offered


def _crowded(cells: Sequence[SweepCell]) -> str:
    """Marks a row in which requests arrive faster than they leave."""
    good = [load_of(cell.summary) for cell in cells if cell.ok]
    bad = sum(bool(load.overloaded) for load in good)
    return "no" if not bad else "yes" if bad == len(good) else f"{bad} of {len(good)}"


def _say_load(console: Console, groups: Mapping[tuple[str, ...], Sequence[SweepCell]]) -> None:
    """A warning that names overloaded rows, whose latency measures the backlog."""
    told = []
    for named, members in groups.items():
        bad = worst_load(load_of(cell.summary) for cell in members if cell.ok)
        if bad is not None:
            offered, finished = rate_text(bad.offered_rate), rate_text(bad.finished_rate)
            rates = f"offered {offered}, finished {finished}"
            rates = "all at once" if bad.offered_rate is None else rates
            told.append(f"{' '.join(named)} ({rates})")
    if told:
        more = f" and {len(told) - _MOST_TOLD:,} more rows" if len(told) > _MOST_TOLD else ""
        rows = "; ".join(told[:_MOST_TOLD])
        say(console, f"WARNING: requests arrive faster than they leave in {len(told):,} of "
            f"{len(groups):,} rows, whose latency measures the backlog more than the way of "
            f"serving. Req/s while they arrived: {rows}{more}", "bold red")  # fmt: skip


def _mean(cells: Sequence[SweepCell], tag: str, statistic: str) -> float | None:
    found = [cell.value(tag, statistic) for cell in cells]
    values = [value for value in found if value is not None]
    return sum(values) / len(values) if values else None


def _document(
    plan: SweepPlan, cells: Mapping[int, SweepCell], output: Path | None
) -> dict[str, object]:
    return {
        "schema": JSON_SCHEMA,
        "command": "sweep",
        "nexusbench": __version__,
        "simulated": all(cell.simulated for cell in cells.values() if cell.ok),
        "sweep": plan.sweep.name,
        "axes": list(plan.sweep.axes),
        "output": None if output is None else str(output),
        "overloaded": [
            index for index in sorted(cells) if load_of(cells[index].summary).overloaded
        ],
        "cells": [
            {
                "cell": index,
                "key": plan.keys[index],
                "status": cells[index].status,
                "error": cells[index].error,
                "digest": cells[index].digest,
                "axes": {a: getattr(cells[index].config, a) for a in plan.sweep.axes},
                "load": msgspec.to_builtins(load_of(cells[index].summary)),
                "metrics": {
                    f"{tag}.{statistic}": _mean([cells[index]], tag, statistic)
                    for _, tag, statistic in _SHOWN
                },
            }
            for index in sorted(cells)
        ],
    }
