"""The analytic belief: Nexus's cost model with published peaks instead of fitted constants; fitted
to a profile, Bullet's SM-scaling roofline.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from nexusbench.core.batch import BatchShape
from nexusbench.core.mixer_work import Amounts
from nexusbench.core.registry import Share
from nexusbench.core.specs import GpuSpec, ModelSpec
from nexusbench.core.work import chunk_work, model_work, portion
from nexusbench.costs._calibration import Beside, Operators, Rates, RooflineParameters, rooflines
from nexusbench.costs.base import CostModel, CostModelOptions, FittedParameters, Target
from nexusbench.profiles.points import Point
from nexusbench.profiles.surface import between

RooflineWork = tuple[Operators, Amounts, Amounts]  # see Roofline.operators


class RooflineOptions(CostModelOptions, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Assumptions that a data sheet does not settle.

    ``bandwidth_sms``: share of SMs that saturates HBM (Bullet's N_d/N, 30 of 108 on an A100,
    2504.19516 Eq. 1); 0 gives Nexus's form, in which memory time does not depend on SMs. A fit
    finds it. ``contention``: Nexus section 4.1.1, with byte rates; fitted, what was measured
    beside a neighbour.
    """

    bandwidth_sms: Share = 30 / 108
    contention: bool = True


class Roofline(CostModel):
    """Sum over operators of max(compute, memory), decode attention sharing HBM with the neighbour.

    Compute is c/(C r) for a share r of the SMs (Nexus section 4.1.1 with R_sat = 1: nothing was
    fitted). Decode attention's bandwidth beside a prefill is B (P_attn b_d/(b_d + b_p1) + P_dense
    b_d/(b_d + b_p2)), where the b are byte *rates* (bytes over the time in which they move) and
    P_attn is the share of prefill time in attention; the paper's plain byte counts compare one
    decode step with a whole chunk, which starves any decode.

    With ``parameters`` both terms are stretched by alpha, fitted per phase and operator class over
    batch sizes and SMs; decode's bandwidth beside a prefill is what was measured there, and prefill
    beside decode is slowed down as measured (Bullet, section 3, Eq. 1-2).
    """

    Options: ClassVar[type[CostModelOptions]] = RooflineOptions
    Parameters: ClassVar[type[FittedParameters]] = RooflineParameters
    works_unfitted: ClassVar[bool] = True
    found_by_fit: ClassVar[tuple[str, ...]] = ("bandwidth_sms",)
    source: ClassVar[str] = (
        "Nexus section 4.1.1 (2507.06608); bandwidth over SMs after Bullet (2504.19516)"
    )

    def __init__(
        self,
        options: RooflineOptions | None = None,
        *,
        gpu: GpuSpec,
        model: ModelSpec,
        tensor_parallel: int = 1,
        parameters: RooflineParameters | None = None,
    ) -> None:
        super().__init__(
            options,
            gpu=gpu,
            model=model,
            tensor_parallel=tensor_parallel,
            parameters=parameters,
        )
        own = options if options is not None else RooflineOptions()
        self._contention = own.contention
        self._bandwidth_sms = own.bandwidth_sms * gpu.num_sms
        self._num_sms = gpu.num_sms
        self._flops_per_ns = gpu.peak_tflops * 1e3
        self._bytes_per_ns = gpu.hbm_gbps
        work = model_work(model, tensor_parallel)
        self._work = work
        head = work.head
        self._head_flops = 2.0 * head.inputs * head.outputs
        self._head_bytes = head.inputs * head.outputs * work.head_bytes_each
        self._asked: tuple[tuple[BatchShape, RooflineWork], ...] = ()  # the last two
        self._calibrated = parameters is not None
        if parameters is not None:
            self._calibrate(parameters, gpu)

    def predict(
        self, shape: BatchShape, sms: int, neighbour: tuple[BatchShape, int] | None = None
    ) -> float:
        """Nanoseconds; see the class for the formula."""
        if self._calibrated:
            return self._fitted_time(shape, sms, neighbour)
        beside = None
        if neighbour is not None and self._contention and neighbour[0].chunks:
            beside = (self.operators(neighbour[0]), neighbour[1])
        return self._analytic(shape, self.operators(shape), sms, beside)

    def _analytic(
        self,
        shape: BatchShape,
        work: RooflineWork,
        sms: int,
        beside: tuple[RooflineWork, int] | None,
    ) -> float:
        """Unfitted: nanoseconds of ``shape``, which is ``work``, beside a neighbour's work."""
        dense, _, chunk_attention, _ = self._alone(work, sms)
        count, attention_bytes = work[2]  # of the decodes
        attention = attention_bytes / self._bandwidth(sms)
        if beside is not None and attention_bytes:
            bandwidth = self._shared_bandwidth(attention_bytes / attention, *beside)
            attention = max(attention, attention_bytes / min(bandwidth, self._bandwidth(sms)))
        # Only of many query heads over one latent: keys are waited for by all other decodes.
        attention = max(attention, count * self._num_sms / (self._flops_per_ns * sms))
        total = dense + chunk_attention + attention
        if shape.layers is not None:
            total *= (shape.layers[1] - shape.layers[0]) / self._work.num_layers
        return total * shape.repeat

    def _bandwidth(self, sms: int) -> float:
        """Bytes per ns that ``sms`` SMs can move."""
        return self._bytes_per_ns * min(
            1.0, sms / self._bandwidth_sms if self._bandwidth_sms else 1.0
        )

    def _analytic_splits(
        self,
        shape: BatchShape,
        sms: Sequence[int],
        neighbour: BatchShape | None,
        neighbour_sms: Sequence[int],
    ) -> list[float]:
        """Unfitted: :meth:`predict_splits`."""
        work = self.operators(shape)
        if neighbour is None or not self._contention or not neighbour.chunks:
            return [self._analytic(shape, work, own, None) for own in sms]
        other = self.operators(neighbour)
        return [
            self._analytic(shape, work, own, (other, theirs))
            for own, theirs in zip(sms, neighbour_sms, strict=True)
        ]

    def _alone(self, work: RooflineWork, sms: int) -> tuple[float, float, float, float]:
        """(dense ns, dense bytes, chunk attention ns, chunk attention bytes)."""
        flops, bandwidth = self._flops_per_ns * sms / self._num_sms, self._bandwidth(sms)
        time = moved = 0.0
        for count, size in work[0]:
            moved += size
            compute, memory = count / flops, size / bandwidth
            time += compute if compute > memory else memory
        count, size = work[1]
        return time, moved, max(count / flops, size / bandwidth), size

    def _shared_bandwidth(self, rate: float, work: RooflineWork, sms: int) -> float:
        """Bytes per ns left to decode attention that alone moves ``rate`` bytes per ns, beside a
        prefill's ``work`` on ``sms`` SMs.
        """
        dense, dense_bytes, attention, attention_bytes = self._alone(work, sms)
        in_attention = attention / (attention + dense)
        beside_attention = rate / (rate + attention_bytes / attention) if attention else 1.0
        beside_dense = rate / (rate + dense_bytes / dense)
        share = in_attention * beside_attention + (1.0 - in_attention) * beside_dense
        return self._bytes_per_ns * share

    # -- fitted ------------------------------------------------------------------------------------

    def _calibrate(self, fitted: RooflineParameters, gpu: GpuSpec) -> None:
        """Make the tables that fitted predictions look up."""
        classes = (fitted.prefill_dense, fitted.prefill_attention)
        self._prefill = Rates(fitted.prefill_sizes, classes, fitted, gpu)
        classes = (fitted.decode_dense, fitted.decode_attention)
        self._decode = Rates(fitted.decode_sizes, classes, fitted, gpu)
        self._mixed = fitted.mixed
        self._beside = Beside(fitted) if self._contention and fitted.lengths else None
        # Alone it is; beside a neighbour a measured slowdown may grow with a side's own SMs.
        self.monotone = self._beside is None

    def operators(self, shape: BatchShape) -> RooflineWork:
        """((FLOPs, bytes) of each dense operator, of the chunks' attention, of the decodes'
        attention), of all layers once.
        """
        # A split is searched by asking for the same shapes again and again; they are immutable.
        for known, found in self._asked:
            if known is shape:
                return found
        work = self._work
        dense = work.dense_work(shape.num_tokens)
        rows = shape.num_decodes + len(shape.chunks)
        dense.append((self._head_flops * rows, self._head_bytes))
        decodes = shape.num_decodes
        found = (
            dense,
            work.chunk_attention(shape.chunks),
            work.decode_attention(decodes, shape.decode_context + decodes),
        )
        self._asked = (*self._asked[-1:], (shape, found))
        return found

    def parts(self, shape: BatchShape, sms: int) -> tuple[float, float]:
        """Fitted, alone: (ns of all but the decodes' attention, ns of that as if among decodes)."""
        dense, attention, (_, kept) = self.operators(shape)
        if not shape.chunks:
            flop, byte, _, read = self._decode.at(shape.num_decodes, sms)
            return rooflines(dense, flop, byte), kept * read
        flop, byte, compute, read = self._prefill.at(shape.num_tokens, sms)
        time = rooflines(dense, flop, byte) + rooflines((attention,), compute, read)
        return time, kept * self._decode.at(shape.num_decodes, sms)[3] if kept else 0.0

    def decode_times(self, shape: BatchShape, sms: int) -> tuple[list[float], list[float]]:
        """Fitted, alone: ns of computing and ns of moving of each operator of a decode step."""
        dense, _, (_, kept) = self.operators(shape)
        flop, byte, _, read = self._decode.at(shape.num_decodes, sms)
        moving = [size * byte for _, size in dense]
        return [*[flops * flop for flops, _ in dense], 0.0], [*moving, kept * read]

    def _fitted_time(
        self, shape: BatchShape, sms: int, neighbour: tuple[BatchShape, int] | None
    ) -> float:
        passes = portion(shape, self._work.num_layers)
        if shape.chunks:
            time, more = self.parts(shape, sms)
            return passes * self._beside_decode(time + self._mixed * more, sms, neighbour)
        dense, _, (_, kept) = self.operators(shape)
        rates = self._decode.at(shape.num_decodes, sms)
        return passes * self._beside_prefill(dense, kept, rates, sms, neighbour)

    def _beside_prefill(
        self,
        dense: Operators,
        kept: float,
        rates: Sequence[float],
        sms: int,
        neighbour: tuple[BatchShape, int] | None,
    ) -> float:
        """Nanoseconds of a decode step that has those rates alone."""
        flop, byte, _, read = rates
        beside = self._beside
        if neighbour is None or beside is None or not neighbour[0].chunks:
            return rooflines(dense, flop, byte) + kept * read
        queries, pairs = chunk_work(neighbour[0].chunks)
        share = beside.decode_share(pairs / queries, sms)
        time = rooflines(dense, flop, byte / share) + kept * (read / share)
        shared = sms + neighbour[1] - self._num_sms
        if shared > 0:
            part = min(1.0, shared / sms)
            together = (rooflines(dense, flop, byte) + kept * read) * beside.overlapping[1]
            time = time * (1.0 - part) + max(time, together) * part
        return time

    def _beside_decode(
        self, time: float, sms: int, neighbour: tuple[BatchShape, int] | None
    ) -> float:
        """Nanoseconds of a batch with chunks that takes ``time`` alone."""
        beside = self._beside
        if neighbour is None or beside is None:
            return time
        slowdown = beside.prefill_slowdown(sms)
        shared = sms + neighbour[1] - self._num_sms
        if shared > 0:
            part = min(1.0, shared / sms)
            slowdown = slowdown * (1.0 - part) + max(slowdown, beside.overlapping[0]) * part
        return time * slowdown

    def predict_splits(
        self,
        shape: BatchShape,
        sms: Sequence[int],
        neighbour: BatchShape | None = None,
        neighbour_sms: Sequence[int] = (),
    ) -> list[float]:
        """As :meth:`predict`, to the bit; what does not depend on SMs is counted once."""
        if not self._calibrated:
            return self._analytic_splits(shape, sms, neighbour, neighbour_sms)
        dense, attention, (_, kept) = self.operators(shape)
        passes, count = portion(shape, self._work.num_layers), shape.num_decodes
        rates = self._prefill if shape.chunks else self._decode
        lines = rates.lines(shape.num_tokens)
        reading = self._decode.lines(count)[3] if shape.chunks and kept else []
        times = []
        for position, own in enumerate(sms):
            beside = None if neighbour is None else (neighbour, neighbour_sms[position])
            flop, byte, compute, read = [between(rates.axis, line, 1.0 / own) for line in lines]
            if not shape.chunks:
                found = (flop, byte, compute, read)
                time = self._beside_prefill(dense, kept, found, own, beside)
            else:
                time = rooflines(dense, flop, byte) + rooflines((attention,), compute, read)
                if reading:
                    more = kept * between(self._decode.axis, reading, 1.0 / own)
                    time += self._mixed * more
                time = self._beside_decode(time, own, beside)
            times.append(passes * time)
        return times

    @classmethod
    def fit(
        cls, points: Sequence[Point], target: Target, options: CostModelOptions
    ) -> RooflineParameters:
        """alpha, N_d and bandwidth from steps alone, the rest from pairs and mixed batches.

        Raises UsageError if the points do not determine it, naming what to measure.
        """
        from nexusbench.costs._fit_roofline import fit_roofline

        assert isinstance(options, RooflineOptions)
        return fit_roofline(points, target, options)
