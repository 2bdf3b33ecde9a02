"""MuxWise's estimator (arXiv 2504.14489): linear in tokens, and guarded against neighbours."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import msgspec

from nexusbench.core.batch import BatchShape
from nexusbench.core.errors import UsageError
from nexusbench.core.specs import GpuSpec, ModelSpec
from nexusbench.core.work import portion
from nexusbench.costs.base import CostModel, CostModelOptions, FittedParameters, Target
from nexusbench.profiles.points import Point
from nexusbench.profiles.surface import between, bracket

Cell = tuple[int, int, int, int]  # new and reused prefill tokens, decode batch, reused tokens
# (1/SMs, coefficients over it, amounts): sum of coefficient times amount.
Terms = tuple[tuple[float, ...], tuple[tuple[float, ...], ...], tuple[float, ...]]
# How far apart two splits are, in cells: per whole GPU of own SMs, and per own SM contested or not.
OWN_WEIGHT, CONTESTED_WEIGHT = 4.0, 8.0
LEAST_NS = 1.0  # of any step: non-negative coefficients may all be zero


class LinearOptions(CostModelOptions, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``guard``: a step beside a neighbour takes its time alone times the worst (``max``) or the
    ``mean`` slowdown seen in its cell, or no more (``none``). ``guarded``: which phase.
    """

    guard: Literal["max", "mean", "none"] = "max"
    guarded: Literal["decode", "both"] = "both"


class Guard(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Slowdowns seen by one phase: per cell and split (own SMs, SMs that the neighbour claims too)
    the worst and the mean.
    """

    cells: tuple[tuple[int, int, int, int, int, int], ...]
    worst: tuple[float, ...]
    mean: tuple[float, ...]


class LinearParameters(FittedParameters, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Coefficients in ns, [term][1/SMs], over ascending ``prefill_axis`` and ``decode_axis`` (of
    1/SMs).

    Prefill's terms: sum n^2, sum n r, sum n, 1 for n new tokens after r reused ones; decode's:
    sum r, batch size, 1. ``mixed``: by how much longer a decode's reused tokens take beside chunks
    in one batch.
    """

    prefill_axis: tuple[float, ...]
    prefill: tuple[tuple[float, ...], ...]
    decode_axis: tuple[float, ...]
    decode: tuple[tuple[float, ...], ...]
    mixed: float
    prefill_guard: Guard
    decode_guard: Guard


class LinearCost(CostModel):
    """T_prefill = t1 sum n^2 + t2 sum n r + t3 sum n + t4; T_decode = t1 sum r + t2 bs + t3.

    The coefficients are linear in 1/SMs between the SM counts they were fitted for. MuxWise never
    mixes the phases in one batch; here a mixed one is a prefill in which each decode is one more
    new token, plus decode's t1 for what it reuses. MuxWise guards decode only; why ``guarded``
    is ``both`` stands in docs/cost-models.md.
    """

    Options: ClassVar[type[CostModelOptions]] = LinearOptions
    Parameters: ClassVar[type[FittedParameters]] = LinearParameters
    monotone = False  # every SM count is fitted on its own, and cells of the guard are steps
    source: ClassVar[str] = "MuxWise, arXiv 2504.14489: estimator and contention guard"

    def __init__(
        self,
        options: LinearOptions | None = None,
        *,
        gpu: GpuSpec,
        model: ModelSpec,
        tensor_parallel: int = 1,
        parameters: LinearParameters | None = None,
    ) -> None:
        super().__init__(options, gpu=gpu, model=model, tensor_parallel=tensor_parallel)
        if parameters is None:
            raise UsageError(
                "cost model 'linear' is only a profile's: give one with --profile DIR (made by "
                "nexusbench profile)"
            )
        self.parameters = parameters
        self._fitted, self._layers, self._num_sms = parameters, model.num_layers, gpu.num_sms
        own = options if options is not None else LinearOptions()
        self._decode_guard = _Nearest(parameters.decode_guard, own.guard, gpu.num_sms)
        of_prefill: str = own.guard if own.guarded == "both" else "none"
        self._prefill_guard = _Nearest(parameters.prefill_guard, of_prefill, gpu.num_sms)

    def predict(
        self, shape: BatchShape, sms: int, neighbour: tuple[BatchShape, int] | None = None
    ) -> float:
        """Nanoseconds; see the class for the formula."""
        time = 0.0
        for axis, coefficients, amounts in self._terms(shape):
            k, u = bracket(axis, 1.0 / sms)
            low = high = 0.0
            for line, amount in zip(coefficients, amounts, strict=True):
                low += amount * line[k]
                high += amount * line[k + 1]
            time += low * (1.0 - u) + high * u
        time = max(time, LEAST_NS) * portion(shape, self._layers)
        if neighbour is None:
            return time
        guard = self._prefill_guard if shape.chunks else self._decode_guard
        return time * guard(cell_of(shape, neighbour[0]), sms, neighbour[1])

    def predict_splits(
        self,
        shape: BatchShape,
        sms: Sequence[int],
        neighbour: BatchShape | None = None,
        neighbour_sms: Sequence[int] = (),
    ) -> list[float]:
        """As :meth:`predict`, to the bit; what does not depend on SMs is added up once."""
        parts = []
        for axis, coefficients, amounts in self._terms(shape):
            line = [0.0] * len(axis)
            for values, amount in zip(coefficients, amounts, strict=True):
                line = [x + amount * y for x, y in zip(line, values, strict=True)]
            parts.append((axis, line))
        passes, times = portion(shape, self._layers), []
        for own in sms:
            time = 0.0
            for axis, line in parts:
                time += between(axis, line, 1.0 / own)
            times.append(max(time, LEAST_NS) * passes)
        if neighbour is None:
            return times
        guard = self._prefill_guard if shape.chunks else self._decode_guard
        cell = cell_of(shape, neighbour)
        return [
            time * guard(cell, own, other)
            for time, own, other in zip(times, sms, neighbour_sms, strict=True)
        ]

    def _terms(self, shape: BatchShape) -> list[Terms]:
        """The sums to add."""
        fitted = self._fitted
        if not shape.chunks:
            return [(fitted.decode_axis, fitted.decode, decode_amounts(shape))]
        parts: list[Terms] = [(fitted.prefill_axis, fitted.prefill, prefill_amounts(shape))]
        if shape.num_decodes:
            reused = fitted.mixed * shape.decode_context
            parts.append((fitted.decode_axis, fitted.decode[:1], (reused,)))
        return parts

    @classmethod
    def fit(
        cls, points: Sequence[Point], target: Target, options: CostModelOptions
    ) -> LinearParameters:
        """Non-negative least squares of the relative errors, per SM count; cells from pairs.

        Raises UsageError if the points do not determine it, naming what to measure.
        """
        from nexusbench.costs._fit_linear import fit_linear

        assert isinstance(options, LinearOptions)
        return fit_linear(points, target, guarded=options.guard != "none")


def prefill_amounts(shape: BatchShape) -> tuple[float, float, float, float]:
    """Sum n^2, sum n r, sum n (a decode is one more new token), 1."""
    squares = products = 0.0
    tokens = shape.num_decodes
    for count, reused in shape.chunks:
        squares += count * count
        products += count * reused
        tokens += count
    return squares, products, float(tokens), 1.0


def decode_amounts(shape: BatchShape) -> tuple[float, float, float]:
    """Sum r, batch size, 1."""
    return float(shape.decode_context), float(shape.num_decodes), 1.0


def cell_of(shape: BatchShape, neighbour: BatchShape) -> Cell:
    """The cell of a pair, whichever side is which: powers of 4 of what both compute.

    As in MuxWise, numbers of tokens are distinguished from 2K on: fewer hardly differ in how they
    slow a neighbour, and their logarithms would put 0 and 1,000 farther apart than 1,000 and
    30,000.
    """
    new = reused = batch = keys = 0
    for side in (shape, neighbour):
        batch += side.num_decodes
        keys += side.decode_context
        for count, before in side.chunks:
            new += count
            reused += before
    tokens = (power_of_4(new >> 11), power_of_4(reused >> 11), power_of_4(keys >> 11))
    return tokens[0], tokens[1], power_of_4(batch), tokens[2]


def power_of_4(count: int) -> int:
    """0 for none, else 1 + the largest p with 4^p <= count."""
    return (count.bit_length() + 1) // 2


class _Nearest:
    """A guard that gives a cell without measurements the slowdown of the nearest one."""

    def __init__(self, guard: Guard, kind: str, num_sms: int) -> None:
        self._num_sms = num_sms
        self._cells = guard.cells if kind != "none" else ()
        self._slowdowns = guard.worst if kind == "max" else guard.mean
        self._known: dict[tuple[Cell, int, int], float] = {}

    def __call__(self, cell: Cell, sms: int, neighbour_sms: int) -> float:
        known = self._known.get((cell, sms, neighbour_sms))
        if known is None:
            known = self._known[cell, sms, neighbour_sms] = self._find(cell, sms, neighbour_sms)
        return known

    def _find(self, cell: Cell, sms: int, neighbour_sms: int) -> float:
        """The slowdown of the nearest cell and split; of equally near ones the larger."""
        if not self._cells:
            return 1.0
        a, b, c, d = cell
        scale = OWN_WEIGHT / self._num_sms
        shared = contested_share(sms, neighbour_sms, self._num_sms)
        nearest, slowdown = 0.0, -1.0
        for (p, q, r, s, own, other), seen in zip(self._cells, self._slowdowns, strict=True):
            far = abs(a - p) + abs(b - q) + abs(c - r) + abs(d - s) + scale * abs(sms - own)
            far += CONTESTED_WEIGHT * abs(shared - contested_share(own, other, self._num_sms))
            if slowdown < 0.0 or far < nearest or (far == nearest and seen > slowdown):
                nearest, slowdown = far, seen
        return slowdown


def contested_share(sms: int, neighbour_sms: int, num_sms: int) -> float:
    """Share of the own SMs that the neighbour claims too."""
    return min(1.0, max(0, sms + neighbour_sms - num_sms) / sms)
