"""Rich's console, from which no text of a user reaches the terminal with control characters in it.

Colours and the movements of a live display are Rich's own, and stay.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from nexusbench.core.printable import one_line, printable


class SafeConsole(Console):
    """A console whose texts are cleaned where they become segments, whatever they stand in."""

    def render_str(self, text: str, **options: Any) -> Text:
        """As Rich's, but a string is one line wherever it stands: what it quotes cannot begin
        another.
        """
        return super().render_str(one_line(text), **options)

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        """As Rich's, without control characters in any text."""
        for segment in super().render(renderable, options):
            if segment.control or segment.text.isprintable():
                yield segment
            else:
                yield Segment(printable(segment.text), segment.style)
