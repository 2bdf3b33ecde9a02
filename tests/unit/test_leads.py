"""Whether one way to serve leads another: paired by draw, and never surer than a count allows."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import pytest

from nexusbench.comparison.load import Load
from nexusbench.core.config import RunConfig
from nexusbench.experiments.advise import Question, more_draws
from nexusbench.experiments.candidates import Candidate
from nexusbench.experiments.leads import DrawScore, Rated, lead, twins
from nexusbench.metrics.slo import parse_slo


def rated(attained: Sequence[float], strain: Sequence[float] | None = None) -> Rated:
    used = strain or [0.5] * len(attained)
    scores = tuple(DrawScore(*pair, kept=True) for pair in zip(attained, used, strict=True))
    return Rated(Candidate("vllm", "whole", 512), scores, 0)


def test_a_lead_in_every_draw_is_sure() -> None:
    found = lead(rated([90.0, 92.0, 91.0, 90.5]), rated([80.0, 83.0, 80.0, 80.5]), 300)
    assert found.sure
    assert found.mean == pytest.approx(10.0, abs=0.3)
    assert (found.draws_won, found.draws) == (4, 4)
    assert found.low is not None
    assert found.low > 0


def test_draws_are_paired() -> None:
    # Draws differ by far more than the two do; unpaired nothing could be seen.
    base = [20.0, 60.0, 95.0, 40.0, 75.0]
    found = lead(
        rated([v + d for v, d in zip(base, (1, 1.4, 0.8, 1.1, 0.9), strict=True)]), rated(base), 300
    )
    assert found.sure


def test_a_lead_that_changes_sides_is_not_sure() -> None:
    assert not lead(rated([90.0, 80.0, 95.0]), rated([80.0, 90.0, 90.0]), 300).sure


def test_one_request_more_in_each_draw_is_not_sure() -> None:
    # A third of a point is one of 300 requests. That the leads agree exactly says little.
    third = 100.0 / 300
    few = lead(rated([90.0 + third] * 5), rated([90.0] * 5), 300)
    assert few.chance == pytest.approx(0.0445, abs=0.001)
    assert not few.sure
    assert lead(rated([100.0] * 5), rated([0.0] * 5), 300).sure


def test_equals_are_told_apart_by_how_much_of_the_bounds_they_use() -> None:
    found = lead(rated([100.0] * 3, [0.31, 0.30, 0.32]), rated([100.0] * 3, [0.4, 0.41, 0.42]), 300)
    assert found.mean == pytest.approx(0.1)
    assert found.sure
    assert not lead(rated([100.0] * 3), rated([100.0] * 3), 300).sure


def test_one_request_in_thousands_does_not_outweigh_the_pace_of_all() -> None:
    quick, slow = rated([99.97] * 5, [0.45] * 5), rated([100.0] * 5, [0.77] * 5)
    assert quick.points > slow.points
    # But a request in a hundred does.
    assert rated([98.9] * 5, [0.0] * 5).points < rated([100.0] * 5, [1.0] * 5).points


def test_twins_served_every_draw_the_same() -> None:
    assert twins(rated([90.0, 91.0]), rated([90.0, 91.0]))
    assert not twins(rated([90.0, 91.0]), rated([91.0, 90.0]))
    assert not twins(rated([90.0]), rated([90.0]))
    crowded = Load(True, 9.0, 3.0, 30, 60, 60)
    one, other = rated([90.0, 91.0]), rated([90.0, 91.0])
    scores = tuple(msgspec.structs.replace(score, load=crowded) for score in one.scores)
    assert twins(msgspec.structs.replace(one, scores=scores), other)


def test_one_draw_says_nothing() -> None:
    found = lead(rated([100.0]), rated([0.0]), 300)
    assert found.chance is None
    assert not found.sure


def test_who_fell_behind_early_is_compared_on_the_draws_of_both() -> None:
    found = lead(rated([90.0, 91.0, 90.5, 10.0]), rated([80.0, 80.5, 81.0]), 300)
    assert found.draws == 3
    assert found.sure


def test_repeated_looks_ask_for_more() -> None:
    one, other = rated([90.0, 92.0, 90.0, 91.0]), rated([88.0, 89.0, 89.5, 88.0])
    found = lead(one, other, 300)
    assert found.chance is not None
    assert lead(one, other, 300, significance=2 * found.chance).sure
    assert not lead(one, other, 300, significance=found.chance / 2).sure


@pytest.mark.parametrize(
    ("seeds", "most", "added"),
    [
        ((0, 1, 2), 0, []),
        ((0, 1, 2), 3, []),
        ((0, 1, 2), 8, [range(3, 6), range(6, 8)]),
        ((7,), 3, [range(8, 9), range(9, 10)]),
    ],
)
def test_the_race_adds_draws_that_nobody_has_seen(
    seeds: tuple[int, ...], most: int, added: list[range]
) -> None:
    question = Question(
        config=RunConfig(trace="t"), slo=parse_slo(["ttft:1"]), candidates=(), requests=9,
        seeds=seeds, most_draws=most,
    )  # fmt: skip
    assert more_draws(question) == added
