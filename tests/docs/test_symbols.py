"""docs/metrics.md and the page explain the same symbols."""

from __future__ import annotations

import re
from pathlib import Path

from nexusbench.metrics.symbols import SYMBOLS

TEXT = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text().split("## Rules")[0]


def plain(text: str) -> str:
    return text.replace("`", "").replace("*", "").replace("\\|", "|")


def test_symbols_are_those_of_the_document() -> None:
    rows = dict(re.findall(r"^\| (`.*?) \| (.*) \|$", TEXT, re.MULTILINE))
    assert {plain(name): plain(meaning) for name, meaning in rows.items()} == {
        name: meaning for name, meaning in SYMBOLS.items() if name not in ("T", "B", "K", "R")
    }
    assert all(f"`{name}`" in TEXT for name in ("T", "B", "K", "R"))
