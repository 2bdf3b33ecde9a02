"""A table of texts that folds to the terminal's width: the columns that name a row are repeated in
each block.
"""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table

from nexusbench.cli._console import print_folded, say


class TextGrid:
    """Rows under a title, printed by :meth:`show`. The first ``keys`` columns name a row; the
    columns at the positions ``texts`` are left-aligned.
    """

    def __init__(
        self, title: str, columns: Sequence[str], *, keys: int = 1, texts: Sequence[int] = (0,)
    ) -> None:
        self.title, self.columns = title, columns
        self._keys, self._texts = keys, frozenset(texts)
        self._rows: list[tuple[tuple[str, ...], bool]] = []

    def add(self, *cells: str, last: bool = False) -> None:
        """Append a row; ``last``: a line follows it. Raises ValueError unless there is one cell per
        column.
        """
        if len(cells) != len(self.columns):
            raise ValueError(f"{len(cells)} cells for {len(self.columns)} columns")
        self._rows.append((cells, last))

    def show(self, console: Console) -> None:
        """Print the title and as many tables below each other as the width requires."""
        if self.title:
            console.print()
            say(console, self.title, "bold")
        print_folded(console, len(self.columns) - self._keys, self._render)

    def _render(self, block: slice) -> Table:
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
        shown = [*range(self._keys), *range(self._keys, len(self.columns))[block]]
        for position in shown:
            left = position in self._texts
            table.add_column(
                self.columns[position], justify="left" if left else "right", no_wrap=True
            )
        for cells, last in self._rows:
            table.add_row(*(cells[position] for position in shown), end_section=last)
        return table
