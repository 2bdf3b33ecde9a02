"""A page taken apart: its texts, its scripts, its figures, and what in it could act."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from typing import Any


class Outline(HTMLParser):
    """Text by tag, scripts apart, and every attribute that could fetch something."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.texts: list[str] = []
        self.scripts: list[str] = []
        self.fetching: list[tuple[str, str]] = []
        self.handlers: list[str] = []
        self._in_script = False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._in_script = tag in ("script", "style")
        if tag == "script":
            self.scripts.append("")
        self.fetching += [
            (tag, value or "") for name, value in attrs if name in ("src", "href", "action")
        ]
        self.handlers += [name for name, _ in attrs if name.startswith("on")]

    def handle_endtag(self, tag: str) -> None:
        self._in_script = False

    def handle_data(self, data: str) -> None:
        if not self._in_script:
            self.texts.append(data)
        elif self.scripts:
            self.scripts[-1] += data


def figures_of(page: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="figures">(.*?)</script>', page, re.S)
    assert found is not None
    figures: dict[str, Any] = json.loads(found.group(1))
    return figures
