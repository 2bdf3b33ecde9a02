"""The figures that decide: one tile each, a bar per run, so that a glance says what wins."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from nexusbench.comparison.level import is_level, rivals_in
from nexusbench.comparison.verdict import amount
from nexusbench.report.gather import PageColumn

# Title, tag, statistic, is less better; a tile without values is left out.
_TILES = (
    ("Mean TTFT", "ttft", "mean", True),
    ("p95 TTFT", "ttft", "p95", True),
    ("p99 TBT", "tbt", "p99", True),
    ("Output throughput", "output_throughput", "value", False),
    ("SLO attainment", "attainment", "value", False),
)


class Bar(msgspec.Struct):
    """One run's value: ``percent`` of the longest bar."""

    label: str
    tone: int
    text: str
    percent: float
    best: bool
    weak: bool
    complete: bool


class Tile(msgspec.Struct):
    """One figure of all runs; ``hint`` says which way is better."""

    title: str
    hint: str
    bars: list[Bar]


def make_tiles(entries: Sequence[PageColumn]) -> list[Tile]:
    """All tiles that have a value."""
    tiles = [_tile(entries, *declared) for declared in _TILES]
    return [tile for tile in tiles if tile is not None]


def _tile(
    entries: Sequence[PageColumn], title: str, tag: str, name: str, less: bool
) -> Tile | None:
    found = [entry.column.statistic(tag, name) for entry in entries]
    known = [estimate for estimate in found if estimate is not None]
    if not known:
        return None
    longest = max(estimate.value for estimate in known) or 1.0
    allowed = rivals_in([entry.column for entry in entries], tag, found, less=less)
    rivals = [
        estimate
        for entry, estimate in zip(entries, found, strict=True)
        if estimate is not None and entry.column.complete and entry.column in allowed
    ]
    choose = min if less else max
    best = choose(rivals, key=lambda estimate: estimate.value) if len(rivals) > 1 else None
    # None wins where all are level: then no bar is marked.
    if best is not None and all(is_level(best, rival) for rival in rivals):
        best = None
    bars = []
    for entry, estimate in zip(entries, found, strict=True):
        if estimate is None:
            bars.append(Bar(entry.column.label, entry.tone, "no value", 0.0, False, False, True))
            continue
        text = amount(estimate.value, tag)
        if estimate.half is not None:
            text += f" ± {amount(estimate.half, tag).split(' ')[0]}"
        able = entry.column.complete and entry.column in allowed
        wins = best is not None and able and is_level(best, estimate)
        bars.append(
            Bar(
                entry.column.label, entry.tone, text, round(100 * estimate.value / longest, 2),
                wins, entry.column.weak(tag, name), entry.column.complete,
            )
        )  # fmt: skip
    return Tile(title, "lower is better" if less else "higher is better", bars)
