"""What ``nexusbench reproduce`` does and shows."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import msgspec
from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from nexusbench import __version__
from nexusbench.cli._console import counted, results_console, say
from nexusbench.cli._countdown import Countdown
from nexusbench.cli._screen import badge
from nexusbench.cli._session import JSON_SCHEMA
from nexusbench.cli.outlet import beside_results, end_with
from nexusbench.core.documents import MOST_TOML, read_document
from nexusbench.core.errors import InputError, NexusbenchError, UsageError
from nexusbench.core.outputs import make_folder
from nexusbench.core.registry import did_you_mean
from nexusbench.experiments.pool import cores
from nexusbench.experiments.reproduction.lab import Lab
from nexusbench.experiments.reproduction.outcome_files import (
    Done,
    finished,
    order,
    write_done,
)
from nexusbench.experiments.reproduction.run import ExperimentReport, reproduce, statements
from nexusbench.experiments.reproduction.spec import Experiment, find_experiments


class AskedPaper(msgspec.Struct, frozen=True, kw_only=True):
    """The options of ``nexusbench reproduce``."""

    paper: str
    only: tuple[str, ...]
    quick: bool
    specs: Path
    output: Path | None
    jobs: int | None
    cache: Path
    fresh: bool


def show_reproduction(asked: AskedPaper, *, as_json: bool, quiet: bool) -> None:
    """Run the named experiments one after another and print the table of their claims."""
    experiments = chosen(find_experiments(_folder(asked), quick=asked.quick), asked.only)
    jobs = asked.jobs or cores()
    name = f"{asked.paper}-paper" + ("-quick" if asked.quick else "")
    output = asked.output or Path("results") / name
    make_folder(output)
    done, faults = [], list[NexusbenchError]()
    for experiment in experiments:
        report = _run(experiment, asked, jobs, quiet=quiet)
        result = finished(experiment, report, quick=asked.quick)
        with beside_results(faults):  # the cells are kept, and the other experiments still run
            write_done(output, result)
            _draw(result, output)
        done.append(result)
    if as_json:
        document = {
            "schema": JSON_SCHEMA, "command": "reproduce", "nexusbench": __version__,
            "simulated": True, "paper": asked.paper, "quick": asked.quick, "output": str(output),
            "experiments": msgspec.to_builtins(done),
        }  # fmt: skip
        print(json.dumps(document, indent=2, allow_nan=False))
    else:
        _show(results_console(), asked, done, output)
    end_with(*faults)


def _folder(asked: AskedPaper) -> Path:
    """The folder of the paper's experiments. Raises UsageError for an unknown paper."""
    folder = asked.specs / asked.paper
    specs = {path: path.parent for path in asked.specs.glob("*/*.toml")}
    papers = {parent for path, parent in specs.items() if _has_experiment(path)}
    # A folder without any spec is reported below; one with other specs is not a paper's.
    if folder.is_dir() and (folder in papers or folder not in specs.values()):
        return folder
    known = sorted(paper.name for paper in papers)
    if not known and folder.is_dir():
        raise UsageError(f"{folder}: none of its specs has an [experiment] table")
    if not known:
        raise UsageError(
            f"no experiments under {asked.specs}. Run in a checkout of nexusbench, or give --specs"
        )
    hint = did_you_mean(asked.paper, known)
    raise UsageError(f"no experiments of a paper called '{asked.paper}'. {hint}")


def _has_experiment(path: Path) -> bool:
    """Whether the spec has that table; a map of ``nexusbench pays`` has none. The text is searched,
    since a spec that does not parse still belongs to its paper.
    """
    try:
        return b"[experiment]" in read_document(path, most=MOST_TOML)
    except InputError:
        return True  # the error is reported when the spec is read


def chosen(experiments: Sequence[Experiment], only: Sequence[str]) -> list[Experiment]:
    """The experiments with the given names or figures, in the paper's order.

    Raises UsageError for a name that is neither.
    """
    ordered = sorted(experiments, key=lambda experiment: order(Path(experiment.name)))
    wanted = [name.strip() for value in only for name in value.split(",") if name.strip()]
    if only and not wanted:
        raise UsageError("--only names nothing. Give figures, as in --only fig9,fig13")
    known = list(
        dict.fromkeys(n for e in ordered for n in (*e.about.figures, e.name))
    )  # fmt: skip
    for name in wanted:
        if name not in known:
            raise UsageError(f"--only: no figure '{name}'. {did_you_mean(name, known)}")
    return [e for e in ordered if not wanted or {*e.about.figures, e.name} & set(wanted)]


def _run(experiment: Experiment, asked: AskedPaper, jobs: int, *, quiet: bool) -> ExperimentReport:
    if experiment.about.rows == "motivation":
        if not quiet:
            print(f"{experiment.name}: section 3", file=sys.stderr, flush=True)
        return statements(experiment, asked.cache, fresh=asked.fresh)
    rounds: list[Countdown] = []

    def begin(count: int) -> None:
        rounds.append(Countdown(experiment.name, count, quiet=quiet))
        if not quiet:
            line = f"{experiment.name}: round {len(rounds)}, {counted(count, 'cell')}"
            print(f"{line} to look up or run", file=sys.stderr, flush=True)

    lab = Lab(
        experiment, asked.cache, jobs=jobs, fresh=asked.fresh,
        step=lambda what: rounds[-1].step(what),
    )  # fmt: skip
    report = reproduce(lab, begin)
    if not quiet:
        print(f"{experiment.name}: {report.num_cells:,} cells, {lab.ran:,} of them run now",
              file=sys.stderr, flush=True)  # fmt: skip
    return report


def _draw(done: Done, folder: Path) -> None:
    """Draw the pictures if matplotlib is installed."""
    if find_spec("matplotlib") is None:
        return
    from nexusbench.experiments.reproduction.plots import draw

    draw(done, folder)


def _show(console: Console, asked: AskedPaper, done: Sequence[Done], output: Path) -> None:
    title = Text.assemble((f"nexusbench reproduce {asked.paper}", "bold"), "  ", badge(True))
    console.print(title)
    for one in done:
        console.print()
        say(console, f"{one.title} ({one.device}, simulated)", "bold")
        if one.criterion:
            say(console, one.criterion, "dim")
        if one.note:
            say(console, one.note, "dim")
        if asked.quick and one.cut:
            say(console, f"cut for --quick: {'; '.join(one.cut)}", "dim")
        for row in one.rows:
            line = Text.assemble(
                (row.claim, "bold"), f": {row.paper}, ours {row.ours}: ", (row.verdict, "bold")
            )
            console.print(line)
            if row.over:
                text = f"over the ranges of the contested constants: {row.over}"
                console.print(Padding(Text(text), (0, 0, 0, 4)))
            console.print(Padding(Text(row.why, style="dim"), (0, 0, 0, 4)))
    if find_spec("matplotlib") is None:
        say(console, "no pictures: pip install 'nexusbench[plots]'", "dim")
    console.print(f"results  {output}", soft_wrap=True)
