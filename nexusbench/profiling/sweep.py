"""Running a plan: what is measured already is skipped, what is measured is kept."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import msgspec

from nexusbench.core.errors import Interrupted
from nexusbench.profiles.points import Point, PointSetting
from nexusbench.profiling.measure import Measurer, NothingMeasured
from nexusbench.profiling.plan import MeasuringPlan, alone
from nexusbench.profiling.positions import BatchOverSms, refine
from nexusbench.profiling.store import PointStore


class Progress(msgspec.Struct, frozen=True):
    """Where a sweep is: points done (kept ones too), at most how many there will be, seconds since
    the start and left (None before the first), the setting being measured, and what to warn of.
    """

    done: int
    most: int
    elapsed_s: float
    left_s: float | None
    setting: PointSetting
    warnings: tuple[str, ...] = ()


class SweepOutcome(msgspec.Struct, frozen=True):
    """What a sweep did: ``measured`` now, ``kept`` from before; ``notes`` tell what is missing."""

    measured: int
    kept: int
    seconds: float
    notes: tuple[str, ...]


def seed_of(seed: int, setting: PointSetting) -> int:
    """The seed of a setting's noise: independent of the order of the sweep."""
    return int(hashlib.sha256(f"{seed}:{setting.key}".encode()).hexdigest()[:12], 16)


class ProfileSweep:
    """One call of a plan on one device into one folder."""

    def __init__(
        self,
        plan: MeasuringPlan,
        measurer: Measurer,
        store: PointStore,
        seed: int,
        *,
        stopwatch: Callable[[], int],
        progress: Callable[[Progress], None] | None = None,
    ) -> None:
        self._plan, self._measurer, self._store, self._seed = plan, measurer, store, seed
        self._stopwatch, self._progress = stopwatch, progress
        self._start = stopwatch()
        self._there = frozenset(store.points)  # from before
        self._used: set[str] = set()
        self._measured = 0
        self._most = plan.most_points
        self._notes: list[str] = list(plan.notes)

    def run(self) -> SweepOutcome:
        """Measure what is missing. Raises Interrupted on Ctrl-C, with everything kept."""
        try:
            for line in self._plan.lines:
                self._line(line)
            for setting in self._plan.settings:
                self._point(setting)
        except KeyboardInterrupt:
            raise Interrupted(
                f"interrupted: {len(self._store.points):,} points are kept in "
                f"{self._store.folder}. Repeat the command to go on from there"
            ) from None
        finally:
            self._store.close()
        return SweepOutcome(
            self._measured,
            len(self._used & self._there),
            self._elapsed(),
            tuple(dict.fromkeys(self._notes)),
        )

    def _line(self, line: BatchOverSms) -> None:
        """All positions of a line, the later ones chosen by the earlier ones."""
        times: dict[int, float] = {}
        while (sms := refine(line, times)) is not None:
            point = self._point(line.setting(sms))
            if point is None:
                break
            times[sms] = point.ns
        self._most -= max(0, line.budget - len(times))

    def _point(self, setting: PointSetting) -> Point | None:
        """The point of a setting, measured unless it is there; None if it cannot be."""
        points = self._store.points
        key = setting.key
        known = points.get(key)
        if known is not None:
            if key in self._used:
                self._most -= 1  # planned twice
            self._used.add(key)
            return known
        before = None
        if setting.neighbour is not None:
            single = points.get(alone(setting).key)
            before = None if single is None else single.ns
        try:
            point = self._measurer.measure(setting, seed_of(self._seed, setting), before)
        except NothingMeasured as error:
            self._notes.append(str(error))
            self._most -= 1
            self._report(setting, (str(error),))
            return None
        self._store.add(point)
        self._used.add(key)
        self._measured += 1
        self._report(setting, point.warnings)
        return point

    def _elapsed(self) -> float:
        return (self._stopwatch() - self._start) / 1e9

    def _report(self, setting: PointSetting, warnings: tuple[str, ...]) -> None:
        if self._progress is None:
            return
        elapsed, done = self._elapsed(), len(self._used)
        left = None
        if self._measured:
            left = elapsed / self._measured * max(0, self._most - done)
        self._progress(Progress(done, self._most, elapsed, left, setting, warnings))
