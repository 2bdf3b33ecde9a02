"""The gate's operating figures on real timing noise: ``python -m tests.benchmarks.gate [RUNS]``.

A pool of RUNS (400) short simulations is timed once on this machine: real time per scheduling
decision, wall and CPU time per engine step. Then 1,000 comparisons are drawn from the pool without
replacement: nothing changed, everything 3 % or 10 % slower, only the slowest 2 % of the decisions
30 % slower. "Apart in time" takes runs that follow each other for each side, so that a drift of the
machine meets one side only; below it the baseline's runs are from all times (--append). Every
comparison is one call of ``nexusbench.gates.check.check``, the function behind ``gate check``.

Exits with 1 unless the 95 % upper bound on false alarms is at most 2 % with all rules and with each
alone, and 10 % is found at least 90 % of the time by five runs against five with a rerun.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from nexusbench.gates.check import Report, check
from nexusbench.gates.rules import Measure, Rule, parse_rules
from nexusbench.gates.series import Run, RunSeries, Samples
from nexusbench.gates.statistics import clopper_pearson_lower, clopper_pearson_upper
from nexusbench.results.machine import machine_facts
from tests.benchmarks.engine import build, made_up

COMPARISONS, SIZE, LARGE = 1_000, 5, 10
MOST_FALSE, LEAST_FOUND = 0.02, 0.90
RULES = ("decision.p50:5%", "decision.mean:5%", "decision.p99:10%", "step_cpu:5%", "step_wall:5%")
TAIL_FROM, TAIL_FACTOR = 98, 1.3


class Timed(NamedTuple):
    """One run, microseconds: every decision, then CPU and wall time per engine step."""

    decisions: np.ndarray
    cpu: float
    wall: float


Pool = list[Timed]
Change = Callable[[Timed], Timed]


def collect(count: int) -> Pool:
    """Time ``count`` runs, after a few that warm up."""
    pool: Pool = []
    for _ in range(count + 5):
        engine = build("nexus", made_up(200, 16, output=30, prompt=400))
        began, began_cpu = time.perf_counter_ns(), time.process_time_ns()
        engine.run()
        wall, cpu = time.perf_counter_ns() - began, time.process_time_ns() - began_cpu
        steps = 1e3 * engine.num_steps
        pool.append(Timed(np.asarray(engine.decision_ns) / 1e3, cpu / steps, wall / steps))
    return pool[5:]


def slower(share: float) -> Change:
    """Everything takes this share longer."""
    factor = 1 + share
    return lambda run: Timed(run.decisions * factor, run.cpu * factor, run.wall * factor)


def slower_tail(run: Timed) -> Timed:
    """Only decisions above the run's own 98th percentile take 30 % longer."""
    tail = run.decisions > np.percentile(run.decisions, TAIL_FROM)
    added = np.where(tail, run.decisions * (TAIL_FACTOR - 1), 0.0)
    per_step = float(added.mean())  # there is about one decision a step
    return Timed(run.decisions + added, run.cpu + per_step, run.wall + per_step)


def values(pool: Pool, change: Change) -> dict[str, list[float]]:
    """Metric -> its value in every run of the pool."""
    found: dict[str, list[float]] = {name.partition(":")[0]: [] for name in RULES}
    for run in map(change, pool):
        middle, tail = np.percentile(run.decisions, (50, 99))
        row = (middle, run.decisions.mean(), tail, run.cpu, run.wall)
        for name, value in zip(found, row, strict=True):
            found[name].append(float(value))
    return found


def series(table: dict[str, list[float]], chosen: Sequence[int]) -> dict[str, RunSeries]:
    """Some runs of the pool as what the gate compares."""
    metrics = {
        name: Samples(unit="us", better="lower", exact=False, values=[column[i] for i in chosen])
        for name, column in table.items()
    }
    runs = [Run(number) for number in range(len(chosen))]
    return {"pool": RunSeries(environment={}, machine={}, runs=runs, metrics=metrics)}


def draws(total: int, first: int, how: str) -> list[tuple[list[int], list[int], list[int]]]:
    """Baseline (``first`` runs), now and rerun of each comparison. ``mixed``: runs from anywhere;
    ``apart``: each of the three in a row; ``spread``: only the baseline's are from anywhere.
    """
    rng = np.random.default_rng(0)
    found = []
    for _ in range(COMPARISONS):
        blocks = (rng.permutation(total // LARGE) * LARGE).tolist()
        drawn = rng.permutation(total).tolist()
        now, again = ([start + i for i in range(SIZE)] for start in blocks[:2])
        if how == "mixed":
            ends = (first, first + SIZE, first + 2 * SIZE)
            before, now, again = (
                drawn[: ends[0]],
                drawn[ends[0] : ends[1]],
                drawn[ends[1] : ends[2]],
            )
        elif how == "apart":
            before = [blocks[2] + i for i in range(first)]
        else:
            before = blocks[2 : 2 + first]
        found.append((before, now, again))
    return found


class Procedure(NamedTuple):
    """A way of using the gate."""

    rules: Sequence[Rule]
    baseline: int
    confirm: bool


def compare(pool: Pool, change: Change, how: Procedure, drawn: str) -> list[Report]:
    """The reports of all comparisons."""
    before, after = values(pool, slower(0.0)), values(pool, change)
    reports = []
    for first, second, third in draws(len(pool), how.baseline, drawn):
        fresh = series(after, third)
        again = (lambda names, fresh=fresh: fresh) if how.confirm else None
        reports.append(check(series(before, first), series(after, second), how.rules, rerun=again))
    return reports


SITUATIONS: tuple[tuple[str, Change, str], ...] = (
    ("nothing changed", slower(0.0), "mixed"),
    ("nothing, apart in time", slower(0.0), "apart"),
    ("  baseline from all times", slower(0.0), "spread"),
    ("+3 %", slower(0.03), "mixed"),
    ("+10 %", slower(0.10), "mixed"),
    ("tail +30 %", slower_tail, "mixed"),
)


def figures(pool: Pool, how: Procedure) -> tuple[float, float]:
    """A row per situation; the upper bound on false alarms, and the share of +10 % that is
    found.
    """
    bound = found = 0.0
    for title, change, drawn in SITUATIONS:
        reports = compare(pool, change, how, drawn)
        verdicts = [{finding.verdict for finding in report.findings} for report in reports]
        failed = sum("fail" in seen for seen in verdicts)
        warned = sum(bool(seen & {"fail", "warn"}) for seen in verdicts)
        unsure = sum("inconclusive" in seen for seen in verdicts)
        low = clopper_pearson_lower(failed, COMPARISONS)
        high = clopper_pearson_upper(failed, COMPARISONS)
        print(
            f"  {title:26s} fail {failed / 10:5.1f} % [{100 * low:5.2f}, {100 * high:6.2f}]  "
            f"fail or warn {warned / 10:5.1f} %  inconclusive {unsure / 10:5.1f} %",
            flush=True,
        )
        if title == "nothing changed":
            bound = high
        if title == "+10 %":
            found = failed / COMPARISONS
    return bound, found


def describe(pool: Pool) -> None:
    """The machine, and how noisy it is."""
    facts = machine_facts()
    load = os.getloadavg()[0]
    print(f"{facts['cpu']}, {facts['cores']} cores, {facts['python']}; load {load:.1f}")
    print(f"pool: {len(pool)} runs of {len(pool[0].decisions)} decisions; noise of each metric:")
    for name, column in values(pool, slower(0.0)).items():
        noise = np.asarray(column)
        lag = np.corrcoef(noise[1:], noise[:-1])[0, 1]
        print(
            f"  {name:14s} median {np.median(noise):7.2f} us, standard deviation "
            f"{100 * noise.std() / noise.mean():6.2f} %, correlation of neighbours {lag:+.2f}"
        )


def main() -> int:
    """All figures; 1 if a bound is broken."""
    pool = collect(int(sys.argv[1]) if len(sys.argv) > 1 else 400)
    describe(pool)
    measures = {name.partition(":")[0]: Measure("us", "lower", False) for name in RULES}
    rules = parse_rules(RULES, measures)
    print(f"{COMPARISONS:,} comparisons each; in brackets one-sided 95 % bounds (Clopper-Pearson)")
    print(f"all {len(rules)} rules, 5 against 5 runs, with a rerun (--confirm)")
    bound, found = figures(pool, Procedure(rules, SIZE, True))
    bounds = {"all": bound}
    print(f"all {len(rules)} rules, 10 runs in the baseline against 5, without a rerun")
    bounds["all, no rerun"], _ = figures(pool, Procedure(rules, LARGE, False))
    for rule in rules:
        print(f"{rule.text} alone, 5 against 5 runs, with a rerun")
        bounds[rule.text], _ = figures(pool, Procedure([rule], SIZE, True))
    broken = [name for name, bound in bounds.items() if bound > MOST_FALSE]
    broken += ["+10 % found"] if found < LEAST_FOUND else []
    print(f"BROKEN: {', '.join(broken)}" if broken else "all bounds hold")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
