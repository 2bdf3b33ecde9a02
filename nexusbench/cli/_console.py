"""Consoles: results to stdout, everything else to stderr; widths for pipes."""

from __future__ import annotations

import os
import sys
from typing import IO, TYPE_CHECKING

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


def print_whole(console: Console, renderable: RenderableType) -> None:
    """Print a table at its natural width: numbers that are cut off would be worse than wrapping."""
    from rich.measure import Measurement

    options = console.options.update(max_width=10_000)
    needed = Measurement.get(console, options, renderable).maximum
    console.print(renderable, width=max(console.width, needed), crop=False, soft_wrap=False)
