"""docs/metrics.md and the page explain the same symbols."""

from __future__ import annotations

import re
from pathlib import Path

from nexusbench.metrics.base import load_metrics
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


def test_every_subscripted_symbol_of_a_formula_is_explained() -> None:
    known = {name for names in SYMBOLS for name in names.split(", ")}
    for metric in load_metrics().values():
        for symbol in re.findall(r"\b[a-z]_[ij](?:,k)?\b", metric.formula.split(", y_j = ")[0]):
            assert symbol in known or symbol == "y_j", (metric.tag, symbol)
