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

    def print(self, *objects: Any, **options: Any) -> None:
        """As Rich's, but a text that is printed by itself is one line too."""
        super().print(*(_flat(o) if isinstance(o, Text) else o for o in objects), **options)

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


def _flat(text: Text) -> Text:
    """The text in its colours, with blanks for line breaks."""
    plain = "".join(" " if sign in "\n\r\v\f\x85\u2028\u2029" else sign for sign in text.plain)
    if plain == text.plain:
        return text
    flat = text.copy()
    flat.plain = plain  # of the same length, so that its colours stay where they are
    return flat
