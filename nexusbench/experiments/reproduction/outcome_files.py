"""What a reproduction leaves: one JSON file for each experiment, and the table made of them."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import msgspec

from nexusbench import __version__
from nexusbench.core.documents import decode_json, read_document
from nexusbench.core.errors import InputError
from nexusbench.core.outputs import make_folder
from nexusbench.experiments.keys import code_version
from nexusbench.experiments.over_range import constants_of
from nexusbench.experiments.reproduction.run import ExperimentReport, SystemAtPoint
from nexusbench.experiments.reproduction.spec import Criterion, Experiment
from nexusbench.experiments.reproduction.verdicts import ClaimRow
from nexusbench.experiments.sweep_spec import ConfigFields, config_of
from nexusbench.results.manifest import made_with
from nexusbench.workloads.source import write_atomic

SCHEMA = 1
COLUMNS = ("figure", "claim", "paper", "ours", "verdict", "why")
RANGED = "over the ranges"  # a further column, where one of the claims was judged over them
_EXTRA = (
    "attainment.value", "makespan.value", "output_throughput.value", "total_throughput.value",
    "regret_mean.value", "broken.value",
)  # fmt: skip
# Of a run at an offered rate they say little more than the rate.
_WITHOUT_RATES = ("makespan.value", "output_throughput.value", "total_throughput.value")
_DRAWN = ("ttft.mean", "ttft.p95", "tbt.mean", "tbt.p95", "normalised_latency.mean")


class Done(msgspec.Struct, frozen=True, kw_only=True):
    """One experiment's file. ``manifest`` says with which versions and inputs it was made;
    ``digest`` is that of the digests of all its event logs.
    """

    experiment: str
    title: str
    figures: tuple[str, ...]
    quick: bool
    cut: tuple[str, ...]
    seeds: tuple[int, ...]
    base: ConfigFields
    device: str
    note: str
    criterion: str
    rows: tuple[ClaimRow, ...]
    lines: tuple[SystemAtPoint, ...]
    throughputs: dict[str, tuple[float, float, float] | str]
    manifest: dict[str, object]
    simulated: bool
    schema: int


def criterion_text(criterion: Criterion | None) -> str:
    """The throughput criterion in a sentence."""
    if criterion is None:
        return ""
    side = "stays below" if criterion.at_least is None else "is at least"
    if criterion.at_least is not None:
        bound = f"{criterion.at_least:g}"
    elif criterion.at_most is not None:
        bound = f"{criterion.at_most:g}"
    else:
        bound = (
            f"{criterion.times:g} times what {criterion.system} needs for requests one by one "
            f"({criterion.rate:g} req/s)"
        )
    queue = ""
    if criterion.backlog < 1:
        share = f"{100 * criterion.backlog:g} %"
        queue = f" and at most {share} of the run comes after the last arrival"
    if criterion.attainment:
        queue += f" and {criterion.attainment:g} % of the requests keep their SLO"
    return (
        f"Throughput: the highest rate at which {criterion.measure} {side} {bound}{queue}, "
        "found to "
        f"{100 * criterion.precision:g} % for each draw. Latencies are compared at the rates of "
        f"the grid that {criterion.steady} keeps."
    )


def finished(experiment: Experiment, report: ExperimentReport, *, quick: bool) -> Done:
    """The file of an experiment that has run."""
    digest = hashlib.sha256("\n".join(report.digests).encode()).hexdigest()
    resolved = {
        "spec_sha256": experiment.sha256, "code_sha256": code_version(),
        "traces": list(report.traces), "cells": report.num_cells, "digest": digest,
    }  # fmt: skip
    return Done(
        experiment=experiment.name, title=experiment.about.title, figures=experiment.about.figures,
        quick=quick, cut=experiment.cut, seeds=experiment.seeds, base=experiment.base,
        device=config_of(experiment.base).device, note=experiment.about.note,
        criterion=criterion_text(experiment.throughput), rows=report.rows, lines=report.lines,
        throughputs=report.throughputs, manifest={**made_with(), "resolved": resolved},
        simulated=True, schema=SCHEMA,
    )  # fmt: skip


def write_done(folder: Path, done: Done) -> Path:
    """Write ``<experiment>.json``, whole or not at all. Raises UsageError if it cannot be."""
    make_folder(folder)
    path = folder / f"{done.experiment}.json"
    write_atomic(path, msgspec.json.format(msgspec.json.encode(done), indent=1) + b"\n")
    return path


def read_done(folder: Path) -> list[Done]:
    """All experiments of a folder, in order. Raises InputError for a file of another version."""
    found = []
    for path in sorted(folder.glob("*.json"), key=order):
        what = f"a result of nexusbench reproduce {__version__}"
        hint = "Remove it, or reproduce again"
        done = decode_json(read_document(path), Done, path, what=what, hint=hint)
        if done.schema != SCHEMA:
            problem = f"not {what}: {done.schema}"
            raise InputError(problem, file=path, field="schema", hint=hint)
        found.append(done)
    return found


def order(path: Path) -> tuple[int, str]:
    """Figures in their order, what is no figure of the paper last."""
    digits = "".join(c for c in path.stem.partition("-")[0] if c.isdigit())
    return (int(digits) if digits else 10**6, path.stem)


def markdown(done: Sequence[Done]) -> str:
    """The document's part that is made: the table, then what each experiment found."""
    ranged = any(row.over for one in done for row in one.rows)
    columns = (*COLUMNS[:-1], RANGED, COLUMNS[-1]) if ranged else COLUMNS
    pieces = [_counts(done), _table(columns, [row for d in done for row in _cells(d, ranged)])]
    pieces += [_section(one) for one in done if one.lines]
    return "\n\n".join(pieces) + "\n"


def _counts(done: Sequence[Done]) -> str:
    tally: dict[str, int] = {}
    for one in done:
        for row in one.rows:
            kind = row.verdict if "constant" not in row.verdict else "follows from a constant"
            tally[kind] = tally.get(kind, 0) + 1
    total = sum(tally.values())
    counted = ", ".join(f"{kind} {count}" for kind, count in sorted(tally.items()))
    devices = ", ".join(sorted({one.device for one in done}))
    quick = [one.experiment for one in done if one.quick]
    which = "" if len(quick) == len(done) else f": {', '.join(quick)}"
    cut = f" Made with --quick{which}." if quick else ""
    text = f"**All of it simulated** ({devices}). {total} claims: {counted}."
    return f"{text}{_over_ranges(done)}{cut}"


def _over_ranges(done: Sequence[Done]) -> str:
    """How many claims do over the ranges as they do in use."""
    found = [row.over_range for one in done for row in one.rows if row.over_range is not None]
    if not found:
        return ""
    tally = Counter(over.verdict for over in found)
    names = Counter(name for over in found for name in constants_of(over))
    hanging = ", ".join(f"{name} {count}" for name, count in names.most_common())
    return (
        f" Over the ranges of the contested constants, of {len(found)} claims {tally['holds']} "
        f"hold, {tally['hangs']} hang on one{f' ({hanging})' if hanging else ''}, "
        f"{tally['fails']} fail."
    )


def _cells(done: Done, ranged: bool) -> list[tuple[str, ...]]:
    return [
        (
            ", ".join(row.figures), row.claim, row.paper, row.ours, row.verdict,
            *([row.over or "-"] * ranged), row.why,
        )
        for row in done.rows
    ]  # fmt: skip


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |"

    return "\n".join([line(head), "|" + "---|" * len(head), *map(line, rows)])


def _section(done: Done) -> str:
    """One experiment's figures: throughput of every system, and latencies point by point."""
    seeds = f"{len(done.seeds)} draw{'s' if len(done.seeds) > 1 else ''} of the arrivals"
    text = f"### {done.title} ({done.device}, simulated)\n\n{seeds}."
    text += f" {done.criterion}" if done.criterion else ""
    text += f" {done.note}" if done.note else ""
    text += f" Cut for --quick: {'; '.join(done.cut)}." if done.quick and done.cut else ""
    pieces = [text]
    if done.throughputs:
        rows = [(name, _rate(found)) for name, found in done.throughputs.items()]
        pieces.append(_table(("system", "throughput, req/s (over draws)"), rows))
    shown = [m for m in _DRAWN if any(line.values.get(m) is not None for line in done.lines)]
    extra = [
        m for m in _EXTRA
        if any(line.values.get(m) is not None for line in done.lines)
        and (m not in _WITHOUT_RATES or not done.throughputs)
    ]  # fmt: skip
    head = ("system", "at", *(m.removesuffix(".value") for m in (*shown, *extra)))
    rows_of_lines = [_line(line, (*shown, *extra)) for line in done.lines]
    pieces.append(_table(head, rows_of_lines))
    return "\n\n".join(pieces)


def _line(line: SystemAtPoint, measures: Sequence[str]) -> tuple[str, ...]:
    if line.error:
        return (line.system, line.name, line.error, *[""] * (len(measures) - 1))
    values = [line.values.get(measure) for measure in measures]
    return (line.system, line.name, *("-" if v is None else f"{v:,.4g}" for v in values))


def _rate(found: tuple[float, float, float] | str) -> str:
    if isinstance(found, str):
        return found
    mean, low, high = found
    return f"{mean:.2f}" if low == high else f"{mean:.2f} ({low:.2f} to {high:.2f})"
