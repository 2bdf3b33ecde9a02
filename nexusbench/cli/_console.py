"""Consoles: results to stdout, everything else to stderr; widths for pipes."""

from __future__ import annotations

import os
import sys
import textwrap
from collections.abc import Callable
from typing import IO, TYPE_CHECKING

from nexusbench.core.units import counted as counted

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

PIPE_WIDTH = 100


def results_console() -> Console:
    """The console of results. NO_COLOR and pipes are respected; a pipe is 100 columns wide."""
    return _console(sys.stdout)


def progress_console() -> Console:
    """The console of progress and warnings."""
    return _console(sys.stderr)


def _console(stream: IO[str]) -> Console:
    from rich.console import Console

    width = None if stream.isatty() or os.environ.get("COLUMNS") else PIPE_WIDTH
    return Console(file=stream, width=width, highlight=False, markup=False, emoji=False)


def natural_width(console: Console, renderable: RenderableType) -> int:
    """Columns that ``renderable`` takes without wrapping."""
    from rich.measure import Measurement

    return Measurement.get(console, console.options.update(max_width=10_000), renderable).maximum


def print_whole(console: Console, renderable: RenderableType) -> None:
    """Print a table at its natural width: numbers broken in two would be worse than long lines."""
    usual = console.width
    console.width = max(usual, natural_width(console, renderable))
    console.print(renderable)
    console.width = usual


def print_folded(console: Console, count: int, render: Callable[[slice], RenderableType]) -> None:
    """One table of ``count`` columns, or several, one below the other, where the terminal is too
    narrow; ``render`` makes the table of a block of the columns.
    """
    for size in range(max(1, count), 0, -1):
        blocks = [slice(start, start + size) for start in range(0, count, size)]
        tables = [render(block) for block in blocks]
        if size == 1 or all(natural_width(console, table) <= console.width for table in tables):
            for table in tables:
                print_whole(console, table)
            return


def say(console: Console, text: str, style: str = "", indent: int = 0) -> None:
    """Print a paragraph, wrapped to the console; further lines are indented."""
    lines = textwrap.wrap(
        text,
        console.width,
        subsequent_indent=" " * indent,
        break_on_hyphens=False,
        break_long_words=False,
    )
    for line in lines:
        console.print(line, style=style, soft_wrap=True)
