"""Nexus's cost model (arXiv 2507.06608, section 4.1.1): saturation-decay curves and contention."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal

import msgspec

from nexusbench.core.batch import BatchShape
from nexusbench.core.specs import GpuSpec, ModelSpec
from nexusbench.costs.base import CostModel, CostModelOptions, FittedParameters, Target
from nexusbench.profiles.points import Point
from nexusbench.profiles.stages import Stages, StageWork

# A float or an array of them (over splits, or over points in a fit): every formula serves both.
Number = Any
Larger = Callable[[Number, Number], Number]
EXPONENTIAL_TERMS = 16  # of the series for exp(x), x at most about 2: exact to rounding


class NexusCostOptions(CostModelOptions, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Readings of section 4.1.1, whose formulas are images in every copy at hand.

    ``curve`` above R_sat: A, extra SMs count with weight lambda; B, latency decays with
    exp(-lambda (r - R_sat)). ``memory``: ``printed``, memory time does not depend on SMs;
    ``curve``, bandwidth has a saturation-decay curve of its own. ``contention``: ``counts``, the
    shares of bandwidth follow byte counts as printed; ``rates``, bytes per time; ``classes``, a
    fitted slowdown for each pair of operator classes, weighted by the probability that they
    overlap, for both stages; ``none``.
    """

    curve: Literal["A", "B"] = "A"
    memory: Literal["printed", "curve"] = "curve"
    contention: Literal["counts", "rates", "classes", "none"] = "classes"


class SaturationCurve(FittedParameters, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Saturation-decay: ``saturation`` is R_sat (a share of the SMs), ``decay`` lambda,
    ``efficiency`` the share of the published peak that all SMs reach.
    """

    saturation: float = 1.0
    decay: float = 1.0
    efficiency: float = 1.0


class NexusStage(FittedParameters, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A stage's curves per operator class, of compute and of memory, and ns that no SM shortens.

    ``contention`` holds how much slower (dense, attention) of this stage get while the neighbour
    is in its (dense, attention) on all SMs: dense/dense, dense/attention, attention/dense,
    attention/attention.
    """

    dense: SaturationCurve = SaturationCurve()
    attention: SaturationCurve = SaturationCurve()
    dense_memory: SaturationCurve = SaturationCurve()
    attention_memory: SaturationCurve = SaturationCurve()
    fixed_ns: float = 0.0
    contention: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)


class NexusParameters(FittedParameters, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One stage each; they are fitted apart, as the paper profiles them apart."""

    prefill: NexusStage
    decode: NexusStage


class NexusTimes(msgspec.Struct, frozen=True, gc=False):
    """A stage's time by class: ns of dense layers, attention and the rest, bytes of the first two;
    ``streamed`` is the decode attention's share of ``attention`` and its bytes.
    """

    dense: Number
    attention: Number
    fixed: float
    dense_bytes: Number
    attention_bytes: Number
    streamed: Number
    streamed_bytes: Number


class NexusCost(CostModel):
    """Sum over operators of max(compute, memory) with a two-regime curve in the share of SMs.

    Compute is c / (C g(r)), g(r) = r up to R_sat and R_sat + lambda (r - R_sat) beyond (A).
    Decode's attention shares bandwidth with what the neighbouring prefill is doing, with P_attn the
    share of its time in attention. R_sat and lambda are per stage and operator class, from
    whole-stage latencies (sections 4.1.1 and 5).
    """

    Options: ClassVar[type[CostModelOptions]] = NexusCostOptions
    Parameters: ClassVar[type[FittedParameters]] = NexusParameters
    source: ClassVar[str] = "Nexus section 4.1.1 (2507.06608); readings in docs/cost-models.md"

    def __init__(
        self,
        options: NexusCostOptions | None = None,
        *,
        gpu: GpuSpec,
        model: ModelSpec,
        tensor_parallel: int = 1,
        parameters: NexusParameters,
    ) -> None:
        super().__init__(
            options, gpu=gpu, model=model, tensor_parallel=tensor_parallel, parameters=parameters
        )
        own = options if options is not None else NexusCostOptions()
        self._curve, self._memory, self._contention = own.curve, own.memory, own.contention
        self._fitted = parameters
        self._num_sms = gpu.num_sms
        self._stages = Stages(gpu, model, tensor_parallel)
        self._num_layers = model.num_layers

    def predict(
        self, shape: BatchShape, sms: int, neighbour: tuple[BatchShape, int] | None = None
    ) -> float:
        """Nanoseconds; see the class for the formula."""
        beside, beside_share = None, 0.0
        if neighbour is not None:
            beside, beside_share = neighbour[0], neighbour[1] / self._num_sms
        time = self._time(shape, sms / self._num_sms, beside, beside_share, _larger)
        return float(time)

    def predict_splits(
        self,
        shape: BatchShape,
        sms: Sequence[int],
        neighbour: BatchShape | None = None,
        neighbour_sms: Sequence[int] = (),
    ) -> list[float]:
        """The same formula over an array of splits."""
        import numpy as np

        share = np.array(sms, dtype=np.float64) / self._num_sms
        beside_share = np.array(neighbour_sms, dtype=np.float64) / self._num_sms
        times = self._time(shape, share, neighbour, beside_share, np.maximum)
        return np.broadcast_to(times, share.shape).tolist()  # type: ignore[no-any-return]

    @classmethod
    def fit(
        cls, points: Sequence[Point], target: Target, options: CostModelOptions
    ) -> NexusParameters:
        """Curves from latencies alone, one stage after the other; then contention from pairs."""
        from nexusbench.costs._nexus_fit import fit

        assert isinstance(options, NexusCostOptions)
        return fit(points, target, options)

    def _time(
        self,
        shape: BatchShape,
        share: Number,
        beside: BatchShape | None,
        beside_share: Number,
        larger: Larger,
    ) -> Number:
        stage = self._fitted.prefill if shape.chunks else self._fitted.decode
        mine = self._parts(self._stages.work(shape), stage, share, larger)
        total = mine.fixed + mine.dense + mine.attention
        if beside is not None and self._contention != "none":
            other = self._fitted.prefill if beside.chunks else self._fitted.decode
            theirs = self._parts(self._stages.work(beside), other, beside_share, larger)
            if self._contention == "classes":
                total = total + slowed(mine, theirs, stage, beside_share)
            elif beside.chunks and shape.num_decodes:
                total = total + self._starved(mine, theirs, larger)
        if shape.layers is not None:
            total = total * ((shape.layers[1] - shape.layers[0]) / self._num_layers)
        return total * shape.repeat

    def _parts(
        self, work: StageWork, stage: NexusStage, share: Number, larger: Larger
    ) -> NexusTimes:
        return parts(work, stage, share, larger, self._curve, self._memory)

    def _starved(self, mine: NexusTimes, theirs: NexusTimes, larger: Larger) -> Number:
        """Extra ns of decode attention on the bandwidth that the prefill beside it leaves."""
        bandwidth = self._stages.bytes_per_ns * self._fitted.decode.attention_memory.efficiency
        counts = self._contention == "counts"
        own = mine.streamed_bytes if counts else mine.streamed_bytes / mine.streamed
        attention, dense = theirs.attention_bytes, theirs.dense_bytes
        if not counts:
            attention, dense = attention / theirs.attention, dense / theirs.dense
        in_attention = theirs.attention / (theirs.attention + theirs.dense)
        left = in_attention * (own / (own + attention)) + (1.0 - in_attention) * (
            own / (own + dense)
        )
        return larger(mine.streamed_bytes / (bandwidth * left) - mine.streamed, 0.0)


def parts(
    work: StageWork, stage: NexusStage, share: Number, larger: Larger, curve: str, memory: str
) -> NexusTimes:
    """A batch's time by class on ``share`` of the SMs, alone."""
    speed = gain(stage.dense, share, larger, curve) * work.flops_per_ns
    band = work.bytes_per_ns * (
        gain(stage.dense_memory, share, larger, curve)
        if memory == "curve"
        else stage.dense_memory.efficiency
    )
    dense: Number = 0.0
    moved: Number = 0.0
    for flops, size in work.dense:
        dense = dense + larger(flops / speed, size / band)
        moved = moved + size
    speed = gain(stage.attention, share, larger, curve) * work.flops_per_ns
    band = work.bytes_per_ns * (
        gain(stage.attention_memory, share, larger, curve)
        if memory == "curve"
        else stage.attention_memory.efficiency
    )
    streamed = work.decode_bytes / band
    attention = larger(work.chunk_flops / speed, work.chunk_bytes / band) + streamed
    size = work.chunk_bytes + work.decode_bytes
    return NexusTimes(dense, attention, stage.fixed_ns, moved, size, streamed, work.decode_bytes)


def gain(curve: SaturationCurve, share: Number, larger: Larger, form: str) -> Number:
    """Share of the published peak that ``share`` of the SMs reach; all SMs reach ``efficiency``."""
    beyond = larger(share - curve.saturation, 0.0)
    below = share - beyond
    most = 1.0 - curve.saturation
    if form == "A":
        reached = below + curve.decay * beyond
        whole = curve.saturation + curve.decay * most
    else:
        reached = below * exponential(curve.decay * beyond)
        whole = curve.saturation * exponential(curve.decay * most)
    return curve.efficiency * reached / whole


def exponential(x: Number) -> Number:
    """exp(x) by its series: the C library's differs between machines in the last digit (I6)."""
    term: Number = 1.0
    total: Number = 1.0
    for k in range(1, EXPONENTIAL_TERMS + 1):
        term = term * x / k
        total = total + term
    return total


def slowed(mine: NexusTimes, theirs: NexusTimes, stage: NexusStage, beside_share: Number) -> Number:
    """Extra ns: each operator class of ``mine`` is slowed by each of ``theirs``, weighted by the
    share of time in which that one runs.
    """
    whole = theirs.fixed + theirs.dense + theirs.attention
    dense, attention = theirs.dense / whole, theirs.attention / whole
    dd, da, ad, aa = stage.contention
    mixed_dense = mine.dense * (dd * dense + da * attention)
    mixed_attention = mine.attention * (ad * dense + aa * attention)
    return beside_share * (mixed_dense + mixed_attention)


def _larger(a: float, b: float) -> float:
    return a if a > b else b
