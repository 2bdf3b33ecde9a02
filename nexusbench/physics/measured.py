"""The simulated GPU with measured operator times: the table says how long an operator takes on all
SMs, the physics how that changes on fewer, between the measured points and beside a neighbour.
"""

from __future__ import annotations

from collections.abc import Callable

from nexusbench.core.batch import BatchShape
from nexusbench.core.host import EngineHost
from nexusbench.core.parallelism import Parallelism
from nexusbench.core.specs import GpuSpec, ModelSpec
from nexusbench.core.work import prefill_pairs
from nexusbench.physics.experts import Routing, uniform
from nexusbench.physics.imbalance import busiest
from nexusbench.physics.launches import Physics
from nexusbench.physics.operators import OperatorClass, scaled
from nexusbench.physics.tables import KernelTable, attention_blocks
from nexusbench.physics.time_grids import Point, TimeGrid, grid_of


class MeasuredPhysics(Physics):
    """Physics whose operators are stretched to the times of a kernel table."""

    def __init__(
        self,
        gpu: GpuSpec,
        model: ModelSpec,
        table: KernelTable,
        tensor_parallel: int = 1,
        *,
        host: EngineHost | None = None,
        parallel: Parallelism | None = None,
    ) -> None:
        super().__init__(gpu, model, tensor_parallel, host=host, parallel=parallel)
        self.table = table
        self._stretch = AttentionStretch(table, super().attention, model.num_layers, gpu.num_sms)
        self._dense_known: dict[tuple[int, int], OperatorClass] = {}
        self._head_known: dict[tuple[int, int], OperatorClass] = {}

    @property
    def times_lengths(self) -> bool:
        """No: a table's batches have decodes of equal lengths."""
        return False

    def dense(self, tokens: int, sms: int) -> OperatorClass:
        """As measured for ``tokens``, interpolated between the measured counts; on fewer SMs in the
        proportion of the physics.
        """
        known = self._dense_known.get((tokens, sms))
        if known is None:
            table = self.table
            measured = table.layer_us(tokens) * self._work.num_layers + table.step_us(tokens)
            if self._experts is not None and not self._apart:
                measured += self._experts_us(tokens) * self._work.num_layers
            whole = super().dense(tokens, self.gpu.num_sms)
            known = scaled(super().dense(tokens, sms), measured * 1e3 / whole.time)
            self._dense_known[tokens, sms] = known
        return known

    def _experts_us(self, tokens: int) -> float:
        """The experts of one layer on all SMs: as measured for as many of them as ``tokens`` tokens
        are expected to touch; of the physics where they were not measured.
        """
        work = self._work
        if self.table.experts is None:
            return self._routed(tokens, self.gpu.num_sms).time / 1e3
        routing = uniform(tokens, work.num_experts, work.experts_per_token, skew=self._expert_skew)
        return self.table.experts_us(tokens, routing.touched)

    def routed(self, tokens: int, sms: int) -> OperatorClass:
        """The physics' time of whole experts on one of several GPUs, stretched as measured of one
        GPU with as many experts that have tokens, and as many rows.
        """
        made = super().routed(tokens, sms)
        if self.table.experts is None or self._experts is None:
            return made
        work, every = self._work, self.gpu.num_sms
        chosen = work.experts_per_token
        part = busiest(
            tokens, work.num_experts, chosen, self._parallel.spread, self._expert_skew
        )  # fmt: skip
        here = max(1, int(part.rows / chosen + 0.5))
        alone = Routing(
            part.rows / chosen, part.rows, part.held, part.touched, part.rows, part.tiles
        )
        physics = self._experts.time(alone, every, self._weights[every]).time
        return scaled(made, self.table.experts_us(here, part.touched) * 1e3 / physics)

    def head(self, sequences: int, sms: int) -> OperatorClass:
        """As measured for ``sequences``, interpolated between the measured counts."""
        known = self._head_known.get((sequences, sms))
        if known is None:
            whole = super().head(sequences, self.gpu.num_sms)
            factor = self.table.head_us(sequences) * 1e3 / whole.time
            known = scaled(super().head(sequences, sms), factor)
            self._head_known[sequences, sms] = known
        return known

    def attention(self, shape: BatchShape, sms: int) -> OperatorClass:
        """The physics' time of this very batch, its decodes taken as equally long, stretched as
        measured near it.
        """
        assert self._attention is not None  # no table is of layers of several kinds
        return self._attention.time(shape, sms, self._bandwidth[sms], self._stretch(shape))


class AttentionStretch:
    """Measured over physical attention time, interpolated over the grid that was measured.

    The ratio varies far less than the time, so that what lies between the points, and what a point
    cannot say (several chunks, decodes of different lengths), is left to the physics.
    """

    def __init__(
        self,
        table: KernelTable,
        physics: Callable[[BatchShape, int], OperatorClass],
        layers: int,
        num_sms: int,
    ) -> None:
        blocks = attention_blocks(table.attention)

        def ratio(us: float, point: Point) -> float:
            return us * 1e3 * layers / physics(shape_of(point), num_sms).time

        self._prefill = _grid(
            {(c, b): ratio(us, (c, b, 0, 0)) for (c, b), us in blocks["prefill"].items()}
        )
        self._decode = _grid(
            {(n, k): ratio(us, (0, 0, n, k)) for (n, k), us in blocks["decode"].items()}
        )
        self._mixed = _grid({point: ratio(us, point) for point, us in blocks["mixed"].items()})

    def __call__(self, shape: BatchShape) -> float:
        """The ratio at the one chunk and the equal decodes that amount to the same work."""
        count = shape.num_decodes
        keys = shape.decode_context / count if count else 0.0
        if not shape.chunks:
            return self._decode((count, keys)) if count else 1.0
        chunk = pairs = 0.0
        for tokens, before in shape.chunks:
            chunk += tokens
            pairs += prefill_pairs(tokens, before)
        before_all = max(0.0, pairs / chunk - (chunk + 1) / 2)
        if not count:
            return self._prefill((chunk, before_all))
        return self._mixed((chunk, before_all, count, keys))


def _grid(ratios: dict[Point, float]) -> TimeGrid:
    made = grid_of(ratios)
    assert made is not None  # as every table was read
    return made


def shape_of(point: Point) -> BatchShape:
    """The batch of an attention row; its kv_decode counts the tokens before the new one."""
    chunk, before, count, keys = point
    return BatchShape(count, count * keys, ((chunk, before),) if chunk else ())
