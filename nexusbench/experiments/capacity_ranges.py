"""Capacities over the ranges of the contested constants: does the interval hold, and the lead?"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from nexusbench.core.errors import UsageError
from nexusbench.experiments.capacity import Capacity, CapacitySearch
from nexusbench.experiments.over_range import (
    DrawnReading,
    OverRange,
    RangeReading,
    at_end,
    over_range,
)
from nexusbench.experiments.pool import Lost, run_all
from nexusbench.experiments.ranges import (
    Place,
    device_at,
    ends,
    in_use,
    latin_hypercube,
    ranged_gpu,
)
from nexusbench.experiments.rate_search import FoundRate, SearchTask, search_rate
from nexusbench.metrics.summary import interval

Told = Callable[[int, FoundRate], object]


class Lead(msgspec.Struct, frozen=True, kw_only=True):
    """Positions of the policy with the highest capacity and of the runner-up, and whether the first
    one's lead holds over the ranges.
    """

    best: int
    other: int
    over: OverRange


class CapacitiesOverRanges(msgspec.Struct, frozen=True, kw_only=True):
    """By policy whether the capacity stays in its interval; ``lead`` is None for one policy."""

    policies: tuple[OverRange, ...]
    lead: Lead | None
    ends: tuple[Place, ...]
    draws: tuple[Place, ...]


class _Found(msgspec.Struct, frozen=True):
    """Rates kept by position and place: at an end by seed, in a draw one."""

    at_ends: dict[tuple[int, str], list[float]]
    drawn: dict[tuple[int, str], float]


def searches(search: CapacitySearch, count: int) -> int:
    """How many searches the ranges take, with so many draws of the constants."""
    places = len(ends(ranged_gpu(search.configs[0].device)))
    return len(search.configs) * (places * len(search.seeds) + count)


def capacities_over_ranges(
    search: CapacitySearch, capacities: Sequence[Capacity], count: int, jobs: int, told: Told
) -> CapacitiesOverRanges:
    """Search again with each contested constant at its ends, over the same draws of the arrivals,
    and with ``count`` draws of all of them, each with one of those draws in turn.

    A draw counts by how many times the rate of the same arrivals in use it keeps, so that only the
    constants differ. Raises UsageError for a device without ranges, or a search that was given up.
    """
    gpu = ranged_gpu(search.configs[0].device)
    used, sides = in_use(gpu), ends(gpu)
    draws = latin_hypercube(gpu, count, search.seeds[0])
    found = _search(search, capacities, (sides, draws), jobs, told)
    policies = tuple(_of_policy(one, found, used, sides, draws) for one in capacities)
    ranked = sorted((one for one in capacities if not one.none), key=lambda one: -one.rate)
    lead = None
    if len(ranked) > 1:
        best, other = ranked[:2]
        over = _of_lead(best, other, found, (used, sides, draws), search.ratio)
        lead = Lead(best=best.position, other=other.position, over=over)
    return CapacitiesOverRanges(policies=policies, lead=lead, ends=sides, draws=draws)


def _search(
    search: CapacitySearch, capacities: Sequence[Capacity],
    places: tuple[Sequence[Place], Sequence[Place]], jobs: int, told: Told,
) -> _Found:  # fmt: skip
    folder = (search.cache or Path("results/probes")) / "made"
    asked: list[tuple[int, Place, SearchTask]] = []
    for one in capacities:
        config = search.configs[one.position]
        for place in places[0]:
            device = device_at(config, place, folder)
            asked += [(one.position, place, _task(search, one, device, near)) for near in one.found]
        for number, place in enumerate(places[1]):
            near = one.found[number % len(one.found)]
            device = device_at(config, place, folder)
            asked.append((one.position, place, _task(search, one, device, near)))
    kept: dict[int, float] = {}
    for index, result in run_all(search_rate, [task for *_, task in asked], jobs):
        if isinstance(result, Lost):
            raise UsageError(f"a search was given up: {result.reason}. Try --jobs 1")
        kept[index] = result.kept
        told(asked[index][0], result)
    found = _Found({}, {})
    drawn = {place.name for place in places[1]}
    for index, (position, place, _) in enumerate(asked):
        if place.name in drawn:
            found.drawn[position, place.name] = kept[index]
        else:
            found.at_ends.setdefault((position, place.name), []).append(kept[index])
    return found


def _task(search: CapacitySearch, one: Capacity, device: str, near: FoundRate) -> SearchTask:
    config = search.configs[one.position]
    return SearchTask(
        config=msgspec.structs.replace(config, seed=near.seed, device=device), slo=search.slo,
        ratio=search.ratio, near=near.step, hinted=True, cache=search.cache, fresh=search.fresh,
    )  # fmt: skip


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _of_policy(
    one: Capacity, found: _Found, used: dict[str, float], sides: Sequence[Place],
    draws: Sequence[Place],
) -> OverRange:  # fmt: skip
    """Whether the capacity stays within its interval; open where that has no two ends."""
    high = math.inf if one.high is None else one.high
    at_ends = []
    for place in sides:
        rate = _mean(found.at_ends[one.position, place.name])
        at_ends.append(at_end(place, used, RangeReading(rate, one.low <= rate <= high)))
    drawn, each = None, []
    for number, place in enumerate(draws):
        before = one.found[number % len(one.found)].kept
        if before:
            each.append(one.rate * found.drawn[one.position, place.name] / before)
    if each:
        held = all(one.low <= rate <= high for rate in each)
        drawn = DrawnReading(RangeReading(_mean(each), held), tuple(each))
    known = not one.at_least and not one.none
    base = RangeReading(one.rate, held=True) if known else None
    return over_range(base, at_ends, drawn, (one.low, high), points=one.rate)


def _of_lead(
    best: Capacity, other: Capacity, found: _Found,
    places: tuple[dict[str, float], Sequence[Place], Sequence[Place]], ratio: float,
) -> OverRange:  # fmt: skip
    """Whether the best stays surely ahead, in requests per second; open where it is not in use."""
    used, sides, draws = places
    leads = [a.kept - b.kept for a, b in zip(best.found, other.found, strict=True)]
    base = _lead(leads, math.inf)
    level = best.rate <= other.rate * ratio or other.at_least
    at_ends = []
    for place in sides:
        mine, theirs = (found.at_ends[one.position, place.name] for one in (best, other))
        there = _lead([a - b for a, b in zip(mine, theirs, strict=True)], base.points)
        at_ends.append(at_end(place, used, there))
    drawn = None
    if draws:
        each = [
            found.drawn[best.position, place.name] - found.drawn[other.position, place.name]
            for place in draws
        ]
        reading = _lead(each, base.points)
        # Neighbouring rates are level.
        held = reading.held and min(each) >= -(ratio - 1.0) * best.rate
        drawn = DrawnReading(RangeReading(reading.points, held), tuple(each))
    known = base if base.held and not level else None
    return over_range(known, at_ends, drawn, (0.0, math.inf), points=base.points)


def _lead(leads: Sequence[float], before: float) -> RangeReading:
    """Ahead for sure, or by as much as ``before`` and less sure; of one draw, ahead at all."""
    found = interval(leads)
    sure = found.mean > 0 if found.low is None else found.low > 0
    return RangeReading(found.mean, sure or found.mean >= before > 0)
