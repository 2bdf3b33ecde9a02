"""Help as a terminal should show it: paragraphs that fill its width, brackets that are brackets."""

from __future__ import annotations

from typing import Any


def tidy(command: Any) -> None:
    """Prepare the help texts of a Click ``command`` and of all below it.

    Typer keeps the line breaks of the source, and takes ``[sim]`` for markup of Rich, which then
    shows nothing at all.
    """
    command.help = _plain(command.help)
    for parameter in command.params:
        parameter.help = _plain(getattr(parameter, "help", None))
    for below in getattr(command, "commands", {}).values():
        tidy(below)


def _plain(text: str | None) -> str | None:
    if text is None:
        return None
    paragraphs = (" ".join(paragraph.split()) for paragraph in text.split("\n\n"))
    return "\n\n".join(paragraphs).replace("[", "\\[")
