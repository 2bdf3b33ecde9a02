"""What holds over the ranges of the contested constants, as Markdown tables."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from nexusbench.experiments.over_range import (
    OverRange,
    RangeOutcome,
    constants_of,
    range_words,
)
from nexusbench.experiments.paying.points import Survey
from nexusbench.experiments.paying.ranged import in_use_over_seeds, over_ranges
from nexusbench.experiments.paying.tables import (
    MARKS,
    NOTHING,
    cells_of,
    question_title,
    ready_traffic,
    signed,
    table,
)
from nexusbench.experiments.paying.verdicts import QUESTIONS, MapCell, MapVerdict, verdict

_NONE = "This survey has no runs over the ranges.\n"
_DRAWS_ALONE = (
    "\nConstants were drawn together, not moved one by one: which of them a verdict hangs on is "
    "not told, and none can be found to fail.\n"
)
_OUTCOMES: tuple[RangeOutcome, ...] = ("holds", "hangs", "fails", "open")


def ranged_cells(survey: Survey, question: str) -> Iterator[tuple[MapCell, MapVerdict, OverRange]]:
    """The cells that were run over the ranges, by GPU: the verdict in use, and that over them."""
    for gpu in survey.spec.about.gpus:
        for traffic in ready_traffic(survey):
            for cell in (cell for cell in cells_of(survey, traffic) if cell.gpu == gpu):
                found = over_ranges(survey, cell, question)
                base = verdict(survey, in_use_over_seeds(survey, cell), question)
                if found is not None and base is not None:
                    yield cell, base, found


def range_counts(survey: Survey) -> str:
    """Per comparison: how many cells hold over the ranges, hang on a constant, fail, are open."""
    rows = []
    for question in QUESTIONS:
        found = [over for _, _, over in ranged_cells(survey, question)]
        if not found:
            continue
        number = Counter(over.verdict for over in found)
        names = Counter(name for over in found for name in constants_of(over))
        text = ", ".join(f"{name} ({count})" for name, count in names.most_common())
        rows.append((
            question_title(survey, question), *(f"{number[o]}" for o in _OUTCOMES),
            text or NOTHING,
        ))  # fmt: skip
    header = ("comparison", "hold", "hang on a constant", "fail", "open in use", "hang on")
    if not rows:
        return _NONE
    return table(header, rows) + ("" if _has_ends(survey) else _DRAWS_ALONE)


def range_verdicts(survey: Survey, question: str) -> str:
    """Each verdict, the points over the ranges, and what becomes of it."""
    rows = []
    for cell, base, over in ranged_cells(survey, question):
        drawn = NOTHING
        if over.draws is not None and over.least is not None and over.most is not None:
            drawn = f"{signed(over.draws)} ({signed(over.least)} to {signed(over.most)})"
        rows.append((
            cell.gpu, cell.traffic, cell.slo, f"{cell.load:g} %",
            f"{MARKS[base.outcome]} {signed(base.mean)}",
            f"{signed(over.low)} to {signed(over.high)}" if _has_ends(survey) else NOTHING,
            drawn, range_words(over, signed),
        ))  # fmt: skip
    header = ("GPU", "traffic", "SLO", "load", "in use", "at the ends", "in the draws", "verdict")
    return table(header, rows) if rows else _NONE


def contested(survey: Survey) -> str:
    """The constants that were moved, per GPU: in use, and between which values."""
    rows = []
    for gpu, places in survey.places.items():
        texts = []
        for key, used in places.used.items():
            tried = [place.values.get(key, used) for place in (*places.ends, *places.draws)]
            texts.append(f"`{key}` {used:g} ({min(used, *tried):g} to {max(used, *tried):g})")
        rows.append((gpu, "; ".join(texts)))
    return table(("GPU", "in use (moved between)"), rows) if rows else _NONE


def _has_ends(survey: Survey) -> bool:
    """Whether constants were moved one by one, to the ends of their ranges."""
    return any(places.ends for places in survey.places.values())


def sensitivity(survey: Survey) -> str:
    """The figure of points over each range, where the survey has one."""
    if not survey.places:
        return _NONE
    if not _has_ends(survey):
        return "No figure: no constant was moved to the ends of its range.\n"
    return "![Points over the range of each constant](../results/when-it-pays/sensitivity.svg)\n"
