"""Text of users on a page: inert in HTML, in plots, and in the JSON inside a script element."""

from __future__ import annotations

import re
import unicodedata
from typing import Any

import msgspec

# Not the spaces that keep a number and its unit together.
_BLANKS = re.compile(r"[ \t\r\n\f\v]+")
_MOST = 200  # characters of one name
# Controls, what turns or joins text, halves and private signs, ends of lines and paragraphs.
_REPLACED = ("Cc", "Cf", "Cs", "Co", "Zl", "Zp")
# What could end a script element or begin a comment in it, and what old parsers take for newlines.
_UNSAFE = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}


def plain(text: object, most: int = _MOST) -> str:
    """One line of printable text: control characters and turned reading directions are replaced."""
    shown = _printable(_BLANKS.sub(" ", str(text)).strip(" "))
    return shown if len(shown) <= most else shown[: most - 1] + "…"


def plain_lines(text: str) -> str:
    """As :func:`plain`, for text of several lines."""
    return "\n".join(_printable(line) for line in text.split("\n"))


def _printable(line: str) -> str:
    return "".join("\ufffd" if unicodedata.category(sign) in _REPLACED else sign for sign in line)


def plot_text(text: object, most: int = 80) -> str:
    """For the plot library, which reads some HTML in every text: shown as it is typed."""
    shown = plain(text, most)
    for sign, entity in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;")):
        shown = shown.replace(sign, entity)
    # %{...} would be filled in by hover templates.
    return shown.replace("%{", "%\u200b{")


def script_json(document: Any) -> str:
    """JSON that can stand in a script element whatever its strings hold."""
    text = msgspec.json.encode(document).decode()
    for sign, escaped in _UNSAFE.items():
        text = text.replace(sign, escaped)
    return text
