"""The runs behind ``nexusbench regret`` and their table."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import msgspec

from nexusbench.cli._console import results_console, say
from nexusbench.cli._grid import TextGrid
from nexusbench.cli._jobs import check_policies, split_policies
from nexusbench.cli._live import follow
from nexusbench.cli._screen import badge
from nexusbench.cli._session import JSON_SCHEMA, view_of_result
from nexusbench.comparison.heading import header_lines, notes_on
from nexusbench.comparison.load import Load, lines_about, load_of
from nexusbench.comparison.view import RunView
from nexusbench.core.config import RunConfig
from nexusbench.core.errors import Interrupted, NexusbenchError, UsageError
from nexusbench.core.state import Limits
from nexusbench.experiments.regret import Regret, check_beliefs, judged_run
from nexusbench.partitioners.base import partitioners
from nexusbench.profiles.profile import load_profile
from nexusbench.results.resolved import BeliefFacts
from nexusbench.serving.belief import ANALYTIC

_INDENT = 10
_SCHEDULER = "nexus"
_PARTITIONERS = ("nexus", "fixed")
_COLUMNS = (
    ("regret\nmean %", "regret_mean", "{:.1f}"),
    ("\np95 %", "regret_p95", "{:.1f}"),
    ("broken\n%", "broken", "{:.0f}"),
    ("\nby %", "excess_mean", "{:.0f}"),
    ("MAPE\nalone %", "mape_alone", "{:.1f}"),
    ("\nco-run %", "mape_corunning", "{:.1f}"),
    ("TTFT\nmean ms", "ttft_mean", "{:,.0f}"),
    ("\np95 ms", "ttft_p95", "{:,.0f}"),
    ("TBT\nmean ms", "tbt_mean", "{:,.1f}"),
    ("\np99 ms", "tbt_p99", "{:,.1f}"),
    ("output\ntok/s", "output_throughput", "{:,.0f}"),
    ("re-par-\ntitions", "repartitions", "{:,.0f}"),
)
_LEGEND = (
    "regret: how much longer the policy's target stage takes than under the best legal split that "
    "keeps the other stage within its slack, judged by the device's true times; broken: decisions "
    "in which the other stage is beyond its slack in truth though some split would keep it, and by "
    "how much on average. Objective and slacks are nexus's. The oracle row asks the truth and is "
    "no belief: it has no error to score"
)


class RegretRun(msgspec.Struct, frozen=True):
    """One run to make; ``oracle``: the partitioner asks the truth instead of a belief."""

    label: str
    config: RunConfig
    oracle: bool = False


class RegretRuns(msgspec.Struct):
    """Results: rows of runs that ended, the view of the first, labels of those that did not end."""

    rows: list[tuple[RegretRun, Regret]] = []
    first: RunView | None = None
    loads: list[tuple[str, Load]] = []
    beliefs: list[BeliefFacts] = []  # facts of each belief in use
    missing: list[str] = []
    error: BaseException | None = None


def show_regret(
    config: RunConfig,
    beliefs: list[str],
    policies: list[str],
    sample: int,
    *,
    as_json: bool,
    quiet: bool,
) -> None:
    """Run every combination, then print one table (or one JSON document). Runs that ended are shown
    even if a later one failed; the exit code is then the failure's.
    """
    if config.force_profile and config.profile is None:
        raise UsageError("--force-profile goes with --profile, which is not given")
    runs = _runs(config, beliefs, policies)
    check_beliefs(run.config for run in runs if _asks(run.config))
    made = _make(runs, sample, quiet=quiet)
    typed = msgspec.structs.replace(
        config, cost_model=",".join(beliefs) or None, partitioner=",".join(policies) or None
    )
    if as_json:
        print(json.dumps(_document(typed, made), indent=2))
    else:
        _show(typed, made)
    if made.error is not None:
        sys.stdout.flush()
        text = " ".join(str(made.error).split()) or "interrupted"
        print(f"error: {made.missing[0]}: {text}", file=sys.stderr)
        code = NexusbenchError.exit_code
        if isinstance(made.error, NexusbenchError):
            code = made.error.exit_code
        elif isinstance(made.error, KeyboardInterrupt):
            code = Interrupted.exit_code
        raise SystemExit(code) from made.error


def _make(runs: list[RegretRun], sample: int, *, quiet: bool) -> RegretRuns:
    """Serve and judge one run after the other until one fails; raises if the first one fails."""
    made = RegretRuns()
    for position, run in enumerate(runs):
        try:
            with follow(run.label, quiet=quiet) as progress:
                row, result = judged_run(
                    run.config, run.label, sample=sample, oracle=run.oracle, progress=progress
                )
        except (Exception, KeyboardInterrupt) as error:
            if not made.rows:
                raise
            made.error = error
            made.missing = [left.label for left in runs[position:]]
            break
        made.rows.append((run, row))
        made.first = made.first or view_of_result(result, run.label)
        made.loads.append((run.label, load_of(result.summary)))
        if result.resolved.belief is not None:
            made.beliefs.append(result.resolved.belief)
    return made


def _document(config: RunConfig, made: RegretRuns) -> dict[str, object]:
    return {
        "schema": JSON_SCHEMA,
        "command": "regret",
        "simulated": True,
        "config": msgspec.to_builtins(config),
        "resolved": msgspec.to_builtins(made.first.resolved) if made.first else None,
        "rows": [
            {
                **msgspec.to_builtins(row),
                "load": msgspec.to_builtins(load),
                "config": msgspec.to_builtins(run.config),
            }
            for (run, row), (_, load) in zip(made.rows, made.loads, strict=True)
        ],
        "not_run": made.missing,
    }


def _asks(config: RunConfig) -> bool:
    """Whether the partitioner asks a belief at all."""
    name = (config.partitioner or "").partition(":")[0]
    return bool(partitioners.load(name).needs_belief)


def _runs(config: RunConfig, beliefs: list[str], policies: list[str]) -> list[RegretRun]:
    """All runs; names and options are checked before the first one starts."""
    chosen = split_policies(policies, "--partitioner") or list(_PARTITIONERS)
    asked = split_policies(beliefs, "--cost-model")
    runs: list[RegretRun] = []
    for policy in chosen:
        check_policies([(_SCHEDULER, policy)], None)
        own = msgspec.structs.replace(config, scheduler=_SCHEDULER, partitioner=policy)
        if not _asks(own):
            runs.append(RegretRun(policy, msgspec.structs.replace(own, profile=None)))
            continue
        # A single partitioner without options needs no prefix.
        prefix = f"{policy} " if len(chosen) > 1 or ":" in policy else ""
        for label, belief in _beliefs(own, asked):
            check_policies([], belief.cost_model)
            runs.append(RegretRun(prefix + label, belief))
        truth = msgspec.structs.replace(own, profile=None)
        runs.append(RegretRun(f"{prefix}oracle", truth, oracle=True))
    return runs


def _beliefs(config: RunConfig, asked: list[str]) -> list[tuple[str, RunConfig]]:
    """(label, config) of each belief: those that were named, else the analytic one and all fits."""
    if config.profile is None:
        names = asked or [ANALYTIC]
        return [(name, msgspec.structs.replace(config, cost_model=name)) for name in names]
    found = [
        (f"{name} fitted", msgspec.structs.replace(config, cost_model=name))
        for name in asked or [fit.cost_model for fit in load_profile(Path(config.profile)).fits]
    ]
    if asked:
        return found
    analytic = msgspec.structs.replace(config, cost_model=ANALYTIC, profile=None)
    return [(f"{ANALYTIC} unfitted", analytic), *found]


def _show(config: RunConfig, made: RegretRuns) -> None:
    from rich.text import Text

    console = results_console()
    console.print(Text.assemble(("nexusbench regret", "bold"), "  ", badge(True)))
    view = made.first
    assert view is not None
    judged = max(row.judged for _, row in made.rows)
    lines = [
        *header_lines(view),
        ("judged", f"up to {judged:,} decisions of each run, by the device's true times"),
    ]
    notes: list[str] = []
    if made.beliefs or not made.missing:
        limits = view.resolved.limits
        assert isinstance(limits, Limits)
        notes = notes_on(config, made.beliefs, limits)
    for name, text in [*lines, *(("note", note) for note in notes)]:
        say(console, f"{name:<{_INDENT}}{text}", indent=_INDENT)
    for line in lines_about(made.loads, len(made.rows)):
        say(console, f"WARNING: {line}.", "bold red")
    grid = TextGrid("", ("", *(title for title, _, _ in _COLUMNS)))
    for _, row in made.rows:
        values = [(getattr(row, field), form) for _, field, form in _COLUMNS]
        grid.add(row.label, *("-" if v is None else form.format(v) for v, form in values))
    grid.show(console)
    say(console, _LEGEND, "dim")
    if made.missing:
        say(console, f"WARNING: did not run to the end: {', '.join(made.missing)}", "bold red")
