"""Errors of the simulated GPU over a table of partitions, by operator and half."""

from __future__ import annotations

import re
from collections.abc import Sequence

import msgspec
import numpy as np

from nexusbench.experiments.fidelity.errors import Errors, differences, errors
from nexusbench.experiments.fidelity.partitions.points import ABSOLUTE, WORK_RATE, PartitionPoint

PER_CENT, HUNDREDTHS = "percent", "work rate x 100"


class PartitionScore(msgspec.Struct, frozen=True):
    """The errors of an operator: in ``unit``, over all its rows and over either half of them."""

    operator: str
    unit: str
    all: Errors
    held_out: Errors | None
    fitted: Errors | None

    def of(self, half: str) -> tuple[str, Errors]:
        """The half that stands for ``half`` ('all', 'held-out', 'fitted'), and its errors: all rows
        where it is empty (a table of one curve has no second half).
        """
        found = {"held-out": self.held_out, "fitted": self.fitted}.get(half)
        return ("all", self.all) if found is None else (half, found)


def summarise(points: Sequence[PartitionPoint]) -> tuple[list[PartitionScore], set[str]]:
    """A score per operator and per group of operators, sorted by name; and the names of
    those that are another name for the rows of an earlier one.
    """
    rows: dict[str, list[PartitionPoint]] = {}
    for point in points:
        for name in dict.fromkeys((point.operator, *point.groups)):
            rows.setdefault(name, []).append(point)
    scores: list[PartitionScore] = []
    seen: set[tuple[int, ...]] = set()
    repeated: set[str] = set()
    for name, own in rows.items():
        all_rows = _errors(own)
        assert all_rows is not None
        scores.append(
            PartitionScore(
                name,
                HUNDREDTHS if own[0].unit == WORK_RATE else PER_CENT,
                all_rows,
                _errors([point for point in own if not point.fitted]),
                _errors([point for point in own if point.fitted]),
            )
        )
        identity = tuple(map(id, own))
        if identity in seen:
            repeated.add(name)
        seen.add(identity)
    return sorted(scores, key=_place), repeated


def _place(score: PartitionScore) -> tuple[bool, list[tuple[int, str]]]:
    """Times over all SMs before absolute ones; names by their words and numbers."""
    parts = re.findall(r"\d+|\D+", score.operator)
    order = [(int(part), "") if part.isdecimal() else (0, part) for part in parts]
    return score.operator.endswith(ABSOLUTE), order


def _errors(points: Sequence[PartitionPoint]) -> Errors | None:
    measured = np.array([point.measured for point in points])
    simulated = np.array([point.simulated for point in points])
    if points and points[0].unit == WORK_RATE:
        return differences(100.0 * simulated, 100.0 * measured)
    return errors(simulated, measured)
