"""The verdicts of a map over the ranges of the contested constants."""

from __future__ import annotations

import math

import msgspec

from nexusbench.experiments.over_range import (
    DrawnReading,
    OverRange,
    RangeReading,
    at_end,
    over_range,
)
from nexusbench.experiments.paying.points import DRAWN, Survey
from nexusbench.experiments.paying.verdicts import (
    MARGINS,
    MapCell,
    MapVerdict,
    differences,
    judge,
    sides,
    verdict,
)

_MARGIN = MARGINS["attained"]


def was_ranged(survey: Survey, cell: MapCell) -> bool:
    """Whether the cell was run over the ranges of its GPU."""
    asked = survey.spec.ranges
    ready = {traffic.name for traffic in survey.spec.traffic if traffic.trace}
    return (
        asked is not None
        and cell.gpu in survey.places
        and cell.load in asked.loads
        and cell.traffic in ready
    )


def in_use_over_seeds(survey: Survey, cell: MapCell) -> MapCell:
    """The cell with the systems, and as many draws of the arrivals, that its ends were run with."""
    asked = survey.spec.ranges
    if asked is None:
        return cell
    return msgspec.structs.replace(cell, seeds=asked.seeds, systems=asked.systems)


def over_ranges(survey: Survey, cell: MapCell, question: str) -> OverRange | None:
    """Whether the verdict of a cell holds over the ranges; None where it was not run over them, or
    a run of it failed.
    """
    if not was_ranged(survey, cell):
        return None
    here = in_use_over_seeds(survey, cell)
    base, places = verdict(survey, here, question), survey.places[cell.gpu]
    if base is None:
        return None
    found = []
    for place in places.ends:
        other = verdict(survey, msgspec.structs.replace(here, constant=place.name), question)
        if other is None:
            return None
        found.append(at_end(place, places.used, RangeReading(other.mean, still(base, other))))
    drawn = None
    if places.draws:
        drawn = _drawn(survey, cell, question, base, len(places.draws))
        if drawn is None:
            return None
    used = None if base.outcome == "open" else RangeReading(base.mean, held=True)
    return over_range(used, found, drawn, _says(base), points=base.mean)


def _says(base: MapVerdict) -> tuple[float, float]:
    """Between which points a verdict lies."""
    if base.outcome == "no difference":
        return (-_MARGIN, _MARGIN)
    return (0.0, math.inf) if base.mean > 0 else (-math.inf, 0.0)


def still(base: MapVerdict, other: MapVerdict) -> bool:
    """Whether a sure verdict is still there.

    One that is open elsewhere has been lost if the points have passed out of what it says, or have
    moved towards there by more than the margin: one that only becomes larger and less sure has not.
    """
    low, high = _says(base)
    if other.outcome != "open":
        return other.outcome == base.outcome
    if not low <= other.mean <= high:
        return False
    if base.outcome == "no difference":
        return True
    return abs(other.mean) >= abs(base.mean) - _MARGIN


def _drawn(
    survey: Survey, cell: MapCell, question: str, base: MapVerdict, count: int
) -> DrawnReading | None:
    """Over the draws. A single one is of one draw of the arrivals, too: it may be the margin beyond
    what the verdict says.
    """
    place = msgspec.structs.replace(
        in_use_over_seeds(survey, cell), seeds=count, constant=DRAWN
    )  # fmt: skip
    both = sides(survey, place, question)
    if both is None:
        return None
    other = judge(*both, "attained", cell.slo)
    each = differences(*both, "attained", cell.slo)
    low, high = _says(base)
    inside = all(low - _MARGIN <= one <= high + _MARGIN for one in each)
    return DrawnReading(RangeReading(other.mean, inside and still(base, other)), tuple(each))
