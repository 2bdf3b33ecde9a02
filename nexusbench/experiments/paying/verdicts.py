"""Does it pay? Two sides of a cell, paired by draw, and what an interval allows to be said."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

import msgspec

from nexusbench.comparison.load import Load, worst_load
from nexusbench.experiments.paying.measuring import MapRow
from nexusbench.experiments.paying.points import MapPoint, Survey, constant_at
from nexusbench.experiments.paying.spec import Kind, MapSpec, MapSystem
from nexusbench.metrics.summary import interval

Outcome = Literal["pays", "costs", "no difference", "open"]
Metric = Literal["attained", "ttft_mean", "ttft_p95", "tbt_p99"]
# Differences of no consequence: points of attainment, percent of a latency.
MARGINS = {"attained": 2.0, "ttft_mean": 5.0, "ttft_p95": 5.0, "tbt_p99": 5.0}


class MapCell(msgspec.Struct, frozen=True, kw_only=True):
    """A place of the map: of ``seeds`` draws; ``constant`` is the one made neutral, or a place on
    the ranges, or DRAWN; only ``systems`` take part, none for all that were run.
    """

    gpu: str
    traffic: str
    load: float
    slo: str
    seeds: int
    constant: str = ""
    systems: tuple[str, ...] = ()


class DrawsOfSystem(msgspec.Struct, frozen=True):
    """The rows of one system over the draws."""

    name: str
    rows: tuple[MapRow, ...]

    def attained(self, slo: str) -> float:
        """Percent of the requests that keep ``slo``, mean over the draws."""
        return math.fsum(row.attained[slo] for row in self.rows) / len(self.rows)

    @property
    def load(self) -> Load | None:
        """That of the draw with the largest backlog where requests arrive faster than they leave;
        None where they do in no draw.
        """
        return worst_load(row.load for row in self.rows)


class MapVerdict(msgspec.Struct, frozen=True, kw_only=True):
    """``mean`` of the paired differences, with its 95 % interval: points of attainment, or percent
    of the other side's latency. ``mine`` and ``other`` are means over draws.

    ``pays`` and ``costs``: the interval excludes 0. ``no difference``: it lies within the margin.
    ``open``: it does neither.
    """

    outcome: Outcome
    mean: float
    low: float
    high: float
    mine: float
    other: float


def side(survey: Survey, cell: MapCell, system: MapSystem) -> DrawsOfSystem | None:
    """The rows of one system; None if one of them failed or is missing."""
    rows = []
    for seed in range(cell.seeds):
        constant = constant_at(cell.constant, seed)
        if system.kind == "whole" and survey.spares_one_batch(cell.gpu, constant):
            constant = ""  # what no constant touches was not run again
        point = MapPoint(
            gpu=cell.gpu, traffic=cell.traffic, load=cell.load, system=system.name,
            slo=cell.slo if system.told_slo else "", seed=seed, constant=constant,
        )  # fmt: skip
        row = survey.rows.get(point)
        if row is None or row.error:
            return None
        rows.append(row)
    return DrawsOfSystem(system.name, tuple(rows))


def best(survey: Survey, cell: MapCell, kind: Kind) -> DrawsOfSystem | None:
    """The member of a kind with the highest attainment over the draws of the cell; among equals the
    one with the smaller TTFT.

    That is hindsight: it is chosen by the draws that it is then judged on. Both sides of a question
    about kinds are chosen so.
    """
    members = [
        side(survey, cell, system)
        for system in survey.spec.systems
        if system.kind == kind and (not cell.systems or system.name in cell.systems)
    ]
    found = [member for member in members if member is not None]

    def standing(member: DrawsOfSystem) -> tuple[float, float]:
        return member.attained(cell.slo), -math.fsum(row.ttft_mean for row in member.rows)

    return max(found, key=standing, default=None)


def differences(
    mine: DrawsOfSystem, other: DrawsOfSystem, metric: Metric, slo: str = ""
) -> list[float]:
    """``mine`` less ``other``, draw by draw: points, or percent of a latency."""
    a = [_value(row, metric, slo) for row in mine.rows]
    b = [_value(row, metric, slo) for row in other.rows]
    if metric == "attained":
        return [x - y for x, y in zip(a, b, strict=True)]
    return [100.0 * (x / y - 1.0) if y else math.inf for x, y in zip(a, b, strict=True)]


def judge(mine: DrawsOfSystem, other: DrawsOfSystem, metric: Metric, slo: str = "") -> MapVerdict:
    """``mine`` against ``other``, draw by draw."""
    a = [_value(row, metric, slo) for row in mine.rows]
    b = [_value(row, metric, slo) for row in other.rows]
    means = (math.fsum(a) / len(a), math.fsum(b) / len(b))
    paired = differences(mine, other, metric, slo)
    if not all(map(math.isfinite, paired)):
        return MapVerdict(
            outcome="open", mean=math.nan, low=-math.inf, high=math.inf, mine=means[0],
            other=means[1],
        )  # fmt: skip
    found = interval(paired)
    low = -math.inf if found.low is None else found.low
    high = math.inf if found.high is None else found.high
    margin = MARGINS[metric]
    better = 1 if metric == "attained" else -1
    outcome: Outcome = "open"
    if -margin <= low and high <= margin:
        outcome = "no difference"
    elif low > 0 or high < 0:
        outcome = "pays" if (low > 0) == (better > 0) else "costs"
    return MapVerdict(
        outcome=outcome, mean=found.mean, low=low, high=high, mine=means[0], other=means[1]
    )


def _value(row: MapRow, metric: Metric, slo: str) -> float:
    return row.attained[slo] if metric == "attained" else float(getattr(row, metric))


# What is asked of every cell: title, and the two sides.
QUESTIONS = ("policy", "ordered", "split", "confined")
_AGAINST: Mapping[str, Kind] = {"split": "whole", "confined": "streams"}


def sides(
    survey: Survey, cell: MapCell, question: str
) -> tuple[DrawsOfSystem, DrawsOfSystem] | None:
    """The two sides of a question.

    ``policy``: the published one against the reference; ``ordered``: against the reference with its
    order of prompts; ``split``: the best split against the best that
    runs one batch at a time; ``confined``: the best split against two streams on all SMs.
    """
    about = survey.spec.about
    mine: DrawsOfSystem | None
    other: DrawsOfSystem | None
    if question in _AGAINST:
        mine, other = best(survey, cell, "split"), best(survey, cell, _AGAINST[question])
    else:
        mine = side(survey, cell, _named(survey.spec, about.policy))
        against = about.reference if question == "policy" else about.ordered
        other = side(survey, cell, _named(survey.spec, against))
    return None if mine is None or other is None else (mine, other)


def verdict(
    survey: Survey, cell: MapCell, question: str, metric: Metric = "attained"
) -> MapVerdict | None:
    """The answer to a question in a cell; None if a side has no rows."""
    found = sides(survey, cell, question)
    return None if found is None else judge(*found, metric, cell.slo)


def _named(spec: MapSpec, name: str) -> MapSystem:
    return next(system for system in spec.systems if system.name == name)
