"""One setting, one point: warm up, repeat until the interval is narrow, say what to distrust."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Protocol

import msgspec

from nexusbench.core.batch import Batch, StepOutput
from nexusbench.core.errors import NexusbenchError
from nexusbench.core.parts import unit_of
from nexusbench.core.units import NS_PER_S
from nexusbench.profiles.points import Point, PointSetting
from nexusbench.profiling._statistics import estimate
from nexusbench.profiling.desk import MOST_REPEATS, BatchDesk, ShapedBatch

WARM_UP = 2  # launches before the first sample; one, if it is a long one
LONG_NS = 0.25e9
# A sample beside a neighbour that was idle for more than this share of it is discarded.
IDLE_SHARE = 0.01
# A neighbour so short that it must be launched more often than this within a sample is given up on.
MOST_LAUNCHES = 2000


class SamplingRule(msgspec.Struct, frozen=True):
    """When a point has enough samples: at ``least`` many and an ``interval`` (a share) reached, or
    the cap of ``most`` samples or of ``seconds`` of the device's time (then three are enough).
    """

    least: int
    most: int
    interval: float
    seconds: float

    def enough(self, samples: Sequence[float], spent_ns: float) -> bool:
        """Whether to stop."""
        count = len(samples)
        if count >= self.most or (count >= min(3, self.least) and self.spent(spent_ns)):
            return True
        return count >= self.least and estimate(samples).interval <= self.interval

    def spent(self, spent_ns: float) -> bool:
        """Whether the time is up."""
        return spent_ns > self.seconds * NS_PER_S


class CounterReader(Protocol):
    """What reads counters around timed launches.

    ``after(steps)`` gives values per step (totals) or over the time (gauges), None where one could
    not be read; ``warnings`` tells of throttling and of other users since ``before``. ``sources``
    maps every source to ``on`` or to why it is off.
    """

    @property
    def sources(self) -> Mapping[str, str]: ...  # noqa: D102 - said above

    def before(self) -> None: ...  # noqa: D102

    def after(self, steps: int) -> dict[str, float | None]: ...  # noqa: D102

    def warnings(self) -> list[str]: ...  # noqa: D102


class Readers(msgspec.Struct, frozen=True):
    """``timed`` reads while samples are taken; ``intrusive`` slows what it reads, so it gets
    repetitions of its own. ``off`` maps sources that are not read at all to the reason.
    """

    timed: CounterReader | None = None
    intrusive: CounterReader | None = None
    off: Mapping[str, str] = {}

    @property
    def sources(self) -> dict[str, str]:
        """Of both."""
        found: dict[str, str] = dict(self.off)
        for reader in (self.intrusive, self.timed):
            if reader is not None:
                found.update(reader.sources)
        return found


class NothingMeasured(NexusbenchError):
    """Every sample of a setting had to be discarded."""


class _Samples(msgspec.Struct):
    """What the launches of one setting gave."""

    times: list[float] = []
    operators: list[dict[str, float]] = []
    discarded: int = 0
    spent_ns: float = 0.0


class Measurer:
    """Measures settings on one device."""

    def __init__(
        self, desk: BatchDesk, sampling: SamplingRule, readers: Readers | None = None
    ) -> None:
        self.desk, self.sampling = desk, sampling
        self.readers = readers if readers is not None else Readers()

    def measure(self, setting: PointSetting, seed: int, alone_ns: float | None = None) -> Point:
        """The point of ``setting``; ``seed`` starts a simulated device's noise, so that a point
        does not depend on what was measured before it. ``alone_ns`` is for pairs.

        Raises NothingMeasured if the neighbour was never busy throughout a sample.
        """
        self.desk.device.reseed(seed)
        with self._runner(setting) as run:
            return self._measured(setting, run, alone_ns)

    def _measured(
        self, setting: PointSetting, run: Callable[[int], _Samples], alone_ns: float | None
    ) -> Point:
        """Warm up, take samples, read counters."""
        run(WARM_UP)
        timed, warnings = self.readers.timed, []
        if timed is not None:
            timed.before()
        samples = run(0)
        counters: dict[str, float | None] = {}
        if timed is not None:
            counters = timed.after(len(samples.times) + samples.discarded)
            warnings = timed.warnings()
        if not samples.times:
            unit = unit_of(self.desk.device.spec.name)
            raise NothingMeasured(
                f"all {samples.discarded} samples of {_name(setting, unit)} were discarded: the "
                "neighbour was not busy throughout"
            )
        if setting.neighbour is not None:
            # Counters see the whole device: what the neighbour moved cannot be told apart.
            counters = {}
        elif self.readers.intrusive is not None:
            self.readers.intrusive.before()
            steps = len(run(self.sampling.least).times)
            counters.update(self.readers.intrusive.after(max(1, steps)))
        return self._point(setting, samples, counters, warnings, alone_ns)

    def _point(
        self,
        setting: PointSetting,
        samples: _Samples,
        counters: dict[str, float | None],
        warnings: list[str],
        alone_ns: float | None,
    ) -> Point:
        found = estimate(samples.times)
        target = self.sampling.interval
        if not found.interval <= target:
            width = f"{100 * found.interval:.1f} %" if math.isfinite(found.interval) else "unknown"
            warnings = [
                *warnings,
                f"wide interval: {width} after {len(samples.times)} samples "
                f"(wanted {100 * target:g} %)",
            ]
        if samples.discarded:
            warnings = [*warnings, f"{samples.discarded} samples discarded: neighbour not busy"]
        return Point(
            setting,
            ns=found.value,
            interval=found.interval if math.isfinite(found.interval) else 1.0,
            samples_ns=tuple(samples.times),
            outliers=found.outliers,
            operators_ns=_mean(samples.operators, found.outliers),
            alone_ns=alone_ns,
            discarded=samples.discarded,
            counters=counters,
            warnings=tuple(warnings),
        )

    def _enough(self, samples: _Samples, only: int) -> bool:
        """``only`` > 0 asks for so many samples; 0 for as many as the sampling rule demands."""
        taken = len(samples.times)
        if samples.discarded >= max(10, self.sampling.most):
            return True
        if only:
            done = taken + samples.discarded
            return done >= only or (done > 0 and samples.spent_ns > LONG_NS)
        return self.sampling.enough(samples.times, samples.spent_ns) or (
            samples.discarded > taken + 10 and self.sampling.spent(samples.spent_ns)
        )

    @contextmanager
    def _runner(self, setting: PointSetting) -> Iterator[Callable[[int], _Samples]]:
        """What takes samples of a setting: so many, or with 0 as many as the rule demands."""
        if setting.neighbour is None:
            yield self._alone(setting)
            return
        pair = self._pair(setting)
        try:
            yield lambda only: self._beside(pair, only)
        finally:
            pair.stop()

    def _alone(self, setting: PointSetting) -> Callable[[int], _Samples]:
        desk, spec = self.desk, self.desk.device.spec
        whole = setting.sms == spec.num_sms
        partition = spec.whole.partitions[0] if whole else setting.phase
        batch = desk.batch(ShapedBatch(setting.shape, setting.contexts), partition)

        def run(only: int) -> _Samples:
            samples = _Samples()
            while not self._enough(samples, only):
                start = desk.device.now()
                desk.submit(batch, setting.sms)
                output = desk.drain([batch])[-1]
                samples.times.append(float(output.end_ns - start))
                samples.spent_ns += output.end_ns - start
                if output.operators_ns is not None:
                    samples.operators.append(output.operators_ns)
            return samples

        return run

    def _pair(self, setting: PointSetting) -> _Pair:
        """Both sides ready; a neighbour of decodes takes several steps in a launch, which leaves
        fewer gaps than one launch a step. Two batches of one phase share the two partitions too.
        """
        assert setting.neighbour is not None
        desk = self.desk
        other = "decode" if setting.phase == "prefill" else "prefill"
        mine = desk.batch(ShapedBatch(setting.shape, setting.contexts), setting.phase)
        repeat = 1 if setting.neighbour.chunks else MOST_REPEATS
        beside = desk.batch(ShapedBatch(setting.neighbour), other, repeat, beside=mine)
        return _Pair(desk, mine, setting.sms, beside, setting.neighbour_sms)

    def _beside(self, pair: _Pair, only: int) -> _Samples:
        samples = _Samples()
        while not self._enough(samples, only):
            start, end, idle = pair.next_sample()
            samples.spent_ns += end - start
            if idle <= IDLE_SHARE * (end - start):
                samples.times.append(float(end - start))
            else:
                samples.discarded += 1
        return samples


class _Pair:
    """Two partitions that are kept busy: each is launched again as soon as it ends."""

    def __init__(
        self, desk: BatchDesk, mine: Batch, sms: int, beside: Batch, beside_sms: int
    ) -> None:
        self.desk, self.mine, self.sms = desk, mine, sms
        self.beside, self.beside_sms = beside, beside_sms
        self._mine_step = self._beside_step = -1  # in flight, or -1
        self._mine_start = 0
        self._idle_since: int | None = None
        self._idle = 0  # ns without a neighbour since the measured launch began
        self._launches = 0

    def next_sample(self) -> tuple[int, int, int]:
        """(start, end, ns of it in which the neighbour was idle) of the next measured launch."""
        device = self.desk.device
        if self._beside_step < 0:
            self._launch_neighbour()
        self._mine_start, self._idle = device.now(), 0
        self._mine_step = self.desk.submit(self.mine, self.sms)
        most = self._launches + MOST_LAUNCHES
        while True:
            end = -1
            for output in self._wait():
                if output.step == self._mine_step and output.last:
                    end = output.end_ns
                elif output.step == self._beside_step and output.last:
                    self.desk.landed(self.beside)
                    self._beside_step, self._idle_since = -1, output.end_ns
            if end >= 0:
                break
            if self._beside_step < 0 and self._launches < most:
                self._launch_neighbour()
        self.desk.landed(self.mine)
        self._mine_step = -1
        idle = self._idle
        if self._idle_since is not None:
            idle += max(0, end - max(self._idle_since, self._mine_start))
        return self._mine_start, end, idle

    def stop(self) -> None:
        """Wait for the neighbour's last launch, and for the measured one if it was interrupted."""
        flying = [
            batch
            for batch, step in ((self.mine, self._mine_step), (self.beside, self._beside_step))
            if step >= 0
        ]
        self.desk.drain(flying)
        self._mine_step = self._beside_step = -1

    def _launch_neighbour(self) -> None:
        now = self.desk.device.now()
        if self._idle_since is not None:
            self._idle += max(0, now - max(self._idle_since, self._mine_start))
            self._idle_since = None
        self._beside_step = self.desk.submit(self.beside, self.beside_sms)
        self._launches += 1

    def _wait(self) -> list[StepOutput]:
        ended = self.desk.device.wait_for_steps(None)
        if not ended:
            raise NexusbenchError(
                f"{self.desk.device.spec.name} has launches in flight and reports no end"
            )
        return ended


def _mean(parts: Sequence[Mapping[str, float]], outliers: Sequence[int]) -> dict[str, float]:
    """Mean ns of each operator class over the samples that count."""
    kept = [part for position, part in enumerate(parts) if position not in outliers]
    names = sorted({name for part in kept for name in part})
    return {name: math.fsum(part.get(name, 0.0) for part in kept) / len(kept) for name in names}


def _name(setting: PointSetting, unit: str) -> str:
    from nexusbench.profiling.grammar import format_batch

    text = f"{format_batch(setting.shape, setting.contexts)} on {setting.sms} {unit}"
    if setting.neighbour is not None:
        text += f" beside {format_batch(setting.neighbour)} on {setting.neighbour_sms}"
    return text
