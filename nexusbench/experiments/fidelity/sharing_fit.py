"""Fit what sharing a GPU costs to the fitted half of measured partitions (``--family sharing``).

In two steps, for a slow-down beside a neighbour says little of a curve over SMs: first what rows
over SMs tell (two curves, attention's rate per SM, the clock), then what pairs tell.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from hashlib import sha256
from pathlib import Path

import msgspec
import numpy as np

from nexusbench.core.bounds import Curve
from nexusbench.core.errors import InputError
from nexusbench.core.specs import CURVES, GpuSpec, ModelSpec
from nexusbench.experiments.fidelity.draw_law import (
    MOST_KNEE,
    DrawLaw,
    attained,
    gbps_bounds,
    nearest_law,
)
from nexusbench.experiments.fidelity.nelder_mead import Vector, nelder_mead
from nexusbench.experiments.fidelity.partitions.formats import read_partitions
from nexusbench.experiments.fidelity.partitions.points import (
    ABSOLUTE,
    MILLISECONDS,
    TIME_OVER_ALL,
    WORK_RATE,
    PartitionPoint,
)
from nexusbench.experiments.ranges import with_constants

PAIRS = {
    "turn_taking": (0.0, 1.0),
    "dense_interference": (0.0, 2.0),
    "attention_interference": (0.0, 2.0),
    "stream_interference": (0.0, 2.0),
}
FAMILY = "sharing"
RANGE_GROWTH = 1.1  # a range ends where the fitted error has grown by a tenth
_ROWS_EACH = 3  # fewer fitted rows for each number are too few
_FACTORS = (0.25, 4.0)  # how far a curve may be stretched
_ALONE_SHARE = 0.6  # of the evaluations: rows over SMs have more constants
_BISECTIONS = 7
_MOST_ROWS = 120  # of an operator: enough for a dozen constants, and soon simulated
_NOTHING = 1e-9  # a change of the error below it is none
Values = dict[str, float]
# The error of each operator on the fitted and on the held-out half (None: no rows), and its unit
HalfErrors = tuple[float | None, float | None]


class SharingFit(msgspec.Struct, frozen=True):
    """Fitted constants of ``[sim]``, written curves with their laws, and ranges as a GPU file has
    them (of a curve that of a factor on its SMs); ``left``: what the table says nothing about.

    ``before`` and ``after``: mean size of the errors by operator, in per cent (of work rates in
    hundredths), on the fitted half and held out.
    """

    constants: dict[str, float]
    curves: dict[str, Curve]
    laws: dict[str, DrawLaw]
    ranges: dict[str, tuple[float, float]]
    left: tuple[str, ...]
    before: dict[str, HalfErrors]
    after: dict[str, HalfErrors]
    notes: tuple[str, ...] = ()  # of the table: what was assumed or left out

    def better(self, half: int) -> bool | None:
        """Whether a half (0 fitted, 1 held out) is closer than with the file's constants; None of
        no rows.
        """
        before, after = mean_error(self.before, half), mean_error(self.after, half)
        return None if before is None or after is None else after < before


def mean_error(scores: dict[str, HalfErrors], half: int) -> float | None:
    """Mean over the operators; half 0 is the fitted one, 1 held out; None where it has no rows."""
    found = [pair[half] for pair in scores.values()]
    return _mean([value for value in found if value is not None])


def fit_sharing(
    gpu: GpuSpec, table: Path, model: ModelSpec | None = None, evaluations: int = 400
) -> SharingFit:
    """Constants of sharing that minimise the mean error on the fitted half of ``table`` (any that
    ``read_partitions`` reads), over operators alike. Starts from ``gpu``'s own; deterministic.

    Raises InputError if the table has no such half, or says nothing about any constant.
    """

    def points(spec: GpuSpec, lines: frozenset[int] | None = None) -> list[PartitionPoint]:
        made = read_partitions(table, spec, model, lines).points
        return [point for point in made if point.unit != MILLISECONDS]

    found = read_partitions(table, gpu, model)
    scored = [point for point in found.points if point.unit != MILLISECONDS]
    before = half_errors(scored)
    if not any(fitted is not None for fitted, _ in before.values()):
        hint = "Measure more shapes; see docs/fidelity.md, 'Partitions'"
        raise InputError("has no half to fit constants on", file=table, hint=hint)
    laws = {name: nearest_law(curve_of(gpu, name), gpu) for name in CURVES}
    fitted, ranges, left = gpu, dict[str, tuple[float, float]](), list[str]()
    notes = list(found.notes)
    lines = _some_lines(found.points)
    if lines is not None and not set(points(gpu, lines)) <= set(scored):
        lines = None  # rows of this format hang on others
    for alone, share in ((True, _ALONE_SHARE), (False, 1.0 - _ALONE_SHARE)):
        step = _FitStep(fitted, laws if alone else {}, partial(points, lines=lines), alone=alone)
        values = step.run(max(20, round(share * evaluations)))
        fitted = step.gpu_of(values)
        laws |= step.laws_of(values)
        ranges |= step.ranges(values)
        left += step.left
        notes += step.doubts()
    if not ranges:
        hint = "It takes rows over SMs, or of two batches at once"
        raise InputError("says nothing about any constant of sharing", file=table, hint=hint)
    curves = {name: curve_of(fitted, name) for name in CURVES if name in ranges}
    return SharingFit(
        {name: getattr(fitted.sim, name) for name in ranges if name not in CURVES},
        curves,
        {name: laws[name] for name in curves},
        ranges,
        tuple(left),
        before,
        half_errors(points(fitted)),
        tuple(notes),
    )


def _some_lines(points: Sequence[PartitionPoint]) -> frozenset[int] | None:
    """Lines of whole shapes of the fitted half, at most _MOST_ROWS rows of each operator, in the
    order of a hash; None where the table is not that large.
    """
    shapes: dict[tuple[str, str], list[int]] = defaultdict(list)
    for point in points:
        if point.fitted:  # a row on all SMs has an absolute time alone
            shapes[point.operator.removesuffix(ABSOLUTE), point.shape].append(point.line)
    if sum(map(len, shapes.values())) <= _MOST_ROWS:
        return None
    taken: dict[str, int] = defaultdict(int)
    lines: set[int] = set()
    for operator, shape in sorted(shapes, key=lambda key: sha256(repr(key).encode()).digest()):
        if taken[operator] < _MOST_ROWS:
            own = set(shapes[operator, shape])
            taken[operator] += len(own)
            lines.update(own)
    return frozenset(lines)


def curve_of(gpu: GpuSpec, name: str) -> Curve:
    """A curve of the GPU; weights follow streams where the file has none for them."""
    return (name == CURVES[1] and gpu.sim.weights_curve) or gpu.sim.bandwidth_curve


def half_errors(points: Sequence[PartitionPoint]) -> dict[str, HalfErrors]:
    """By operator: the mean size of the error on the fitted half and held out."""
    sizes: dict[str, tuple[list[float], list[float]]] = defaultdict(lambda: ([], []))
    for point in points:
        sizes[point.operator][not point.fitted].append(error_of(point))
    return {name: (_mean(fitted), _mean(held_out)) for name, (fitted, held_out) in sizes.items()}


def error_of(point: PartitionPoint) -> float:
    """The size of the error in per cent, of a work rate in hundredths."""
    scale = 1.0 if point.unit == WORK_RATE else point.measured
    return 100.0 * abs(point.simulated - point.measured) / scale


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


class _FitStep:
    """Some of the constants, fitted to the rows over SMs (``alone``) or to the pairs."""

    def __init__(
        self,
        gpu: GpuSpec,
        laws: dict[str, DrawLaw],
        points: Callable[[GpuSpec], list[PartitionPoint]],
        *,
        alone: bool,
    ) -> None:
        self._gpu, self._points, self._alone = gpu, points, alone
        self._start, self._bounds = _start_of(gpu, laws) if alone else _pairs_of(gpu)
        self._known: dict[tuple[float, ...], float] = {}
        self._names = self._told()

    @property
    def left(self) -> list[str]:
        """Constants that change nothing on the fitted half, in words of the file."""
        names = dict.fromkeys(name.split(".")[0] for name in self._start)
        told = {name.split(".")[0] for name in self._names}
        return [name for name in names if name not in told]

    def doubts(self) -> list[str]:
        """A sentence where there are too few rows for so many numbers."""
        rows = len(self._rows(self._gpu))
        if not self._names or rows >= _ROWS_EACH * len(self._names):
            return []
        return [
            f"TOO FEW ROWS: {len(self._names)} numbers ({', '.join(self._names)}) are fitted to "
            f"{rows} rows; neither they nor their ranges mean much"
        ]

    def run(self, evaluations: int) -> Values:
        """The values found, rounded as they are printed."""
        names = self._names
        if not names:
            return dict(self._start)
        start = np.array([self._start[name] for name in names])
        low, high = (np.array([self._bounds[name][i] for name in names]) for i in (0, 1))
        scale = np.maximum(np.abs(start), 0.1 * high)

        def loss(scaled: Vector) -> float:
            values = np.clip(scaled * scale, low, high)
            outside = float(np.abs((scaled * scale - values) / scale).sum())
            return self._error(self._with(dict(zip(names, values.tolist(), strict=True)))) + (
                100.0 * outside
            )

        best, _ = nelder_mead(loss, start / scale, evaluations)
        found = np.clip(best * scale, low, high).tolist()
        rounded = {n: float(f"{v:.3g}") for n, v in zip(names, found, strict=True)}
        return self._with(rounded)

    def ranges(self, values: Values) -> dict[str, tuple[float, float]]:
        """How far each constant may go alone before the fitted error grows by a tenth."""
        most = self._error(values) * RANGE_GROWTH + _NOTHING
        made = {}
        told = {name.split(".")[0] for name in self._names}
        for name in [name for name in CURVES if name in told]:
            # Both curves have a range, so that each is stretched alone.
            gpu = msgspec.structs.replace(
                self.gpu_of(values), ranges=dict.fromkeys(CURVES, _FACTORS)
            )

            def stretched(factor: float, name: str = name, gpu: GpuSpec = gpu) -> float:
                return self._error_of(with_constants(gpu, {name: factor}))

            ends = [_end(stretched, 1.0, bound, most) for bound in _FACTORS]
            made[name] = ends[0], ends[1]
        for name in self._names:
            if "." in name:
                continue

            def moved(value: float, name: str = name) -> float:
                return self._error({**values, name: value})

            ends = [_end(moved, values[name], bound, most) for bound in self._bounds[name]]
            made[name] = ends[0], ends[1]
        return made

    def gpu_of(self, values: Values) -> GpuSpec:
        """The GPU with these constants; what the table says nothing about stays the file's."""
        told = {name.split(".")[0] for name in self._names}
        return self._made({n: v for n, v in values.items() if n.split(".")[0] in told})

    def laws_of(self, values: Values) -> dict[str, DrawLaw]:
        """The laws of the curves among them."""
        names = [name for name in CURVES if f"{name}.gbps" in self._start]
        return {n: DrawLaw(values[f"{n}.gbps"], values[f"{n}.knee"]) for n in names}

    def _with(self, changed: Values) -> Values:
        return {**self._start, **changed}

    def _told(self) -> list[str]:
        """The constants whose change changes the error on the fitted half."""
        here = self._error(self._start)
        found = []
        for name, (low, high) in self._bounds.items():
            value = self._start[name]
            tried = {low, high, 0.5 * (value + low), 0.5 * (value + high)}
            errors = [self._error(self._with({name: other})) for other in sorted(tried)]
            if any(abs(error - here) > _NOTHING for error in errors):
                found.append(name)
        return found

    def _error(self, values: Values) -> float:
        """On the fitted half of this step's rows: the mean over operators."""
        key = tuple(values.values())
        if key not in self._known:
            self._known[key] = self._error_of(self._made(values))
        return self._known[key]

    def _error_of(self, gpu: GpuSpec) -> float:
        return mean_error(half_errors(self._rows(gpu)), 0) or 0.0

    def _rows(self, gpu: GpuSpec) -> list[PartitionPoint]:
        """The rows of the fitted half that the step is about."""
        return [
            point
            for point in self._points(gpu)
            if point.fitted and (point.unit == TIME_OVER_ALL) == self._alone
        ]

    def _made(self, values: Values) -> GpuSpec:
        """The file's GPU with some constants; a law needs both of its numbers."""
        sim = self._gpu.sim
        changes: dict[str, object] = {n: v for n, v in values.items() if "." not in n}
        for name in CURVES:
            if f"{name}.gbps" in values:
                law = DrawLaw(values[f"{name}.gbps"], values[f"{name}.knee"])
                changes[name] = law.curve(self._gpu)
        return msgspec.structs.replace(self._gpu, sim=msgspec.structs.replace(sim, **changes))


def _end(error: Callable[[float], float], used: float, bound: float, most: float) -> float:
    """The value furthest from ``used`` towards ``bound`` whose error is at most ``most``, by
    bisection.
    """
    good, bad = used, bound
    if error(bound) <= most:
        return bound
    for _ in range(_BISECTIONS):
        middle = 0.5 * (good + bad)
        if error(middle) <= most:
            good = middle
        else:
            bad = middle
    return float(f"{good:.3g}")


def _start_of(
    gpu: GpuSpec, laws: dict[str, DrawLaw]
) -> tuple[Values, dict[str, tuple[float, float]]]:
    """Where rows over SMs start from, and how far they may go."""
    share = attained(gpu) / gpu.num_sms
    rate = float(f"{0.5 * share:.3g}"), float(f"{20.0 * share:.3g}")
    start, bounds = Values(), dict[str, tuple[float, float]]()
    for name, law in laws.items():
        start |= {f"{name}.gbps": law.gbps, f"{name}.knee": law.knee}
        bounds |= {f"{name}.gbps": gbps_bounds(gpu), f"{name}.knee": (0.0, MOST_KNEE)}
    # A file without a limit is as one with more than all SMs together can use.
    start["attention_sm_gbps"] = min(max(gpu.sim.attention_sm_gbps, rate[0]), 3.0 * share)
    bounds["attention_sm_gbps"] = rate
    start["clock_gain"] = gpu.sim.clock_gain
    bounds["clock_gain"] = (0.0, 0.5)
    return start, bounds


def _pairs_of(gpu: GpuSpec) -> tuple[Values, dict[str, tuple[float, float]]]:
    return {name: float(getattr(gpu.sim, name)) for name in PAIRS}, PAIRS
