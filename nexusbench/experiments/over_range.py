"""Does what a simulation says hold over the ranges of the contested constants? One answer for maps,
claims, capacities and advice.

A statement ("splitting pays here", "the paper's number is found") is looked at with the constants
in use, with each at its ends, and with all of them drawn.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal

import msgspec

from nexusbench.experiments.ranges import Place

RangeOutcome = Literal["holds", "hangs", "fails", "open"]
_SEVERAL = "several together"


class RangeReading(msgspec.Struct, frozen=True):
    """A statement at one place of the ranges: what was found, and whether that bears it out."""

    points: float
    held: bool


class EndReading(msgspec.Struct, frozen=True):
    """The reading with ``constant`` at an end of its range, ``end``, instead of at ``used``."""

    constant: str
    used: float
    end: float
    reading: RangeReading


def at_end(place: Place, used: Mapping[str, float], reading: RangeReading) -> EndReading:
    """The reading at a place where one constant is not at its value in ``used``."""
    ((constant, value),) = place.values.items()
    return EndReading(constant, used[constant], value, reading)


class DrawnReading(msgspec.Struct, frozen=True):
    """The reading over all draws of the constants, and the points of each draw by itself."""

    reading: RangeReading
    each: tuple[float, ...]


class Turn(msgspec.Struct, frozen=True):
    """A constant at whose end a statement is another than in use. ``points`` are those there;
    ``turns_at`` is where they leave what the statement says, straight between the runs at the end
    and in use, None where they do not: the statement has become less sure.
    """

    constant: str
    used: float
    end: float
    points: float
    turns_at: float | None


class OverRange(msgspec.Struct, frozen=True, kw_only=True):
    """``verdict`` of a statement over the ranges.

    ``holds``: in use, at every end, and in the draws. ``fails``: nowhere, but perhaps in use (then
    ``hangs_on`` has every end). ``hangs``: on the constants of ``hangs_on``; without any, on
    several together, which the draws alone show. ``open``: it is open in use. ``low`` and ``high``
    are the points in use and at the ends; ``draws`` those of the draws together, ``least`` and
    ``most`` of one by itself, None where none was made.
    """

    verdict: RangeOutcome
    hangs_on: tuple[Turn, ...] = ()
    low: float
    high: float
    draws: float | None = None
    least: float | None = None
    most: float | None = None


def over_range(
    used: RangeReading | None,
    ends: Sequence[EndReading],
    drawn: DrawnReading | None,
    says: tuple[float, float],
    *,
    points: float = math.nan,
) -> OverRange:
    """The verdict from a statement's readings. ``used`` is the one in use, None where that is open
    (then ``points`` says what was found); ``says`` are the points between which the statement lies.
    """
    found = points if used is None else used.points
    seen = [found, *(end.reading.points for end in ends)]
    each = () if drawn is None else drawn.each
    described = OverRange(
        verdict="open", low=min(seen), high=max(seen),
        draws=None if drawn is None else drawn.reading.points,
        least=min(each, default=None), most=max(each, default=None),
    )  # fmt: skip
    if used is None:
        return described
    elsewhere = [end.reading.held for end in ends]
    if drawn is not None:
        elsewhere.append(drawn.reading.held)
    verdict: RangeOutcome = "hangs"
    if used.held and all(elsewhere):
        verdict = "holds"
    elif not any(elsewhere) and (not used.held or _on_both_sides(ends)):
        verdict = "fails"
    turns = [_turn(used, end, says) for end in ends if end.reading.held != used.held]
    return msgspec.structs.replace(described, verdict=verdict, hangs_on=tuple(turns))


def _on_both_sides(ends: Sequence[EndReading]) -> bool:
    """Whether ends lie below and above what is in use. Else that is an end itself, where a
    statement holds that is lost everywhere else.
    """
    below = [end for end in ends if end.end < end.used]
    return 0 < len(below) < len(ends)


def _turn(used: RangeReading, end: EndReading, says: tuple[float, float]) -> Turn:
    there = end.reading.points
    at = None
    for bound in says:
        before, behind = used.points - bound, there - bound
        if math.isfinite(bound) and math.isfinite(behind) and before * behind < 0:
            at = end.used + (end.end - end.used) * before / (before - behind)
    return Turn(end.constant, end.used, end.end, there, at)


def constants_of(found: OverRange) -> list[str]:
    """The constants that a statement hangs on, each once."""
    if found.verdict != "hangs":
        return []
    return list(dict.fromkeys(turn.constant for turn in found.hangs_on)) or [_SEVERAL]


def range_words(found: OverRange, shown: Callable[[float], str]) -> str:
    """The verdict in words: ``hangs on turn_taking (turns at 0.62)``; ``shown`` writes points."""
    if found.verdict == "open":
        return "open"
    if found.verdict != "hangs":
        return f"{found.verdict} over the range"
    return f"hangs on {', '.join(_turns(found, shown)) or _together(found, shown)}"


def _turns(found: OverRange, shown: Callable[[float], str]) -> Iterable[str]:
    for turn in found.hangs_on:
        if turn.turns_at is None:
            yield f"{turn.constant} ({shown(turn.points)} at {turn.end:.3g})"
        else:
            yield f"{turn.constant} (turns at {turn.turns_at:.3g})"


def _together(found: OverRange, shown: Callable[[float], str]) -> str:
    if found.least is None or found.most is None:
        return _SEVERAL
    return f"{_SEVERAL} ({shown(found.least)} to {shown(found.most)} in the draws)"
