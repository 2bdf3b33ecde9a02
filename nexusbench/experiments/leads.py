"""Scores of ways to serve, and whether one's lead over another is more than chance.

Leads are paired by draw of the arrivals: both served the same requests at the same moments.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec

from nexusbench.comparison.load import Load, worst_load
from nexusbench.experiments.candidates import Candidate
from nexusbench.metrics.summary import interval

# One-sided, as the two-sided 95 % interval excludes 0.
SIGNIFICANCE = 0.025


class DrawScore(msgspec.Struct, frozen=True):
    """One draw. ``attained``: percent of requests that keep every bound; ``strain``: how much of
    its bounds the mean request uses, 0 to 2; ``kept``: whether the SLO as given is kept. ``load``
    is no part of how well a draw was served.
    """

    attained: float
    strain: float
    kept: bool
    load: Load | None = None

    @property
    def points(self) -> float:
        """What is compared: percent of requests, less a point for using all of the bounds. So a
        request in a thousand does not outweigh that all others are twice as fast.
        """
        return self.attained - self.strain


class Rated(msgspec.Struct, frozen=True):
    """A candidate and its scores, one per draw of its last round; ``round`` counts from 0."""

    candidate: Candidate
    scores: tuple[DrawScore, ...]
    round: int

    @property
    def attained(self) -> float:
        """Mean over draws, percent."""
        return math.fsum(score.attained for score in self.scores) / len(self.scores)

    @property
    def strain(self) -> float:
        """Mean over draws."""
        return math.fsum(score.strain for score in self.scores) / len(self.scores)

    @property
    def points(self) -> float:
        """Mean over draws."""
        return math.fsum(score.points for score in self.scores) / len(self.scores)

    @property
    def load(self) -> Load | None:
        """That of the draw with the largest backlog where requests arrive faster than they leave;
        None where they do in no draw.
        """
        return worst_load(score.load for score in self.scores)


class Margin(msgspec.Struct, frozen=True):
    """One's lead over another in :attr:`Score.points` on the draws that both have run; ``chance``
    is the one-sided p of a paired t test, None for one draw; ``sure`` where chance alone would
    seldom give such a lead.
    """

    mean: float
    low: float | None
    high: float | None
    chance: float | None
    draws_won: int
    draws: int
    sure: bool


def lead(one: Rated, other: Rated, requests: int, significance: float = SIGNIFICANCE) -> Margin:
    """What ``one`` has over ``other`` on draws of so many ``requests``; ``significance`` is shared
    out among repeated looks.
    """
    # What was dropped early has the first of the draws only.
    pairs = list(zip(one.scores, other.scores, strict=False))
    leads = [mine.points - theirs.points for mine, theirs in pairs]
    # Attainment is a count: leads that happen to agree are no surer than to one request.
    counted = any(mine.attained != theirs.attained for mine, theirs in pairs)
    chance = _chance(leads, 100.0 / requests if counted else 0.0)
    mean = interval(leads)
    return Margin(
        mean=mean.mean,
        low=mean.low,
        high=mean.high,
        chance=chance,
        draws_won=sum(value > 0 for value in leads),
        draws=len(leads),
        sure=chance is not None and chance < significance,
    )


def twins(one: Rated, other: Rated) -> bool:
    """Whether two served every draw the same: then no draw will tell them apart."""
    served = [[(s.attained, s.strain, s.kept) for s in each.scores] for each in (one, other)]
    return len(one.scores) > 1 and served[0] == served[1]


def _chance(leads: Sequence[float], least: float) -> float | None:
    """One-sided p of a paired t test: how likely such leads are if there is none. Their spread
    counts as ``least`` at least.
    """
    from scipy.special import stdtr

    count = len(leads)
    if count < 2:
        return None
    mean = math.fsum(leads) / count
    found = math.sqrt(math.fsum((value - mean) ** 2 for value in leads) / (count - 1))
    spread = max(least, found)
    if spread == 0.0:
        return 0.0 if mean > 0 else 1.0
    return float(stdtr(count - 1, -mean / spread * math.sqrt(count)))
