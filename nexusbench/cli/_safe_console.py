"""Rich's console without control characters in any text that a user supplied.

Colours and cursor movements of a live display are Rich's own and stay.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from nexusbench.core.printable import one_line, printable

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
