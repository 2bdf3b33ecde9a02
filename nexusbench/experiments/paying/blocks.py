"""The blocks of docs/when-it-pays.md that are made of a survey, by name."""

from __future__ import annotations

from collections.abc import Callable

from nexusbench.experiments.paying.points import Survey
from nexusbench.experiments.paying.range_tables import (
    contested,
    range_counts,
    range_verdicts,
    sensitivity,
)
from nexusbench.experiments.paying.tables import (
    attainment_map,
    constants,
    counts,
    every_system,
    grid,
    hardware,
    latencies,
    picked,
    reach,
    systems,
)
from nexusbench.experiments.paying.verdicts import QUESTIONS

BLOCKS: dict[str, Callable[[Survey], str]] = {
    "counts": counts,
    "hardware": hardware,
    "systems": systems,
    "every-system": every_system,
    "picked": picked,
    "reach": reach,
    "ranges counts": range_counts,
    "ranges contested": contested,
    "ranges figure": sensitivity,
    **{f"map {q}": lambda survey, q=q: attainment_map(survey, q) for q in QUESTIONS},  # type: ignore[misc]
    **{f"latencies {q}": lambda survey, q=q: latencies(survey, q) for q in QUESTIONS},  # type: ignore[misc]
    **{f"grid {q}": lambda survey, q=q: grid(survey, q) for q in QUESTIONS},  # type: ignore[misc]
    **{f"ranges {q}": lambda survey, q=q: range_verdicts(survey, q) for q in QUESTIONS},  # type: ignore[misc]
    **{f"constants {q}": lambda survey, q=q: constants(survey, q) for q in QUESTIONS},  # type: ignore[misc]
}
