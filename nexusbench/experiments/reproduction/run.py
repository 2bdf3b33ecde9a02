"""An experiment from its spec to its lines of the table and the series of its plots."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path

import msgspec

from nexusbench.experiments import motivation as motivation_code
from nexusbench.experiments.keys import file_sha256, run_key
from nexusbench.experiments.motivation import Statement, motivation, replay_config
from nexusbench.experiments.over_range import range_words
from nexusbench.experiments.reproduction.lab import PRINTED, Lab, Unmeasurable
from nexusbench.experiments.reproduction.measure_names import THROUGHPUT
from nexusbench.experiments.reproduction.measures import (
    ClaimOutcome,
    number,
    outcome,
    point_name,
    throughput,
)
from nexusbench.experiments.reproduction.ranged import (
    ClaimElsewhere,
    claim_over_ranges,
    is_ranged,
)
from nexusbench.experiments.reproduction.spec import (
    Experiment,
    PaperClaim,
    System,
    Variant,
)
from nexusbench.experiments.reproduction.verdicts import (
    ClaimRow,
    cannot,
    row_of,
    row_of_statement,
    shown,
)
from nexusbench.experiments.store import Store
from nexusbench.experiments.sweep_spec import ConfigFields, config_of
from nexusbench.serving.opening import open_subject

# What is drawn and kept of every cell.
SERIES = (
    "ttft.mean", "ttft.p95", "tbt.mean", "tbt.p95", "normalised_latency.mean",
    "normalised_latency.p95", "ttft_queueing.mean", "e2e.mean", "makespan.value",
    "request_throughput.value", "output_throughput.value", "total_throughput.value",
    "attainment.value", "tpot.mean", "preemptions.value", "regret_mean.value", "broken.value",
)  # fmt: skip
_MOST_ROUNDS = 40  # a search asks for one cell after another; it ends long before


class SystemAtPoint(msgspec.Struct, frozen=True, kw_only=True):
    """One system at one point: the mean over draws of every measure, None where there is none."""

    system: str
    point: ConfigFields
    name: str
    values: dict[str, float | None]
    error: str = ""


class ExperimentReport(msgspec.Struct, frozen=True, kw_only=True):
    """The result of an experiment. ``throughputs``: mean, lowest and highest over draws (req/s)."""

    rows: tuple[ClaimRow, ...]
    lines: tuple[SystemAtPoint, ...] = ()
    throughputs: dict[str, tuple[float, float, float] | str] = {}
    num_cells: int = 0
    digests: tuple[str, ...] = ()
    traces: tuple[str, ...] = ()


def reproduce(lab: Lab, tell: Callable[[int], None] | None = None) -> ExperimentReport:
    """Evaluate until no cell is missing. ``tell`` hears how many are about to run.

    What is missing in one round is run in one go: first all of the grid, then a step of every
    search at a time.
    """
    for _ in range(_MOST_ROUNDS):
        report = _evaluate(lab)
        if not lab.num_wanted:
            break
        if tell is not None:
            tell(lab.num_wanted)
        lab.run()
    else:
        raise AssertionError("a search does not end")
    cells = [cell for cell in lab.cells if cell.ok]
    return msgspec.structs.replace(
        report,
        num_cells=len(lab.cells),
        digests=tuple(sorted(cell.digest for cell in cells)),
        traces=tuple(sorted({Path(cell.config.trace).name for cell in cells})),
    )


def _evaluate(lab: Lab) -> ExperimentReport:
    experiment = lab.experiment
    lines = [
        line
        for system in experiment.systems.values()
        if not system.best_of
        for point in experiment.points
        if (line := _line(lab, system, point)) is not None
    ]
    throughputs: dict[str, tuple[float, float, float] | str] = {}
    for system in experiment.systems.values() if experiment.throughput else ():
        try:
            found = [throughput(lab, system, seed, PRINTED) for seed in experiment.seeds]
        except Unmeasurable as error:
            throughputs[system.name] = str(error)
            continue
        rates = [rate for rate in found if rate is not None]
        if len(rates) == len(found):
            throughputs[system.name] = (sum(rates) / len(rates), min(rates), max(rates))
    rows = [row for claim in experiment.claims if (row := _row(lab, claim)) is not None]
    return ExperimentReport(rows=tuple(rows), lines=tuple(lines), throughputs=throughputs)


def _line(lab: Lab, system: System, point: ConfigFields) -> SystemAtPoint | None:
    cells, error = [], ""
    for seed in lab.experiment.seeds:
        try:
            cells.append(lab.cell(system, point, seed))
        except Unmeasurable as failure:
            error = str(failure)
    found = [cell for cell in cells if cell is not None]
    if len(found) < len(cells):
        return None
    values: dict[str, float | None] = {}
    for measure in SERIES:
        try:
            known = [number(cell, measure, system.name) for cell in found]
        except Unmeasurable:
            known = []
        if known:
            values[measure] = sum(known) / len(known)
    return SystemAtPoint(
        system=system.name, point=point, name=point_name(point), values=values, error=error
    )  # fmt: skip


def _row(lab: Lab, claim: PaperClaim) -> ClaimRow | None:
    """The line of a claim, None while it waits for cells. All that it needs is asked for first."""
    experiment = lab.experiment
    figures = experiment.about.figures
    if claim.cannot:
        return cannot(claim, figures, claim.cannot)
    few = experiment.seeds[: experiment.about.variant_draws]
    try:
        found = outcome(lab, claim, PRINTED, experiment.seeds)
        base = outcome(lab, claim, PRINTED, few)
    except Unmeasurable as error:
        return cannot(claim, figures, str(error))
    readings = _readings(lab, claim, few)
    neutral = {c: _other(lab, claim, Variant(name="", constant=c), few) for c in claim.neutral}
    elsewhere = ClaimElsewhere()
    if is_ranged(claim):
        elsewhere = claim_over_ranges(lab, claim, base, few)
    if found is None or base is None or None in (*readings.values(), *neutral.values()):
        return None
    if elsewhere.missing:
        return None
    without = {c: o for c, o in neutral.items() if isinstance(o, ClaimOutcome)}
    others = {name: o for name, o in readings.items() if o is not None}
    others |= {f"without {c}": o for c, o in neutral.items() if isinstance(o, str)}
    row = row_of(claim, figures, found, base, without, others)
    words = elsewhere.reason
    if elsewhere.over is not None:
        words = range_words(elsewhere.over, lambda value: shown(claim, value))
    return msgspec.structs.replace(row, over=words, over_range=elsewhere.over)


def _readings(
    lab: Lab, claim: PaperClaim, seeds: Sequence[int]
) -> dict[str, ClaimOutcome | str | None]:
    """Of every variant that touches a system of the claim, or the whole experiment."""
    touched = {claim.of, claim.over}
    for name in (claim.of, claim.over):
        system = lab.experiment.systems.get(name)
        touched |= set(system.best_of) if system is not None else set()
    return {
        variant.name: _other(lab, claim, variant, seeds)
        for variant in lab.experiment.variants
        if (not variant.systems or touched & set(variant.systems))
        and (variant.throughput is None or claim.measure == THROUGHPUT)
        and not (variant.all_rates and claim.measure == THROUGHPUT)
    }


def _other(
    lab: Lab, claim: PaperClaim, variant: Variant, seeds: Sequence[int]
) -> ClaimOutcome | str | None:
    try:
        return outcome(lab, claim, variant, seeds)
    except Unmeasurable as error:
        return f"cannot be told ({error})"


def _kept(content: bytes | None) -> list[Statement] | None:
    """Statements that were kept; None if there are none that can be read."""
    try:
        return None if content is None else msgspec.json.decode(content, type=list[Statement])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def statements(experiment: Experiment, cache: Path, *, fresh: bool = False) -> ExperimentReport:
    """Section 3: the lines of ``nexusbench profile paper``, kept like a cell."""
    config = config_of(experiment.base)
    version = file_sha256(Path(motivation_code.__file__))[:8]
    store = Store(cache, f".statements-{version}.json", fresh=fresh)
    key = run_key(config)
    content = store.get(key)
    found = _kept(content)
    if content is None or found is None:
        subject = open_subject(config)
        with closing(subject.device):
            replay = replay_config(subject, Path(config.trace), config.device)
            replay = msgspec.structs.replace(replay, model=config.model)
            if config.limit is not None:
                replay = msgspec.structs.replace(replay, limit=config.limit)
            content = msgspec.json.encode(motivation(subject, replay))
        store.put(key, content)
        found = msgspec.json.decode(content, type=list[Statement])
    figures = experiment.about.figures
    rows = [row_of_statement(statement, figures) for statement in found]
    rows += [cannot(claim, figures, claim.cannot) for claim in experiment.claims if claim.cannot]
    return ExperimentReport(rows=tuple(rows), num_cells=1, traces=(Path(config.trace).name,))
