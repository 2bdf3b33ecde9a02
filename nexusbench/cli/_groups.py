"""The tables of ``--by``: the same groups of requests under each scheduler."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from nexusbench.cli._console import print_whole, say
from nexusbench.comparison.rows import decimals
from nexusbench.comparison.view import Column
from nexusbench.core.printable import one_line

if TYPE_CHECKING:
    from rich.console import Console

_FEWER = "!"  # after a latency
_FEWER_MEANS = (
    f"{_FEWER} a smaller share of these requests finished than under another: the latency is of "
    "those that were not turned away, and no lead"
)
_SAME = 1e-9
_WEAK_MEANS = "~ fewer than 10 samples beyond this percentile: weak"
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
    """One table per grouping: a block of rows per figure, a row per group, a column per run. What
    is of other requests than in another column is marked, and the marks are explained below.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    groupings = dict.fromkeys(name for column in columns for name in column.first.groups)
    marks: set[str] = set()
    for grouping in groupings:
        table = Table(
            box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold", title_justify="left",
            title=_TITLES[grouping], title_style="bold",
        )  # fmt: skip
        table.add_column("", no_wrap=True)
        table.add_column("", no_wrap=True, style="dim")
        table.add_column("n", justify="right", no_wrap=True)
        for column in columns:
            table.add_column(Text(column.label), justify="right", no_wrap=True)
        # Of another trace there may be groups that the first has not.
        rows = (row for column in columns for row in column.first.groups.get(grouping, []))
        names = list(dict.fromkeys(row.group for row in rows))
        fewer = {name: _fewer(columns, grouping, name) for name in names}
        for title, path, factor in _SHOWN:
            found = [[_mean(column, grouping, name, path) for column in columns] for name in names]
            known = [value * factor for row in found for value in row if value is not None]
            if not known or (path == ("missed",) and not any(known)):
                continue
            places = min(decimals(known), 1 if path == ("attainment",) else 3)
            for position, (name, row) in enumerate(zip(names, found, strict=True)):
                found_marks = [
                    "~" * _weak(column, grouping, name, path) + _FEWER * (len(path) == 2 and less)
                    for column, less in zip(columns, fewer[name], strict=True)
                ]
                marks.update(*found_marks)
                cells = [
                    "-" if v is None else f"{v * factor:,.{places}f}{mark:\u00a0<2}"
                    for v, mark in zip(row, found_marks, strict=True)
                ]
                last = position == len(names) - 1
                table.add_row(
                    "" if position else title,
                    one_line(name),
                    _count(columns, grouping, name),
                    *cells,
                    end_section=last,
                )
        console.print()
        print_whole(console, table)
    notes = [text for text in (_WEAK_MEANS, _FEWER_MEANS) if text[0] in marks]
    if notes:
        say(console, "; ".join(notes), "dim")


def _fewer(columns: Sequence[Column], grouping: str, name: str) -> list[bool]:
    """Under which columns a smaller share of a group finished than under another."""
    shares: list[float | None] = []
    for column in columns:
        offered, missed = (_mean(column, grouping, name, (key,)) for key in ("offered", "missed"))
        shares.append(None if not offered else 1.0 - (missed or 0.0) / offered)
    most = max((share for share in shares if share is not None), default=0.0)
    return [share is not None and share < most - _SAME for share in shares]


def _count(columns: Sequence[Column], grouping: str, name: str) -> str:
    """Requests of a group; from the fewest to the most where columns have other traces."""
    found = {_mean(column, grouping, name, ("offered",)) for column in columns} - {None}
    counts = [f"{count or 0:,.0f}" for count in sorted(found, key=lambda n: n or 0.0)]
    return counts[0] if len(counts) == 1 else f"{counts[0]} to {counts[-1]}" if counts else "0"


def _weak(column: Column, grouping: str, name: str, path: Sequence[str]) -> bool:
    """The percentile has too few samples beyond it."""
    rows = [row for row in column.first.groups.get(grouping, []) if row.group == name]
    return len(path) == 2 and any(path[1] in getattr(row, path[0]).weak for row in rows)


def _mean(column: Column, grouping: str, name: str, path: Sequence[str]) -> float | None:
    """A figure of one group, the mean over the column's seeds; None where no run has it."""
    values = []
    for view in column.views:
        for row in view.groups.get(grouping, []):
            if row.group == name:
                value: Any = row
                for key in path:
                    value = getattr(value, key)
                if value is not None:
                    values.append(value)
    return sum(values) / len(values) if values else None
