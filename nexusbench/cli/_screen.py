"""The results of runs on a terminal: header, table, footnotes, verdict, folders."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from nexusbench.cli._console import natural_width, print_folded, say
from nexusbench.cli._groups import show_groups
from nexusbench.cli._seeds import seeds_lines, show_seeds
from nexusbench.comparison.alike import different_loads
from nexusbench.comparison.heading import (
    footnotes,
    header_lines,
    note_lines,
    policies_line,
    rejection_lines,
)
from nexusbench.comparison.load import conditions, is_overloaded, load_lines
from nexusbench.comparison.rows import TableRow, make_rows
from nexusbench.comparison.verdict import verdict
from nexusbench.comparison.view import Column, RunView
from nexusbench.core.printable import shell_words

_INDENT = 10


def show_columns(console: Console, columns: Sequence[Column], *, formulas: bool = False) -> None:
    """Warnings about the load, the table with footnotes, paired differences if there are several
    seeds, and the verdict.
    """
    for line in load_lines(columns):
        say(console, f"WARNING: {line}.", "bold red")
    rows = make_rows(columns)
    # Narrower columns are tried before several tables: schedulers are compared along a row.
    tight = natural_width(console, render_rows(columns, rows)) > console.width
    print_folded(
        console, len(columns), lambda block: render_rows(columns, rows, block, tight=tight)
    )
    if any(column.first.groups for column in columns):
        show_groups(console, columns)
    for line in footnotes(columns, rows):
        say(console, line, "dim")
    if formulas:
        _show_formulas(console, columns)
    if any(len(column.views) > 1 for column in columns):
        console.print()
        if len(columns) > 1:
            show_seeds(console, columns)
        for line in seeds_lines(columns):
            say(console, line, "dim")
    for line in rejection_lines(columns):
        say(console, f"WARNING: {line}", "bold red")
    sentences = verdict(columns)
    if sentences:
        console.print()
        simulated = any(column.first.simulated for column in columns)
        under = conditions(
            sum(map(is_overloaded, columns)),
            len(columns),
            simulated=simulated,
            different=different_loads(columns),
        )
        say(console, under + " ".join(sentences), "bold")


def render_rows(
    columns: Sequence[Column],
    rows: Sequence[TableRow],
    block: slice = slice(None),
    *,
    tight: bool = False,
) -> Table:
    """The Rich table of ``rows`` with a slice of the columns; ``tight`` leaves one blank between
    columns instead of three.
    """
    padding = 0 if tight else 1
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold", padding=(0, padding))
    table.add_column("", no_wrap=True)
    table.add_column("", no_wrap=True, style="dim")
    for column in columns[block]:
        head = Text(column.label.replace(", ", "\n"))
        table.add_column(head, justify="right", no_wrap=True)
    # Marks are appended to the right of the digits, which stay aligned.
    hang = max((len(c.marked) - len(c.text) for row in rows for c in row.cells), default=0)
    for row in rows:
        cells = []
        for cell in row.cells[block]:
            text = cell.marked + "\u00a0" * (hang - len(cell.marked) + len(cell.text))
            cells.append(Text(text, style="bold green" if cell.best else ""))
        table.add_row(row.title, row.name, *cells, end_section=row.last)
    return table


def header(console: Console, columns: Sequence[Column], title: str) -> None:
    """What was run, and where; it is the same for all columns of one call."""
    view = columns[0].first
    console.print(Text.assemble((title, "bold"), "  ", badge(view.simulated)))
    for name, text in _lines(view, columns):
        say(console, f"{name:<{_INDENT}}{text}", indent=_INDENT)


def badge(simulated: bool) -> Text:
    """Whether results are simulated or measured; distinguishable without colour."""
    if simulated:
        return Text("[SIMULATED: no GPU was used]", style="bold black on yellow")
    return Text("[MEASURED]", style="bold white on green")


def _lines(view: RunView, columns: Sequence[Column]) -> list[tuple[str, str]]:
    lines = header_lines(view, "; no usable CUDA GPU here")
    policies = policies_line(columns)
    return [*lines, *([("policies", policies)] if policies else []), *note_lines(columns)]


def _show_formulas(console: Console, columns: Sequence[Column]) -> None:

    console.print()
    table = Table.grid(padding=(0, 2))
    summary = columns[0].first.summary
    for tag, entry in summary.metrics.items():
        table.add_row(tag, entry.unit, summary.formulas[tag])
    console.print(table)
    console.print("Symbols: docs/metrics.md", style="dim")


def kept_lines(views: Sequence[RunView]) -> list[str]:
    """The folder of each run, and the next command."""
    kept = [view for view in views if view.folder is not None]
    if not kept:
        return ["Nothing was kept (--no-save)."]
    width = max(len(_who(view, kept)) for view in kept)
    lines = [f"kept  {_who(view, kept):<{width}}  {view.folder}" for view in kept]
    command = shell_words("nexusbench", "explain", kept[0].folder)
    lines.append(f"next  {command}    (the slowest requests, and why)")
    return lines


def _who(view: RunView, views: Sequence[RunView]) -> str:
    seeds = {other.config.seed for other in views}
    return view.label + (f" seed {view.config.seed}" if len(seeds) > 1 else "")
