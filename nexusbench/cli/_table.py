"""The side-by-side table on a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from nexusbench.comparison.rows import TableRow
from nexusbench.comparison.view import Column

if TYPE_CHECKING:
    from rich.table import Table


def render_rows(
    columns: Sequence[Column],
    rows: Sequence[TableRow],
    block: slice = slice(None),
    *,
    tight: bool = False,
) -> Table:
    """The rich table of some rows, with a block of the columns; ``tight`` leaves one blank between
    them, not three.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    padding = 0 if tight else 1
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold", padding=(0, padding))
    table.add_column("", no_wrap=True)
    table.add_column("", no_wrap=True, style="dim")
    for column in columns[block]:
        head = Text(column.label.replace(", ", "\n"))
        table.add_column(head, justify="right", no_wrap=True)
    # Marks hang to the right of the digits, so that these stay in line.
    hang = max((len(c.marked) - len(c.text) for row in rows for c in row.cells), default=0)
    for row in rows:
        cells = []
        for cell in row.cells[block]:
            text = cell.marked + "\u00a0" * (hang - len(cell.marked) + len(cell.text))
            cells.append(Text(text, style="bold green" if cell.best else ""))
        table.add_row(row.title, row.name, *cells, end_section=row.last)
    return table
