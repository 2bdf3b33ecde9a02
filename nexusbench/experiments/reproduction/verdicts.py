"""From what a claim says and what was found to a verdict, with the figures that decide it."""

from __future__ import annotations

import math
from collections.abc import Mapping

import msgspec

from nexusbench.experiments.motivation import AGREES, IN_PART, Statement
from nexusbench.experiments.over_range import OverRange
from nexusbench.experiments.reproduction.measure_names import THROUGHPUT, known_metrics
from nexusbench.experiments.reproduction.measures import ClaimOutcome
from nexusbench.experiments.reproduction.spec import PaperClaim

HOLDS, PART, FAILS, CANNOT = "holds", "in part", "does not hold", "cannot be tested here"
FOLLOWS = "follows from simulator constant"
# A claim rests on a constant if more than this share of its effect goes with it.
MOST_OF_IT = 0.5
# A smaller difference is none: steps have a noise of 2 %, rates are found to 3 %.
NOTICEABLE, NOTICEABLE_RATE = 0.01, 0.03


class ClaimRow(msgspec.Struct, frozen=True, kw_only=True):
    """A line of the table. ``value`` is ours as a number, where there is one; ``verdict`` is one of
    the above, FOLLOWS with the constant's name behind it. ``over_range``, in words ``over``, is
    what becomes of it over the ranges of contested constants: both empty where that was not asked;
    ``over`` alone says why it cannot be told.
    """

    figures: tuple[str, ...]
    claim: str
    paper: str
    ours: str
    verdict: str
    why: str
    value: float | None = None
    over: str = ""
    over_range: OverRange | None = None


def neutral_point(claim: PaperClaim) -> float:
    """Where of two systems neither is better."""
    return 1.0 if claim.compare == "times better" else 0.0


def sign_of(claim: PaperClaim) -> int:
    """1 if the claim is about more than no difference, -1 about less, 0 about none (or a value)."""
    if claim.compare == "value":
        return 0
    none = neutral_point(claim)
    if claim.low is not None and claim.low >= none:
        return 1
    if claim.high is not None and claim.high <= none:
        return -1
    return 0


def _share(claim: PaperClaim) -> float:
    return NOTICEABLE_RATE if claim.measure == THROUGHPUT else NOTICEABLE


def noticeable(claim: PaperClaim) -> float:
    """The least effect that is one, in the claim's unit."""
    return _share(claim) * (100.0 if claim.compare == "change" else 1.0)


def judge(claim: PaperClaim, found: ClaimOutcome) -> tuple[str, str]:
    """Verdict and reason by the numbers alone.

    A difference below 1 % (3 % of a throughput) is none. One holds if its effect (the distance
    from "no difference") is within 20 % of the paper's range and all draws agree on its direction;
    in part, if the direction is right and the size is not. "Equal" and plain values hold inside
    their range, and in part up to twice as far.
    """
    sign, none = sign_of(claim), neutral_point(claim)
    low = -math.inf if claim.low is None else claim.low
    high = math.inf if claim.high is None else claim.high
    if sign == 0:
        return _inside(claim, found.value, low, high)
    effect = sign * (found.value - none)
    least, most = sorted((sign * (low - none), sign * (high - none)))
    if abs(effect) < noticeable(claim):
        return FAILS, f"no difference (below {100 * _share(claim):g} %)"
    if effect < 0:
        return FAILS, "the other way round"
    if any(sign * (draw - none) <= 0 for draw in found.draws):
        return PART, "not in every draw"
    if effect < least * (1 - AGREES):
        return PART, "smaller than the paper's"
    if effect > most * (1 + AGREES):
        return PART, "larger than the paper's"
    return HOLDS, ""


def _inside(claim: PaperClaim, value: float, low: float, high: float) -> tuple[str, str]:
    if low <= value <= high:
        return HOLDS, ""
    nearest = low if value < low else high
    if claim.compare == "value":
        off = abs(value / nearest - 1) if nearest else math.inf
        if off <= AGREES:
            return HOLDS, ""
        return (PART if off <= IN_PART else FAILS), f"{100 * off:.0f} % off"
    none = neutral_point(claim)
    verdict = PART if abs(value - none) <= 2 * abs(nearest - none) else FAILS
    return verdict, "smaller than the paper's" if value < low else "larger than the paper's"


def rests_on(claim: PaperClaim, found: ClaimOutcome, without: ClaimOutcome) -> float:
    """The share of an effect that goes when a constant is made neutral; of no difference, 1 if the
    verdict turns. What does not hold with the constant nor without it rests on none.
    """
    both = {judge(claim, found)[0], judge(claim, without)[0]}
    if both == {FAILS}:
        return 0.0
    if sign_of(claim) == 0:
        return 1.0 if both == {HOLDS, FAILS} else 0.0
    effect = found.value - neutral_point(claim)
    # An effect that grows without the constant does not rest on it.
    return (found.value - without.value) / effect if effect else math.inf


def row_of(
    claim: PaperClaim,
    figures: tuple[str, ...],
    found: ClaimOutcome,
    base: ClaimOutcome,
    without: Mapping[str, ClaimOutcome],
    others: Mapping[str, ClaimOutcome | str],
) -> ClaimRow:
    """The line of a claim. ``base`` is ``found`` over the draws that ``without`` (a constant) and
    ``others`` (variants; a text says why there is no number) were made with.
    """
    verdict, reason = judge(claim, found)
    parts = [reason] if reason else []
    parts.append(_figures(claim, found))
    shares = {constant: rests_on(claim, base, changed) for constant, changed in without.items()}
    if shares:
        worst = max(shares, key=lambda constant: shares[constant])
        changed = shown(claim, without[worst].value)
        if shares[worst] > MOST_OF_IT:
            parts.insert(0, f"by its numbers: {verdict}; {changed} without the constant")
            verdict = f"{FOLLOWS} {worst}"
        else:
            values = ", ".join(f"{c} ({shown(claim, o.value)})" for c, o in without.items())
            how = f"{verdict} without each of" if verdict == FAILS else "stays without"
            parts.append(f"{how} {values}")
    if claim.built_in and verdict in (HOLDS, PART):
        parts.insert(0, f"by its numbers: {verdict}")
        verdict = f"{FOLLOWS} {claim.built_in}"
    parts += _readings(claim, base, others)
    if claim.note:
        parts.append(claim.note)
    return ClaimRow(
        figures=figures, claim=claim.says, paper=claim.paper, ours=shown(claim, found.value),
        verdict=verdict, why="; ".join(parts), value=found.value,
    )  # fmt: skip


def _readings(
    claim: PaperClaim, base: ClaimOutcome, others: Mapping[str, ClaimOutcome | str]
) -> list[str]:
    """How the verdict changes under other readings, each with its figure."""
    usual = judge(claim, base)[0]
    changed: list[str] = []
    same: list[str] = []
    for name, other in others.items():
        if isinstance(other, str):
            changed.append(f"{name}: {other}")
            continue
        verdict = judge(claim, other)[0]
        value = shown(claim, other.value)
        if verdict == usual:
            same.append(f"{name} ({value})")
        else:
            changed.append(f"{name}: {verdict} ({value})")
    lines = [f"but {', '.join(changed)}"] if changed else []
    return [*lines, f"same under {', '.join(same)}"] if same else lines


def shown(claim: PaperClaim, value: float) -> str:
    """A compared value with its unit."""
    if claim.compare == "change":
        return f"{value:+.1f} %"
    if claim.compare == "value":
        return f"{value:.3g}"
    return f"{value:.2f}x"


def _figures(claim: PaperClaim, found: ClaimOutcome) -> str:
    """Both sides, the spread over draws, and that over points."""
    unit = "req/s"
    if claim.measure != THROUGHPUT:
        metric = known_metrics().get(claim.measure.partition(".")[0])
        unit = "ms" if metric is None else metric.unit
    if claim.exceeds:
        text = f"gain {found.of:.2f}x, the best of the others {found.over:.2f}x"
    else:
        text = f"{claim.of} {found.of:,.4g}"
        if found.over is not None:
            text += f", {claim.over} {found.over:,.4g}"
        text += f" {unit}" if unit else ""
    if len(found.points) > 1 and not claim.exceeds:
        how = {"mean": "mean", "max": "largest", "min": "smallest"}[claim.across]
        text += (
            f" ({how} over {found.points[0]} to {found.points[-1]}: "
            f"{shown(claim, found.low)} to {shown(claim, found.high)})"
        )
    if len(found.draws) > 1:
        low, high = shown(claim, min(found.draws)), shown(claim, max(found.draws))
        text += f", {len(found.draws)} draws {low} to {high}"
    return text


def cannot(claim: PaperClaim, figures: tuple[str, ...], reason: str) -> ClaimRow:
    """The line of a claim that a simulation has no number for."""
    return ClaimRow(
        figures=figures, claim=claim.says, paper=claim.paper, ours="-", verdict=CANNOT, why=reason
    )  # fmt: skip


def row_of_statement(statement: Statement, figures: tuple[str, ...]) -> ClaimRow:
    """A line of section 3 (``profile paper``) in the words of this table."""
    unit = "" if statement.unit == "count" else f" {statement.unit}"

    def text(value: float | None) -> str:
        return "-" if value is None else f"{value:.3g}{unit}"

    verdict = {"yes": HOLDS, "in part": PART, "no": FAILS, "": CANNOT}[statement.agrees]
    why = statement.verdict if not statement.agrees else ""
    if statement.without is not None:
        why = f"{text(statement.without)} without {statement.constant}"
    if statement.verdict == "follows":
        why = f"by its numbers: {verdict}; {why}"
        verdict = f"{FOLLOWS} {statement.constant.partition(' ')[0]}"
    elif not why:
        why = "no constant of the simulator was chosen for it"
    return ClaimRow(
        figures=figures, claim=statement.statement, paper=f"{statement.paper}{unit}",
        ours=text(statement.ours), verdict=verdict, why=why, value=statement.ours,
    )  # fmt: skip
