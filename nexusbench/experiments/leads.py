"""Scores of ways to serve, and whether one's lead over another is more than chance.

Leads are paired by draw of the arrivals: both served the same requests at the same moments.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec

from nexusbench.experiments.candidates import Candidate
from nexusbench.metrics.summary import interval

# One-sided, as the two-sided 95 % interval excludes 0.
SIGNIFICANCE = 0.025


class Score(msgspec.Struct, frozen=True):
    """``attained``: percent of requests that keep every bound; ``strain``: how much of its bounds
    the mean request uses; ``kept``: whether the SLO as given is kept.
    """

    attained: float
    strain: float
    kept: bool


class Rated(msgspec.Struct, frozen=True):
    """A candidate and its scores, one per draw of its last round; ``round`` counts from 0."""

    candidate: Candidate
    scores: tuple[Score, ...]
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
    def order(self) -> tuple[float, float]:
        """Better first: who keeps more; of equals, who uses less of the bounds."""
        return -self.attained, self.strain


class Margin(msgspec.Struct, frozen=True):
    """One's lead over another on the draws that both have run: ``by`` says in what (``attained``,
    percentage points, or ``strain``, if both keep the same); ``chance`` is the one-sided p of a
    paired t test, None for one draw; ``sure`` where chance alone would seldom give such a lead.
    """

    by: str
    mean: float
    low: float | None
    high: float | None
    chance: float | None
    draws_won: int
    draws: int
    sure: bool


def lead(one: Rated, other: Rated, requests: int, significance: float = SIGNIFICANCE) -> Margin:
    """What ``one`` has over ``other`` on draws of so many ``requests``; ``significance`` is shared
    out by who looks repeatedly.
    """
    # Who was dropped early has the first of the draws only.
    pairs = list(zip(one.scores, other.scores, strict=False))
    # Attainment is a count: leads that happen to agree are no surer than to one request.
    by, least = "attained", 100.0 / requests
    leads = [mine.attained - theirs.attained for mine, theirs in pairs]
    if math.fsum(leads) == 0.0:
        by, least = "strain", 0.0
        leads = [theirs.strain - mine.strain for mine, theirs in pairs]
    mean = interval(leads)
    chance = _chance(leads, least)
    return Margin(
        by=by,
        mean=mean["mean"],
        low=mean["low"],
        high=mean["high"],
        chance=chance,
        draws_won=sum(value > 0 for value in leads),
        draws=len(leads),
        sure=chance is not None and chance < significance,
    )


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
