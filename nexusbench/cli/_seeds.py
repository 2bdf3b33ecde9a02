"""Several seeds: paired differences to the first scheduler, and what a seed varies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec

from nexusbench.cli._console import print_folded
from nexusbench.comparison.level import rivals_in
from nexusbench.comparison.rows import decimals
from nexusbench.comparison.view import Column
from nexusbench.results.resolved import ResolvedEngineRun

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from nexusbench.metrics.summary import Difference, Differences

_SECONDS_FROM_MS = 1000.0
# A difference below this share of the first scheduler's value has no better side.
_NEGLIGIBLE = 0.005
# Title, tag, statistic and unit of what is compared.
_COMPARED = (
    ("TTFT mean", "ttft", "mean", "ms"),
    ("TTFT p99", "ttft", "p99", "ms"),
    ("TBT mean", "tbt", "mean", "ms"),
    ("TBT p99", "tbt", "p99", "ms"),
    ("TPOT mean", "tpot", "mean", "ms"),
    ("end to end mean", "e2e", "mean", "ms"),
    ("output throughput", "output_throughput", "value", "tok/s"),
    ("goodput", "goodput", "value", "req/s"),
    ("SLO attainment", "attainment", "value", "%"),
)


def paired_differences(columns: Sequence[Column]) -> dict[str, Differences]:
    """Label -> tag -> statistic -> the difference to the first column over the seeds both have."""
    from nexusbench.metrics.summary import paired

    base, found = columns[0], {}
    for column in columns[1:]:
        by_seed = {view.config.seed: view.summary for view in column.views}
        both = [view for view in base.views if view.config.seed in by_seed]
        found[column.label] = paired(
            [view.summary for view in both], [by_seed[view.config.seed] for view in both]
        )
        for tag, by_name in found[column.label].items():
            for name, difference in by_name.items():
                own = base.statistic(tag, name)
                entry = base.entry(tag)
                less = entry is not None and entry.direction == "lower"
                pair = (base, column)
                values = [one.statistic(tag, name) for one in pair]
                able = rivals_in(pair, tag, values, less=less)
                side = {None: None, "a": base, "b": column}[difference.better]
                negligible = own and abs(difference.mean) <= _NEGLIGIBLE * abs(own.value)
                if negligible or (side is not None and side not in able):
                    by_name[name] = msgspec.structs.replace(difference, better=None)
    return found


def show_seeds(console: Console, columns: Sequence[Column]) -> None:
    """Print each further scheduler minus the first; where the interval excludes zero, the better
    one.
    """
    base, others = columns[0].label, columns[1:]
    rows = _rows(base, others, paired_differences(columns))
    title = f"difference to {base}, paired by seed: mean [95 % interval]"
    console.print(title, style="bold", soft_wrap=True)
    print_folded(console, len(others), lambda block: _seeds_table(others[block], rows, block))


def _rows(
    base: str, others: Sequence[Column], differences: dict[str, Differences]
) -> list[tuple[str, str, list[str]]]:
    """Title, unit and cells of each row that has a value."""
    rows = []
    for title, tag, name, unit in _COMPARED:
        found = [differences[column.label].get(tag, {}).get(name) for column in others]
        known = [difference for difference in found if difference is not None]
        if not known:
            continue
        seconds = unit == "ms" and any(abs(d.mean) >= _SECONDS_FROM_MS for d in known)
        scale = 1e-3 if seconds else 1.0
        places = decimals([d.mean * scale for d in known])
        cells = [
            "-" if d is None else _text(d, (base, column.label), scale, places)
            for d, column in zip(found, others, strict=True)
        ]
        rows.append((title, "s" if seconds else unit, cells))
    return rows


def _seeds_table(
    others: Sequence[Column], rows: Sequence[tuple[str, str, list[str]]], block: slice
) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("", no_wrap=True)
    table.add_column("", style="dim", no_wrap=True)
    for column in others:
        table.add_column(Text(column.label), justify="right")
    for title, unit, cells in rows:
        table.add_row(title, unit, *map(Text, cells[block]))
    return table


def _text(difference: Difference, labels: tuple[str, str], scale: float, places: int) -> str:
    mean, low, high = (
        None if value is None else f"{value * scale:+,.{places}f}"
        for value in (difference.mean, difference.low, difference.high)
    )
    if low is None:
        return f"{mean} (one seed)"
    better = {"a": f"{labels[0]} better", "b": f"{labels[1]} better", None: "no clear difference"}
    return f"{mean} [{low}, {high}] {better[difference.better]}"


def seeds_lines(columns: Sequence[Column]) -> list[str]:
    """What the intervals are about."""
    first = columns[0].first
    config, resolved = first.config, first.resolved
    jitter = resolved.gpu.sim.jitter if isinstance(resolved, ResolvedEngineRun) else 0.0
    seeds = sorted({view.config.seed for column in columns for view in column.views})
    varies = []
    if first.simulated and jitter:
        varies.append(f"the step-time noise of the simulated device (±{100 * jitter:g} %)")
    if not first.simulated:
        varies.append("nothing on a real device but the order of chance: repetitions")
    if config.spread_ties == "uniform":
        varies.append("how ties are spread")
    if config.burstiness is not None:
        varies.append("the redrawn arrivals")
    what = " and ".join(varies) if varies else "nothing here: every seed gives the same run"
    return [
        f"Seeds {seeds[0]} to {seeds[-1]} vary {what}. The requests are those of one trace: the "
        "intervals say nothing about other traffic."
    ]
