"""The side-by-side table: which rows, which value is best, which is weak."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import groupby
from typing import NamedTuple

import msgspec

from nexusbench.comparison.level import rivals_in
from nexusbench.comparison.view import Column, Estimate, gpus_differ
from nexusbench.core.parts import unit_of
from nexusbench.metrics.base import FAMILIES, Family, Statistic, TablePlace, load_metrics

# Rows of a distribution that names no statistics of its own.
_STATISTICS: tuple[Statistic, ...] = ("mean", "p50", "p95", "p99")
# Measured in real time, which is no part of the event log: not a metric, but a row.
_DECISION_TIME = TablePlace(
    "host", 10, title="decision time, mean", unit="µs, real", statistics=("mean",), better="lower"
)
_SECONDS_FROM_MS = 1000.0


class TableCell(msgspec.Struct):
    """One value: ``text`` without marks; ``best`` of its row, ``weak`` for too few samples."""

    text: str
    best: bool = False
    weak: bool = False

    @property
    def marked(self) -> str:
        """The text with its marks."""
        return self.text + ("~" if self.weak else "") + ("*" if self.best else "")


class TableRow(msgspec.Struct):
    """A row: ``title`` is empty where it goes on with the metric above; ``last`` of its section."""

    title: str
    name: str
    cells: list[TableCell]
    last: bool = False


class _Shown(NamedTuple):
    """A metric with a row in the table; title, unit and statistics are filled in."""

    tag: str
    place: TablePlace
    whole: str  # the tag of the metric it is part of, or its own

    @property
    def title(self) -> str:
        """The title of its first row."""
        return self.place.title if self.whole == self.tag else f"  {self.place.title}"


def make_rows(columns: Sequence[Column]) -> list[TableRow]:
    """All rows that have a value, in the places that the metrics declare."""
    rows: list[TableRow] = []
    by_family = _shown()
    for _, group in groupby(by_family["latency"], lambda one: one.whole):
        _add_section(rows, [row for one in group for row in _latency_rows(columns, one)])
    for family in FAMILIES[1:]:
        made = [row for one in by_family[family] for row in _scalar_rows(columns, one)]
        if family == "throughput" and gpus_differ(columns):
            made.insert(
                0, TableRow("GPUs", "", [TableCell(str(column.gpus)) for column in columns])
            )
        if family == "splits":
            made = [_in_units(columns, row) for row in [*made, *_split_row(columns)]]
        _add_section(rows, made)
    return rows


def _shown() -> dict[Family, list[_Shown]]:
    """The metrics of each section in their declared order, each part below its whole."""
    places = {"decision_us": _DECISION_TIME}
    for tag, metric in load_metrics().items():
        if (place := metric.place) is not None:
            places[tag] = msgspec.structs.replace(
                place,
                title=place.title or metric.title,
                unit=metric.unit if place.unit is None else place.unit,
                statistics=place.statistics
                or (("value",) if metric.kind == "scalar" else _STATISTICS),
            )
    whole = {
        tag: place.part_of if place.part_of in places else tag for tag, place in places.items()
    }
    found: dict[Family, list[_Shown]] = {family: [] for family in FAMILIES}
    for tag in sorted(
        places,
        key=lambda tag: (
            places[whole[tag]].order, whole[tag], whole[tag] != tag, places[tag].order, tag,
        ),
    ):  # fmt: skip
        found[places[whole[tag]].family].append(_Shown(tag, places[tag], whole[tag]))
    return found


def _add_section(rows: list[TableRow], made: Sequence[TableRow]) -> None:
    rows += made
    if rows:
        rows[-1].last = True


def _latency_rows(columns: Sequence[Column], shown: _Shown) -> list[TableRow]:
    """A row for each statistic, named in the second column. The parts of a metric are shown in its
    unit, so that they add up as printed.
    """
    place = shown.place
    if place.statistics == ("value",):
        return _scalar_rows(columns, shown)
    unit, scale = place.unit, 1.0
    if unit == "ms" and _slow(columns, shown.whole):
        unit, scale = "s", 1e-3
    first = f"{shown.title}, {unit}"
    found = [
        _row(columns, shown, name, (first if name == place.statistics[0] else "", name), scale)
        for name in place.statistics
    ]
    return [row for row in found if row is not None]


def _slow(columns: Sequence[Column], tag: str) -> bool:
    means = [column.statistic(tag, "mean") for column in columns]
    return any(mean is not None and mean.value >= _SECONDS_FROM_MS for mean in means)


def _scalar_rows(columns: Sequence[Column], shown: _Shown) -> list[TableRow]:
    """A row for each statistic with the unit in the second column, and one per GPU if declared."""
    place, unit = shown.place, shown.place.unit or ""
    made = []
    for name in place.statistics:
        title = shown.title if len(place.statistics) == 1 else f"{shown.title}, {name}"
        found = [column.statistic(shown.tag, name) for column in columns]
        if not place.only_if_any or any(estimate and estimate.value for estimate in found):
            made.append(_row(columns, shown, name, (title, unit), found=found))
    if place.per_gpu and gpus_differ(columns):
        found = [column.per_gpu(shown.tag) for column in columns]
        made.append(_row(columns, shown, "value", ("  per GPU", unit), found=found))
    return [row for row in made if row is not None]


def _row(
    columns: Sequence[Column],
    shown: _Shown,
    statistic: Statistic,
    words: tuple[str, str],
    scale: float = 1.0,
    found: Sequence[Estimate | None] | None = None,
) -> TableRow | None:
    """The row of one statistic, or of other values ``found`` of its metric; None where there are
    none. ``words`` are its title and the text of the second column.
    """
    tag = shown.tag
    if found is None:
        found = [column.statistic(tag, statistic) for column in columns]
    known = [estimate.value * scale for estimate in found if estimate is not None]
    if not known:
        return None
    places = min(1, decimals(known)) if words[1].startswith("%") else decimals(known)
    cells = [
        TableCell("-" if e is None else _text(e, scale, places), weak=column.weak(tag, statistic))
        for column, e in zip(columns, found, strict=True)
    ]
    declared = next((c.entry(tag)["direction"] for c in columns if c.entry(tag)), "none")
    direction: str = shown.place.better or declared
    rivals = rivals_in(columns, tag, found, less=direction == "lower")
    _mark_best(rivals, columns, cells, found, direction)
    return TableRow(*words, cells)


def _in_units(columns: Sequence[Column], row: TableRow) -> TableRow:
    """The row with its ``SMs`` called what they are on this device, if all columns agree."""
    units = {unit_of(str(column.first.resolved.get("device"))) for column in columns}
    if len(units) == 1:
        row.title = row.title.replace("SMs", units.pop())
    return row


def _split_row(columns: Sequence[Column]) -> list[TableRow]:
    found = [column.split_share() for column in columns]
    if not any(share is not None and "/" in share[0] for share in found):
        return []
    texts = ["-" if share is None else f"{share[0]}: {share[1]:.3g} %" for share in found]
    return [TableRow("split used longest", "% of launched", [TableCell(text) for text in texts])]


def decimals(values: Sequence[float]) -> int:
    """Decimal places that give the smallest value three digits, and the largest not too many."""
    sizes = [abs(value) for value in values if value]
    if all(value == int(value) for value in values):
        return 0
    places = min(3, max(0, 2 - math.floor(math.log10(min(sizes)))))
    return min(places, 1 if max(sizes) >= 1000 else 2 if max(sizes) >= 10 else 3)


def _text(estimate: Estimate, scale: float, places: int) -> str:
    text = f"{estimate.value * scale:,.{places}f}"
    if estimate.half is not None:
        text += f" ±{estimate.half * scale:,.{places}f}"
    return text


def _mark_best(
    allowed: Sequence[Column],
    columns: Sequence[Column],
    cells: list[TableCell],
    found: Sequence[Estimate | None],
    direction: str,
) -> None:
    """Mark the best of a row and all that print the same; where all print the same, none.

    A run that was cut short is never best, nor, where rejections improve the value, one that
    rejected more requests: its numbers are of another set of requests.
    """
    rivals = [
        (estimate.value, cell)
        for column, estimate, cell in zip(columns, found, cells, strict=True)
        if estimate is not None and column.complete and column in allowed
    ]
    if direction == "none" or len(rivals) < 2:
        return
    choose = min if direction == "lower" else max
    _, best = choose(rivals, key=lambda rival: rival[0])
    shown = best.text.split(" ")[0]
    same = [cell for _, cell in rivals if cell.text.split(" ")[0] == shown]
    if len(same) < len(rivals):
        for cell in same:
            cell.best = True
