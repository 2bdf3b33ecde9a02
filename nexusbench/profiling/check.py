"""Does a profile still hold? A handful of its points measured again, and its fits asked again."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np

from nexusbench.core.errors import UsageError
from nexusbench.core.parts import unit_of
from nexusbench.profiles.points import Point
from nexusbench.profiles.profile import Profile
from nexusbench.profiling.desk import BatchDesk
from nexusbench.profiling.fingerprint import fingerprint_of
from nexusbench.profiling.fitting import predicted
from nexusbench.profiling.measure import Measurer, NothingMeasured, SamplingRule
from nexusbench.profiling.profile import Subject, fitted_model, target_of
from nexusbench.profiling.sweep import seed_of

EACH = 2  # points of each kind, alone and beside, fitted and held out
TOLERANCE = 0.05  # a change beyond this and beyond what both intervals allow is one
MOST_GROWTH = 5.0  # percentage points by which a fit's error may have grown
_SAMPLING = SamplingRule(8, 30, 0.01, 5.0)


class Again(msgspec.Struct, frozen=True):
    """One point then and now (ns); ``agrees`` after a second try if the first did not."""

    point: Point
    now_ns: float
    agrees: bool

    @property
    def change(self) -> float:
        """As a share of what it was."""
        return self.now_ns / self.point.ns - 1


class FitAgain(msgspec.Struct, frozen=True):
    """Mean error of a fit on the points that were measured again: against then and against now."""

    cost_model: str
    then: float
    now: float

    @property
    def holds(self) -> bool:
        """Whether it predicts today about as well as it did."""
        return self.now <= self.then + MOST_GROWTH


class ProfileCheck(msgspec.Struct, frozen=True):
    """The verdict and what it rests on; ``notes`` say what else has changed."""

    points: tuple[Again, ...]
    fits: tuple[FitAgain, ...]
    notes: tuple[str, ...]

    @property
    def fine(self) -> bool:
        """Nothing has drifted."""
        return all(again.agrees for again in self.points) and all(f.holds for f in self.fits)


def check_profile(
    profile: Profile, points: Sequence[Point], subject: Subject, *, named: bool = False
) -> ProfileCheck:
    """Measure some of ``points`` again on ``subject``'s device, with other noise than then.

    ``named``: the device was chosen for this check, so that one with other constants is what is
    asked about. Raises UsageError if it is another device or model than the profile's.
    """
    notes = _comparable(profile, subject, named=named)
    chosen = handful(points)
    pool = subject.pool().enough_for(point.setting for point in chosen)
    measurer = Measurer(BatchDesk(subject.device, pool), _SAMPLING)
    again = []
    for point in chosen:
        try:
            again.append(_again(measurer, point, profile.seed + 1))
        except NothingMeasured as error:
            notes.append(str(error))
    if not again:
        raise UsageError("the profile has no points that can be measured again")
    then = [made.point for made in again]
    now = [msgspec.structs.replace(made.point, ns=made.now_ns) for made in again]
    target = target_of(profile)
    fits = []
    for fit in profile.fits:
        guess = predicted(fitted_model(fit, target), then)
        errors = [
            float(100 * np.abs(guess / np.array([p.ns for p in side]) - 1).mean())
            for side in (then, now)
        ]
        fits.append(FitAgain(fit.cost_model, round(errors[0], 3), round(errors[1], 3)))
    return ProfileCheck(tuple(again), tuple(fits), tuple(notes))


def handful(points: Sequence[Point]) -> list[Point]:
    """A few points of every kind, from small batches to large; which ones does not depend on what
    was measured.
    """
    groups: dict[tuple[str, str, bool], list[Point]] = {}
    for point in points:
        setting = point.setting
        groups.setdefault((setting.kind, setting.phase, setting.held_out), []).append(point)
    chosen = []
    for _, members in sorted(groups.items()):
        members.sort(key=lambda point: (_size(point), point.setting.key))
        places = {len(members) * (2 * i + 1) // (2 * EACH) for i in range(EACH)}
        chosen += [members[place] for place in sorted(places)]
    return chosen


def _size(point: Point) -> int:
    """Tokens read and computed."""
    shape = point.setting.shape
    return shape.num_tokens + shape.decode_context + sum(before for _, before in shape.chunks)


def _again(measurer: Measurer, point: Point, seed: int) -> Again:
    """Once, and once more if that disagrees: a single disturbance is no drift."""
    now = point
    for attempt in range(2):
        now = measurer.measure(point.setting, seed_of(seed + attempt, point.setting))
        if abs(now.ns / point.ns - 1) <= max(TOLERANCE, 2 * (now.interval + point.interval)):
            return Again(point, now.ns, True)
    return Again(point, now.ns, False)


def _comparable(profile: Profile, subject: Subject, *, named: bool) -> list[str]:
    """What has changed but does not stand in the way. Raises UsageError for what does."""
    was, now = profile.fingerprint, fingerprint_of(subject.device, subject.model)
    problems, unit = [], unit_of(was.device)
    if was.num_sms != now.num_sms or (was.device != now.device and not named):
        problems.append(f"it is of {was.device} with {was.num_sms} {unit}, not of {now.device}")
    elif was.device_sha256 != now.device_sha256 and not named:
        asked = subject.asked.device or now.device
        raise UsageError(
            f"{was.device} has other constants or tables now than when it was profiled, so this "
            "profile is not of it any more. Profile again with --fresh, or measure it all the same "
            f"with --device {asked}"
        )
    if was.model_sha256 != now.model_sha256:
        problems.append(f"it is of the model {was.model}, not of {now.model}")
    if problems:
        raise UsageError(
            f"this profile cannot be checked here: {'; '.join(problems)}. Name its own device and "
            "model, or leave --device and --model out"
        )
    notes = []
    if was.device != now.device:
        notes.append(f"the profile is of {was.device}; what was measured again is {now.device}")
    elif was.device_sha256 != now.device_sha256:
        notes.append(f"{was.device} has other constants or tables now than when it was profiled")
    for key in sorted({*was.environment, *now.environment}):
        before, after = was.environment.get(key, "not told"), now.environment.get(key, "not told")
        if before != after:
            notes.append(f"{key}: {before} then, {after} now")
    return notes
