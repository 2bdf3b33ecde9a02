"""The number that a claim is about, from cells; None while cells have yet to run."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import msgspec

from nexusbench.experiments.cells import SweepCell
from nexusbench.experiments.reproduction.lab import PRINTED, Lab, Unmeasurable
from nexusbench.experiments.reproduction.measure_names import (
    EXECUTION,
    THROUGHPUT,
    higher_is_better,
)
from nexusbench.experiments.reproduction.spec import (
    Criterion,
    PaperClaim,
    System,
    Variant,
)
from nexusbench.experiments.sweep_spec import ConfigFields, config_of

_DIGITS = 4  # significant ones of a rate between those of the grid
_STRIDES = 4  # by 2, beyond the grid where all or nothing of it is kept


_SAME_SHARE = 1e-9


class NeverKept(Unmeasurable):
    """A system breaks the criterion at every rate that was tried."""


class ClaimOutcome(msgspec.Struct, frozen=True):
    """``value`` is the mean of the draws' own values; ``low`` and ``high`` are over the points of
    all draws. ``of`` and ``over`` are the means of what was compared.
    """

    value: float
    draws: tuple[float, ...]
    low: float
    high: float
    of: float
    over: float | None
    points: tuple[str, ...]


def outcome(
    lab: Lab, claim: PaperClaim, variant: Variant, seeds: Sequence[int]
) -> ClaimOutcome | None:
    """What a claim compares, over draws. Raises Unmeasurable if a cell failed."""
    if claim.exceeds:
        return _peak(lab, claim, variant, seeds)
    found = [_draw(lab, claim, variant, seed) for seed in seeds]
    draws = [draw for draw in found if draw is not None]
    if len(draws) < len(found):
        return None
    values = [value for draw in draws for _, value, _, _ in draw]
    own = [_across(claim, [value for _, value, _, _ in draw]) for draw in draws]
    theirs = [over for draw in draws for _, _, _, over in draw if over is not None]
    return ClaimOutcome(
        value=math.fsum(own) / len(own),
        draws=tuple(own),
        low=min(values),
        high=max(values),
        of=math.fsum(of for draw in draws for _, _, of, _ in draw) / len(values),
        over=math.fsum(theirs) / len(theirs) if theirs else None,
        points=tuple(dict.fromkeys(name for draw in draws for name, *_ in draw)),
    )


def _peak(
    lab: Lab, claim: PaperClaim, variant: Variant, seeds: Sequence[int]
) -> ClaimOutcome | None:
    """How many times a gain is the largest of the others, each draw by itself."""
    pairs = ((claim.of, claim.over), *claim.exceeds)
    gains = [
        outcome(lab, msgspec.structs.replace(claim, of=of, over=over, exceeds=()), variant, seeds)
        for of, over in pairs
    ]
    known = [gain for gain in gains if gain is not None]
    if len(known) < len(gains):
        return None
    here, others = known[0], known[1:]
    best = [max(draws) for draws in zip(*(other.draws for other in others), strict=True)]
    times = tuple(mine / most for mine, most in zip(here.draws, best, strict=True))
    return ClaimOutcome(
        value=math.fsum(times) / len(times), draws=times, low=min(times), high=max(times),
        of=here.value, over=math.fsum(best) / len(best), points=here.points,
    )  # fmt: skip


_Compared = tuple[str, float, float, float | None]  # point, value, of, over


def _draw(lab: Lab, claim: PaperClaim, variant: Variant, seed: int) -> list[_Compared] | None:
    """One draw's values, a point each."""
    systems = lab.experiment.systems
    of, over = systems[claim.of], systems.get(claim.over)
    if claim.measure == THROUGHPUT:
        mine = throughput(lab, of, seed, variant)
        theirs = None if over is None else throughput(lab, over, seed, variant)
        if mine is None or (over is not None and theirs is None):
            return None
        return [("", compare(claim, mine, theirs), mine, theirs)]
    points = list(lab.experiment.points) if variant.all_rates else steady_points(lab, seed)
    if points is None:
        return None
    rows: list[_Compared] = []
    missing = False
    for point in points:
        mine = value_of(lab, of, claim.measure, point, seed, variant)
        theirs = None if over is None else value_of(lab, over, claim.measure, point, seed, variant)
        if mine is None or (over is not None and theirs is None):
            missing = True  # go on: the other points are asked for in the same go
        else:
            if over is not None and not higher_is_better(claim.measure):
                _check_served(lab, (of, over), point, seed, variant)
            rows.append((point_name(point), compare(claim, mine, theirs), mine, theirs))
    return None if missing else rows


def _check_served(
    lab: Lab, sides: tuple[System, System], point: ConfigFields, seed: int, variant: Variant
) -> None:
    """Raises Unmeasurable if one side finished a smaller share of its requests: its latencies are
    of those that were not turned away.
    """
    mine, theirs = (_served(lab, side, point, seed, variant) for side in sides)
    if mine is not None and theirs is not None and abs(mine - theirs) > _SAME_SHARE:
        raise Unmeasurable(
            f"{sides[0].name} finished {100 * mine:.4g} % of its requests and {sides[1].name} "
            f"{100 * theirs:.4g} %: their latencies are not of the same requests"
        )


def _served(
    lab: Lab, system: System, point: ConfigFields, seed: int, variant: Variant
) -> float | None:
    """The share of the requests offered that finished, of the best of several that of the best;
    None where it is not known.
    """
    if system.best_of:
        member = best_member(lab, system, point, seed, variant)
        return None if member is None else _served(lab, member, point, seed, variant)
    cell = lab.cell(system, point, seed, variant)
    if cell is None:
        return None
    offered, finished = cell.value("offered"), cell.value("finished")
    return None if finished is None or not offered else float(finished / offered)


def point_name(point: ConfigFields) -> str:
    """A point of the grid in words."""
    names = {"request_rate": "{:g} req/s", "limit": "{:,} requests"}
    return ", ".join(
        names.get(key, f"{key} {{}}").format(value) for key, value in point.items()
    )  # fmt: skip


def compare(claim: PaperClaim, mine: float, theirs: float | None) -> float:
    """Times better, percent of change, or the value itself."""
    if claim.compare == "value" or theirs is None:
        return mine
    if mine <= 0 or theirs <= 0:
        raise Unmeasurable("one side is 0, and nothing can be told in proportion to it")
    if claim.compare == "change":
        return 100.0 * (mine / theirs - 1.0)
    return mine / theirs if higher_is_better(claim.measure) else theirs / mine


def _across(claim: PaperClaim, values: Sequence[float]) -> float:
    """Points as one number: ratios have a geometric mean."""
    if claim.across == "max":
        return max(values)
    if claim.across == "min":
        return min(values)
    if claim.compare == "times better":
        return math.exp(math.fsum(math.log(value) for value in values) / len(values))
    return math.fsum(values) / len(values)


def value_of(
    lab: Lab,
    system: System,
    measure: str,
    point: ConfigFields,
    seed: int,
    variant: Variant = PRINTED,
) -> float | None:
    """One number of one cell; of the best of several, that of the best at this very point."""
    if system.best_of:
        member = best_member(lab, system, point, seed, variant)
        return None if member is None else value_of(lab, member, measure, point, seed, variant)
    cell = lab.cell(system, point, seed, variant)
    return None if cell is None else number(cell, measure, system.name)


def best_member(
    lab: Lab, system: System, point: ConfigFields, seed: int, variant: Variant = PRINTED
) -> System | None:
    """Which of several is best at a point, judged afterwards: more information than any static
    choice has.
    """
    members = [lab.experiment.systems[name] for name in system.best_of]
    values = [value_of(lab, member, system.by, point, seed, variant) for member in members]
    sign = -1.0 if higher_is_better(system.by) else 1.0
    known = [(sign * v, i) for i, v in enumerate(values) if v is not None]
    return members[min(known)[1]] if len(known) == len(members) else None


def number(cell: SweepCell, measure: str, name: str) -> float:
    """A statistic of a cell. Raises Unmeasurable where it has none."""
    if measure == EXECUTION:
        return number(cell, "e2e.mean", name) - number(cell, "ttft_queueing.mean", name)
    tag, _, statistic = measure.partition(".")
    value = cell.value(tag, statistic or "value")
    if value is None:
        entry = None if cell.summary is None else cell.summary.metrics.get(tag)
        reason = "" if entry is None else entry.reason
        raise Unmeasurable(f"{name} has no {measure}: {reason or 'not reported'}")
    return float(value)


def _rates(lab: Lab) -> list[float]:
    return sorted({_rate(point) for point in lab.experiment.points})


def _rate(point: ConfigFields) -> float:
    """Requests per second; only where rates are tried."""
    return config_of(point).request_rate or 0.0


def steady_points(lab: Lab, seed: int) -> list[ConfigFields] | None:
    """The points at which latencies are compared: rates that the criterion's ``steady`` system
    keeps as printed (the lowest one if none), or all where no rates are tried.
    """
    criterion, points = lab.experiment.throughput, list(lab.experiment.points)
    if criterion is None or any("request_rate" not in point for point in points):
        return points
    kept = _keeping(lab, lab.experiment.systems[criterion.steady], seed, PRINTED)
    rates = _rates(lab)
    keeps = [kept(rate) for rate in rates]
    if None in keeps:
        return None
    most = rates[max(0, keeps.index(False) - 1)] if False in keeps else rates[-1]
    return [point for point in points if _rate(point) <= most]


def _criterion(lab: Lab, variant: Variant) -> Criterion:
    found = variant.throughput or lab.experiment.throughput
    assert found is not None, "the spec was checked"
    return found


def _keeping(
    lab: Lab, system: System, seed: int, variant: Variant
) -> Callable[[float], bool | None]:
    """Whether a rate keeps the criterion; None if that has yet to run."""
    criterion = _criterion(lab, variant)
    alone = {"request_rate": criterion.rate}
    reference = lab.experiment.systems[criterion.system]
    # Served one by one the draw's span is known, and variants of the traffic do not matter.
    unvaried = Variant(name="", constant=variant.constant, place=variant.place)

    def asked(system: System, measure: str, point: ConfigFields, how: Variant) -> float | None:
        cell_point = {**lab.experiment.points[0], **point}
        return value_of(lab, system, measure, cell_point, seed, how)

    unloaded = asked(reference, criterion.measure, alone, unvaried)
    first = {**lab.experiment.points[0], **alone}
    usual = _served(lab, reference, first, seed, unvaried)
    longest = asked(reference, "makespan.value", alone, unvaried)

    def kept(rate: float) -> bool | None:
        point = {"request_rate": rate}
        value = asked(system, criterion.measure, point, variant)
        took = asked(system, "makespan.value", point, variant)
        in_time = asked(system, "attainment.value", point, variant) if criterion.attainment else 0.0
        if value is None or took is None or unloaded is None or longest is None or in_time is None:
            return None
        if in_time < criterion.attainment:
            return False
        share = _served(lab, system, {**lab.experiment.points[0], **point}, seed, variant)
        if usual is not None and share is not None and share < usual - _SAME_SHARE:
            return False  # what it turned away would have been late
        # One draw has the same gaps at every rate, stretched.
        span = longest * criterion.rate / rate
        if took - span > criterion.backlog * took:
            return False
        if criterion.at_least is not None:
            return value >= criterion.at_least
        return value <= (criterion.at_most or criterion.times * unloaded)

    return kept


def throughput(lab: Lab, system: System, seed: int, variant: Variant) -> float | None:
    """The highest rate (requests/s) that keeps the criterion, to its precision; the best of several
    is the highest of theirs.
    """
    if system.best_of:
        members = [lab.experiment.systems[name] for name in system.best_of]
        found = [_at_all(lab, member, seed, variant) for member in members]
        known = [rate for rate in found if rate is not None]
        if len(known) < len(found):
            return None
        if not any(known):
            raise NeverKept(f"{system.name}: none of them keeps the criterion")
        return max(known)
    precision = _criterion(lab, variant).precision
    kept = _keeping(lab, system, seed, variant)
    rates = _rates(lab)
    keeps = [kept(rate) for rate in rates]
    if None in keeps:
        return None
    if False in keeps and keeps[0]:
        first = keeps.index(False)
        return _between(kept, rates[first - 1], rates[first], precision)
    up = bool(keeps[0])
    rate = rates[-1] if up else rates[0]
    for _ in range(_STRIDES):
        beyond = rate * 2 if up else rate / 2
        verdict = kept(beyond)
        if verdict is None:
            return None
        if verdict != up:
            return _between(kept, min(rate, beyond), max(rate, beyond), precision)
        rate = beyond
    if up:
        raise Unmeasurable(f"{system.name} keeps the criterion even at {rate:g} req/s")
    raise NeverKept(f"{system.name} breaks the criterion even at {rate:g} req/s")


def _at_all(lab: Lab, system: System, seed: int, variant: Variant) -> float | None:
    """:func:`throughput`, 0 where no rate keeps the criterion."""
    try:
        return throughput(lab, system, seed, variant)
    except NeverKept:
        return 0.0


def _between(
    kept: Callable[[float], bool | None], low: float, high: float, precision: float
) -> float | None:
    """Bisection: ``low`` keeps the criterion, ``high`` does not."""
    while high / low > 1.0 + precision:
        middle = float(f"{math.sqrt(low * high):.{_DIGITS}g}")
        verdict = kept(middle)
        if verdict is None:
            return None
        low, high = (middle, high) if verdict else (low, middle)
    return low
