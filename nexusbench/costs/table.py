"""The belief that only interpolates: measured latencies and slowdowns, made monotone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from nexusbench.core.batch import BatchShape
from nexusbench.core.errors import UsageError
from nexusbench.core.specs import GpuSpec, ModelSpec
from nexusbench.core.work import chunk_work, equivalent_context, portion
from nexusbench.costs.base import CostModel, CostModelOptions, FittedParameters, Target
from nexusbench.profiles.points import Point
from nexusbench.profiles.surface import Slowdowns, Surface, between, bracket, contested


class TableOptions(CostModelOptions, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``contention`` false leaves neighbours out: no pairs need be measured then."""

    contention: bool = True


class TableParameters(FittedParameters, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """ns of either phase alone, what of a decode is its context's (``attention``), by how much
    longer that takes beside chunks in one batch (``mixed``), and the slowdowns.
    """

    prefill: Surface
    decode: Surface
    attention: Surface
    mixed: float
    prefill_slowdowns: Slowdowns | None
    decode_slowdowns: Slowdowns | None


class TableCost(CostModel):
    """Measured times, interpolated linearly in tokens, contexts and 1/SMs.

    Several chunks count as one with as many tokens and (query, key) pairs; decodes of different
    lengths as decodes of their mean. A mixed batch is a prefill of all its tokens plus what the
    decodes' contexts cost. Beside a neighbour the time is multiplied by the slowdown measured
    nearby; on SMs that both claim, by what was measured where they shared all of them, as far as
    they are shared.
    """

    Options: ClassVar[type[CostModelOptions]] = TableOptions
    Parameters: ClassVar[type[FittedParameters]] = TableParameters
    source: ClassVar[str] = "monotone interpolation of a profile; needs one"

    def __init__(
        self,
        options: TableOptions | None = None,
        *,
        gpu: GpuSpec,
        model: ModelSpec,
        tensor_parallel: int = 1,
        parameters: TableParameters | None = None,
    ) -> None:
        super().__init__(options, gpu=gpu, model=model, tensor_parallel=tensor_parallel)
        if parameters is None:
            raise UsageError(
                "cost model 'table' is only a profile's: give one with --profile DIR (made by "
                "nexusbench profile)"
            )
        self.parameters = parameters
        self._fitted, self._layers, self._num_sms = parameters, model.num_layers, gpu.num_sms
        contention = options is None or options.contention
        self._prefill_slowdowns = parameters.prefill_slowdowns if contention else None
        self._decode_slowdowns = parameters.decode_slowdowns if contention else None
        # Alone it is; beside a neighbour a measured slowdown may grow with a side's own SMs.
        self.monotone = self._decode_slowdowns is None

    def predict(
        self, shape: BatchShape, sms: int, neighbour: tuple[BatchShape, int] | None = None
    ) -> float:
        """Nanoseconds; see the class for what is interpolated."""
        time = 0.0
        for surface, size, context, weight in self._parts(shape):
            time += weight * surface.value(size, context, sms)
        time *= portion(shape, self._layers)
        if neighbour is None:
            return time
        slowdowns = self._prefill_slowdowns if shape.chunks else self._decode_slowdowns
        if slowdowns is None:
            return time
        prefills, decodes = slowdowns.around(shape, neighbour[0])
        k, u = bracket(slowdowns.own, sms)
        m = k + 1
        low = high = together = 0.0
        for i, share in prefills:
            row = slowdowns.values[i]
            for j, part in decodes:
                line, weight = row[j], share * part
                low += weight * line[k]
                high += weight * line[m]
                together += weight * line[-1]
        shared = sms + neighbour[1] - self._num_sms
        return time * contested(low * (1.0 - u) + high * u, together, sms, shared)

    def predict_splits(
        self,
        shape: BatchShape,
        sms: Sequence[int],
        neighbour: BatchShape | None = None,
        neighbour_sms: Sequence[int] = (),
    ) -> list[float]:
        """As :meth:`predict`, to the bit; what does not depend on SMs is looked up once."""
        parts = [
            (surface.inverse_sms, surface.line(size, context), weight)
            for surface, size, context, weight in self._parts(shape)
        ]
        passes, times = portion(shape, self._layers), []
        for own in sms:
            time = 0.0
            for axis, line, weight in parts:
                time += weight * between(axis, line, 1.0 / own)
            times.append(time * passes)
        slowdowns = self._prefill_slowdowns if shape.chunks else self._decode_slowdowns
        if neighbour is None or slowdowns is None:
            return times
        line = [0.0] * (len(slowdowns.own) + 1)
        prefills, decodes = slowdowns.around(shape, neighbour)
        for i, share in prefills:
            for j, part in decodes:
                weight, values = share * part, slowdowns.values[i][j]
                line = [x + weight * y for x, y in zip(line, values, strict=True)]
        num_sms, axis, shared = self._num_sms, slowdowns.own, line[-1]
        return [
            time * contested(between(axis, line, own), shared, own, own + other - num_sms)
            for time, own, other in zip(times, sms, neighbour_sms, strict=True)
        ]

    def _parts(self, shape: BatchShape) -> list[tuple[Surface, float, float, float]]:
        """What is looked up and added: surface, size, context, weight."""
        fitted, count = self._fitted, shape.num_decodes
        if not shape.chunks:
            return [(fitted.decode, count, shape.decode_context / count, 1.0)]
        return mixed_parts(fitted.prefill, fitted.attention, shape, fitted.mixed)

    @classmethod
    def fit(
        cls, points: Sequence[Point], target: Target, options: CostModelOptions
    ) -> TableParameters:
        """From prefill and decode alone over SMs, from pairs, and from mixed batches if there are.

        Raises UsageError if the points do not determine it, naming what to measure.
        """
        from nexusbench.costs._fit_table import fit_table

        assert isinstance(options, TableOptions)
        return fit_table(points, target, contention=options.contention)


def mixed_parts(
    prefill: Surface, attention: Surface, shape: BatchShape, mixed: float
) -> list[tuple[Surface, float, float, float]]:
    """A batch with chunks: all its tokens through the prefill's layers, and the decodes' contexts.

    The decodes' dense work is that of as many more prefill tokens with no pairs of their own.
    """
    tokens, pairs = chunk_work(shape.chunks)
    count = shape.num_decodes
    rows = tokens + count
    parts = [(prefill, float(rows), equivalent_context(rows, pairs), 1.0)]
    if count:
        parts.append((attention, float(count), shape.decode_context / count, mixed))
    return parts
