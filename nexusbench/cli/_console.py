"""Consoles: results go to stdout, everything else to stderr; fixed width for pipes.

No text that a user supplied reaches the terminal with control characters in it. Colours and cursor
movements of a live display are Rich's own and stay.
"""

from __future__ import annotations

import os
import sys
import textwrap
from collections.abc import Callable, Iterable
from typing import IO, Any

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.measure import Measurement
from rich.progress_bar import ProgressBar
from rich.segment import Segment, Segments
from rich.table import Table
from rich.text import Text

from nexusbench.core.printable import one_line, printable
from nexusbench.core.units import counted as counted

PIPE_WIDTH = 100
_BREAKS = "\t\n\v\f\r\x1c\x1d\x1e\x85\u2028\u2029"


class SafeConsole(Console):
    """A console that cleans texts where Rich turns them into segments, in tables and panels too."""

    def print(self, *objects: Any, **options: Any) -> None:
        """As Rich's, but a text that is printed by itself stays one line: quoted input cannot start
        another. Cells of a table may have several lines.
        """
        super().print(*map(_flat, objects), **options)

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        """As Rich's, without control characters in any text."""
        for segment in super().render(renderable, options):
            if segment.control or segment.text.isprintable():
                yield segment
            else:
                yield Segment(printable(segment.text), segment.style)


def _flat(item: Any) -> Any:
    """A text with blanks in place of line breaks; other objects unchanged."""
    if isinstance(item, str):
        return one_line(item)
    if isinstance(item, Text) and not item.plain.isprintable():
        flat = item.copy()
        # Of equal length, so that colours keep their positions.
        flat.plain = "".join(" " if sign in _BREAKS else sign for sign in item.plain)
        return flat
    return item


def results_console() -> Console:
    """The console of results. NO_COLOR and pipes are respected; a pipe is 100 columns wide."""
    return _console(sys.stdout)


def progress_console() -> Console:
    """The console of progress and warnings."""
    return _console(sys.stderr)


def _console(stream: IO[str]) -> Console:
    width = None if stream.isatty() or os.environ.get("COLUMNS") else PIPE_WIDTH
    return SafeConsole(file=stream, width=width, highlight=False, markup=False, emoji=False)


def natural_width(console: Console, renderable: RenderableType) -> int:
    """Columns that ``renderable`` needs without wrapping."""
    return Measurement.get(console, console.options.update(max_width=10_000), renderable).maximum


def print_whole(console: Console, renderable: RenderableType) -> None:
    """Print a table at its natural width, since a number broken over two lines is unreadable.
    Trailing blanks of each line are removed, so that the output can be copied.
    """
    usual = console.width
    console.width = max(usual, natural_width(console, renderable))
    shown: list[Segment] = []
    for line in console.render_lines(renderable, pad=False):
        while line and not line[-1].text.rstrip():
            line.pop()
        if line:
            text, style, _ = line[-1]
            line[-1] = Segment(text.rstrip(" "), style)
        shown += [*line, Segment.line()]
    console.print(Segments(shown), end="")
    console.width = usual


def print_folded(console: Console, count: int, render: Callable[[slice], RenderableType]) -> None:
    """Print one table of ``count`` columns, or, if it is wider than the terminal, several of nearly
    equal size below each other; ``render`` makes the table of a slice of the columns.
    """
    for wanted in range(1, max(1, count) + 1):
        size = -(-max(1, count) // wanted)
        blocks = [slice(start, start + size) for start in range(0, count, size)]
        tables = [render(block) for block in blocks]
        if size == 1 or all(natural_width(console, table) <= console.width for table in tables):
            for table in tables:
                print_whole(console, table)
            return


class ProgressLine:
    """A title, a bar and a text on one line. The bar takes the remaining width and is dropped below
    a minimum; a longer line is cut, since a second one would flicker.
    """

    _BAR, _SHORTEST_BAR = 24, 5

    def __init__(self, title: str, done: int, most: int, text: str) -> None:
        self.title, self.done, self.most, self.text = title, done, most, text

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """The line at the width of ``options``."""
        room = options.max_width - len(self.title) - len(self.text) - 2
        cells: list[RenderableType] = [self.title, self.text]
        if room >= self._SHORTEST_BAR:
            width = min(room, self._BAR)
            cells.insert(1, ProgressBar(total=max(1, self.most), completed=self.done, width=width))
        grid = Table.grid(padding=(0, 1))
        for _ in cells:
            grid.add_column(no_wrap=True)
        grid.add_row(*cells)
        yield grid


def say(console: Console, text: str, style: str = "", indent: int = 0) -> None:
    """Print a paragraph wrapped to the console's width; lines after the first are indented."""
    lines = textwrap.wrap(
        text,
        console.width,
        subsequent_indent=" " * indent,
        break_on_hyphens=False,
        break_long_words=False,
    )
    for line in lines:
        console.print(line, style=style, soft_wrap=True)
