"""The tables of ``--by``: the same groups of requests under each scheduler."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from nexusbench.cli._console import print_whole
from nexusbench.comparison.rows import decimals
from nexusbench.comparison.view import Column
from nexusbench.core.printable import one_line

if TYPE_CHECKING:
    from rich.console import Console

_TITLES = {"prompt-length": "by prompt length, tokens", "tenant": "by tenant"}
# Title, path into a group's row, factor.
_SHOWN = (
    ("TTFT mean, s", ("ttft", "mean"), 1e-3),
    ("TTFT p95, s", ("ttft", "p95"), 1e-3),
    ("TBT p99, ms", ("tbt", "p99"), 1.0),
    ("not finished", ("missed",), 1.0),
    ("SLO attainment, %", ("attainment",), 1.0),
)


def show_groups(console: Console, columns: Sequence[Column]) -> None:
    """One table per grouping: a block of rows per figure, a row per group, a column per run."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    for grouping in columns[0].first.groups:
        table = Table(
            box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold", title_justify="left",
            title=_TITLES[grouping], title_style="bold",
        )  # fmt: skip
        table.add_column("", no_wrap=True)
        table.add_column("", no_wrap=True, style="dim")
        table.add_column("n", justify="right", no_wrap=True)
        for column in columns:
            table.add_column(Text(column.label), justify="right", no_wrap=True)
        names = [row["group"] for row in columns[0].first.groups[grouping]]
        for title, path, factor in _SHOWN:
            found = [[_mean(column, grouping, name, path) for column in columns] for name in names]
            known = [value * factor for row in found for value in row if value is not None]
            if not known or (path == ("missed",) and not any(known)):
                continue
            places = min(decimals(known), 1 if path == ("attainment",) else 3)
            for position, (name, row) in enumerate(zip(names, found, strict=True)):
                weak = [_weak(column, grouping, name, path) for column in columns]
                cells = [
                    "-" if v is None else f"{v * factor:,.{places}f}" + ("~" if w else "\u00a0")
                    for v, w in zip(row, weak, strict=True)
                ]
                count = _mean(columns[0], grouping, name, ("offered",))
                last = position == len(names) - 1
                table.add_row(
                    "" if position else title,
                    one_line(name),
                    f"{count or 0:,.0f}",
                    *cells,
                    end_section=last,
                )
        console.print()
        print_whole(console, table)


def _weak(column: Column, grouping: str, name: str, path: Sequence[str]) -> bool:
    """The percentile has too few samples beyond it."""
    rows = [row for row in column.first.groups.get(grouping, []) if row["group"] == name]
    return len(path) == 2 and any(path[1] in row[path[0]]["weak"] for row in rows)


def _mean(column: Column, grouping: str, name: str, path: Sequence[str]) -> float | None:
    """A figure of one group, the mean over the column's seeds; None where no run has it."""
    values = []
    for view in column.views:
        for row in view.groups.get(grouping, []):
            if row["group"] == name:
                value: Any = row
                for key in path:
                    value = value[key]
                if value is not None:
                    values.append(value)
    return sum(values) / len(values) if values else None
