"""What ``nexusbench validate serving`` does and shows."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from nexusbench.cli._console import counted, print_whole, results_console, say
from nexusbench.cli._countdown import Countdown
from nexusbench.experiments.fidelity.serving_configs import ServingPlan
from nexusbench.experiments.fidelity.serving_contradictions import contradicted
from nexusbench.experiments.fidelity.serving_peer import estimates
from nexusbench.experiments.fidelity.serving_runs import ServingResult, replay_points
from nexusbench.experiments.fidelity.serving_scores import (
    ServingScore,
    ServingValidation,
    validate_points,
)
from nexusbench.experiments.fidelity.serving_table import ServingPoint, chosen, read_points
from nexusbench.experiments.pool import cores
from nexusbench.physics.host import load_engine

if TYPE_CHECKING:
    from rich.console import Console

JSON_SCHEMA = 1
_MOST_REASONS = 30
_LEGEND = (
    "simulated beside measured, errors in %; AIC: AIConfigurator's own estimates of the same "
    "points; nearer: on how many of them the simulated TPOT is nearer to the measured one"
)


class AskedServing(msgspec.Struct, frozen=True, kw_only=True):
    """The options of ``validate serving``."""

    table: Path
    plan: ServingPlan
    model: str | None
    only: list[str]
    every: int
    cache: Path
    jobs: int | None
    fresh: bool
    as_json: bool
    quiet: bool


def show_serving(asked: AskedServing) -> ServingValidation:
    """Replay and score the points, and print it."""
    if asked.plan.engine is not None:
        load_engine(asked.plan.engine)  # a name that there is not is no refusal of points
    table = read_points(asked.table)
    points = chosen(table, asked.model, asked.only)[:: asked.every]
    # The whole table is asked, whatever is chosen of it.
    results = _replayed(points, contradicted(table), asked)
    peers = estimates(results)
    made = validate_points(results, peers, steady=asked.plan.steady)
    if asked.as_json:
        print(json.dumps(_document(asked, made, len(points)), indent=2, allow_nan=False))
    else:
        _show(asked, made, len(points))
    return made


def _replayed(
    points: list[ServingPoint], refused: dict[int, str], asked: AskedServing
) -> list[ServingResult]:
    jobs = asked.jobs or cores()
    countdown: list[Countdown] = []

    def step(done: int, todo: int) -> None:
        if not done:
            if not asked.quiet:
                what = f"{asked.table.name}: {counted(len(points), 'point')}, {todo:,} to run"
                print(f"{what} on {counted(min(jobs, max(1, todo)), 'core')}", file=sys.stderr)
            countdown.append(Countdown(asked.table.name, todo, quiet=asked.quiet or not todo))
            return
        countdown[0].step()
        if done == todo:
            countdown[0].end(counted(todo, "run"))

    return replay_points(
        points, asked.plan, asked.cache, jobs=jobs, fresh=asked.fresh, refused=refused, step=step
    )


def _document(asked: AskedServing, made: ServingValidation, count: int) -> dict[str, object]:
    return {
        "schema": JSON_SCHEMA, "command": "validate serving", "simulated": True,
        "table": str(asked.table), "plan": _plan(asked.plan), "points": count,
        "rows": msgspec.to_builtins(made.scores), "replayed": msgspec.to_builtins(made.points),
        "refused": made.refused,
    }  # fmt: skip


def _plan(plan: ServingPlan) -> dict[str, object]:
    found: dict[str, object] = msgspec.structs.asdict(plan)
    return found | {"configs": None if plan.configs is None else str(plan.configs)}


def _show(asked: AskedServing, made: ServingValidation, count: int) -> None:
    console = results_console()
    plan = asked.plan
    lengths = "lengths as measured"
    if plan.range_ratio is not None:
        every = plan.range_ratio == 1.0
        lengths = "equal lengths" if every else f"lengths from {plan.range_ratio:g}"
    which = "without the first and the last" if plan.steady else "all counted"
    console.print(
        f"{asked.table}, simulated: {len(made.points):,} of {counted(count, 'point')}; closed "
        f"loops of {counted(plan.rounds, 'round')}, {lengths}, {which}",
        style="bold", soft_wrap=True,
    )  # fmt: skip
    if made.scores:
        _show_scores(console, made.scores)
        say(console, _LEGEND, "dim")
    refused = sum(made.refused.values())
    if refused:
        say(console, f"{counted(refused, 'point')} refused, not scored:", "bold")
    for reason, times in list(made.refused.items())[:_MOST_REASONS]:
        say(console, f"{times:>6,}  {reason}", indent=8)
    if len(made.refused) > _MOST_REASONS:
        say(console, f"and {len(made.refused) - _MOST_REASONS:,} more reasons (--json has them)")


def _show_scores(console: Console, scores: list[ServingScore]) -> None:
    from rich import box
    from rich.table import Table

    grid = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    for name in ("model", "system", "engine", "weights"):
        grid.add_column(name, no_wrap=True)
    columns = ("TP", "n", "TTFT MAPE", "bias", "TPOT MAPE", "bias", "AIC TTFT", "TPOT", "nearer")
    for name in columns:
        grid.add_column(name, justify="right")
    for row, score in enumerate(scores):
        last = row == len(scores) - 1
        grid.add_row(
            score.model, score.system, score.engine, score.precision, score.tp,
            f"{score.points:,}", f"{score.ttft_mape:.1f}", f"{score.ttft_bias:+.1f}",
            f"{score.tpot_mape:.1f}", f"{score.tpot_bias:+.1f}",
            _percent(score.aiconfigurator_ttft_mape), _percent(score.aiconfigurator_tpot_mape),
            _percent(score.nearer_than_aiconfigurator),
            style="bold" if last else "", end_section=row == len(scores) - 2,
        )  # fmt: skip
    print_whole(console, grid)


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"
