"""Whether what was found of a claim holds over the ranges of the GPU's contested constants."""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec

from nexusbench.core.specs import GpuSpec
from nexusbench.experiments.over_range import (
    DrawnReading,
    OverRange,
    RangeReading,
    at_end,
    over_range,
)
from nexusbench.experiments.ranges import Place, ends, in_use, latin_hypercube
from nexusbench.experiments.reproduction.lab import Lab, Unmeasurable
from nexusbench.experiments.reproduction.measures import ClaimOutcome, outcome
from nexusbench.experiments.reproduction.spec import PaperClaim, Variant
from nexusbench.experiments.reproduction.verdicts import (
    FAILS,
    HOLDS,
    PART,
    judge,
    neutral_point,
    sign_of,
)
from nexusbench.experiments.sweep_spec import config_of
from nexusbench.serving.resolve import find_device

_GRADES = (FAILS, PART, HOLDS)
_SEED = 0  # of the hypercube


class ClaimElsewhere(msgspec.Struct, frozen=True):
    """What was found of a claim at every place; ``missing``: some of it has yet to run."""

    over: OverRange | None = None
    reason: str = ""  # why it cannot be told
    missing: bool = False


def is_ranged(claim: PaperClaim) -> bool:
    """Whether the claim is to be judged over the ranges."""
    return bool(claim.neutral) if claim.ranges is None else claim.ranges


def claim_over_ranges(
    lab: Lab, claim: PaperClaim, base: ClaimOutcome | None, seeds: Sequence[int]
) -> ClaimElsewhere:
    """The claim with each contested constant at its ends, over ``seeds``, and with all of them
    drawn, each with one of the experiment's draws of the arrivals in turn. ``base`` is what was
    found in use over ``seeds``, None if that has yet to run. All that it needs is
    asked for before anything is judged.
    """
    device = config_of(lab.experiment.base).device
    named = find_device(device)
    gpu = named.describe() if named.kind == "sim" else None
    if gpu is None or not gpu.ranges:
        reason = f"cannot be told: {device} has no ranges" if claim.ranges else ""
        return ClaimElsewhere(reason=reason)
    sides, arrivals = ends(gpu), lab.experiment.seeds
    draws = latin_hypercube(gpu, lab.experiment.about.range_draws, _SEED)
    asked = [(place, tuple(seeds)) for place in sides]
    asked += [(place, (arrivals[n % len(arrivals)],)) for n, place in enumerate(draws)]
    found, reasons, missing = [], [], False
    for place, some in asked:
        try:
            there = outcome(lab, claim, Variant(name="", place=place), some)
        except Unmeasurable as error:
            reasons.append(f"{error} (at {place.name})")
            continue
        missing = missing or there is None
        if there is not None:
            found.append(there)
    if base is None or missing:
        return ClaimElsewhere(missing=True)
    if reasons:
        return ClaimElsewhere(reason=f"cannot be told: {reasons[0]}")
    return ClaimElsewhere(_judged(claim, base, gpu, (sides, found)))


def _judged(
    claim: PaperClaim, base: ClaimOutcome, gpu: GpuSpec,
    there: tuple[Sequence[Place], Sequence[ClaimOutcome]],
) -> OverRange:  # fmt: skip
    """From what was found at the ends, and behind them in the draws."""
    sides, found = there
    used, grade = in_use(gpu), judge(claim, base)[0]
    at_ends = [
        at_end(place, used, _reading(claim, grade, one))
        for place, one in zip(sides, found, strict=False)
    ]
    drawn, others = None, found[len(sides) :]
    if others:
        values = tuple(one.value for one in others)
        together = msgspec.structs.replace(
            others[0], value=math.fsum(values) / len(values), draws=values,
            low=min(one.low for one in others), high=max(one.high for one in others),
        )  # fmt: skip
        drawn = DrawnReading(_reading(claim, grade, together), values)
    return over_range(_reading(claim, grade, base), at_ends, drawn, _says(claim))


def _reading(claim: PaperClaim, grade: str, found: ClaimOutcome) -> RangeReading:
    """Whether a claim does as well as in use; one that does not hold there, whether it does at
    least in part.
    """
    least = max(_GRADES.index(grade), _GRADES.index(PART))
    return RangeReading(found.value, _GRADES.index(judge(claim, found)[0]) >= least)


def _says(claim: PaperClaim) -> tuple[float, float]:
    """The side of "no difference" that a claim is about; of none or a value, its range."""
    sign, none = sign_of(claim), neutral_point(claim)
    if sign > 0:
        return (none, math.inf)
    if sign < 0:
        return (-math.inf, none)
    low = -math.inf if claim.low is None else claim.low
    return (low, math.inf if claim.high is None else claim.high)
