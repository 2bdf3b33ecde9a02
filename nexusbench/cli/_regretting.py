"""The runs behind ``nexusbench regret`` and their table."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import msgspec

from nexusbench.belief import ANALYTIC
from nexusbench.cli._console import print_whole, results_console, say
from nexusbench.cli._live import follow
from nexusbench.cli._policies import check_policies, split_policies
from nexusbench.cli._screen import badge
from nexusbench.cli._session import JSON_SCHEMA
from nexusbench.config import RunConfig
from nexusbench.costs._profile import load_profile
from nexusbench.experiments.regret import Regret, regret
from nexusbench.partitioners.base import partitioners

_SCHEDULER = "nexus"
_PARTITIONERS = ("nexus", "fixed")
_COLUMNS = (
    ("regret, mean %", "regret_mean", "{:.1f}"),
    ("p95 %", "regret_p95", "{:.1f}"),
    ("broken %", "broken", "{:.0f}"),
    ("by %", "excess_mean", "{:.0f}"),
    ("MAPE alone", "mape_alone", "{:.1f}"),
    ("co-run", "mape_corunning", "{:.1f}"),
    ("TTFT mean ms", "ttft_mean", "{:,.0f}"),
    ("p95", "ttft_p95", "{:,.0f}"),
    ("TBT mean ms", "tbt_mean", "{:,.1f}"),
    ("p99", "tbt_p99", "{:,.1f}"),
    ("tok/s", "output_throughput", "{:,.0f}"),
    ("re-part.", "repartitions", "{:,.0f}"),
)
_LEGEND = (
    "regret: how much longer the policy's target stage takes than under the best legal split that "
    "keeps the other stage within its slack, judged by the device's true times; broken: decisions "
    "in which the other stage is beyond its slack in truth though some split would keep it, and by "
    "how much on average. Objective and slacks are nexus's. The oracle row asks the truth and is "
    "no belief: it has no error to score"
)


def show_regret(
    config: RunConfig,
    beliefs: list[str],
    policies: list[str],
    sample: int,
    *,
    as_json: bool,
    quiet: bool,
) -> None:
    """Run every combination, then print one table (or one JSON document)."""
    rows: list[Regret] = []
    for label, own, oracle in _runs(config, beliefs, policies):
        with follow(label, quiet=quiet) as progress:
            rows.append(regret(own, label, sample=sample, oracle=oracle, progress=progress))
    if as_json:
        document = {
            "schema": JSON_SCHEMA,
            "command": "regret",
            "simulated": True,
            "config": msgspec.to_builtins(config),
            "rows": msgspec.to_builtins(rows),
        }
        print(json.dumps(document, indent=2))
        return
    _show(config, rows)


def _runs(
    config: RunConfig, beliefs: list[str], policies: list[str]
) -> Iterator[tuple[str, RunConfig, bool]]:
    """(label, config, whether the truth itself is asked), checked before the first is run."""
    chosen = split_policies(policies, "--partitioner") or list(_PARTITIONERS)
    asked = split_policies(beliefs, "--cost-model")
    runs: list[tuple[str, RunConfig, bool]] = []
    for policy in chosen:
        check_policies([(_SCHEDULER, policy)], None)
        own = msgspec.structs.replace(config, scheduler=_SCHEDULER, partitioner=policy)
        if not partitioners.load(policy.partition(":")[0]).needs_belief:
            runs.append((policy, msgspec.structs.replace(own, profile=None), False))
            continue
        prefix = f"{policy} " if len(chosen) > 1 else ""
        for label, belief in _beliefs(own, asked):
            check_policies([], belief.cost_model)
            runs.append((prefix + label, belief, False))
        runs.append((f"{prefix}oracle", msgspec.structs.replace(own, profile=None), True))
    yield from runs


def _beliefs(config: RunConfig, asked: list[str]) -> list[tuple[str, RunConfig]]:
    """(label, config) of each belief: those asked for, or the analytic one and all fits."""
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


def _show(config: RunConfig, rows: list[Regret]) -> None:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    console = results_console()
    console.print(Text.assemble(("nexusbench regret", "bold"), "  ", badge(True)))
    judged = max(row.judged for row in rows)
    say(
        console,
        f"{config.trace} on {config.device}, {config.model}: up to {judged:,} decisions of each "
        "run judged",
    )
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    table.add_column("", no_wrap=True)
    for title, _, _ in _COLUMNS:
        table.add_column(title, justify="right")
    for row in rows:
        values = [(getattr(row, field), form) for _, field, form in _COLUMNS]
        cells = ["-" if value is None else form.format(value) for value, form in values]
        table.add_row(row.label, *cells)
    print_whole(console, table)
    say(console, _LEGEND, "dim")
