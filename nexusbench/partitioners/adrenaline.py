"""Adrenaline's prefill colocation (arXiv 2503.20552, section 3.4 of the paper's design): the least
share that prefill needs, the rest of its GPU for the attention of other decodes.
"""

from __future__ import annotations

from itertools import chain
from typing import Annotated, ClassVar

import msgspec

from nexusbench.core.batch import Batch, Plan, Split
from nexusbench.core.errors import UsageError
from nexusbench.core.registry import AboveZero, Percent
from nexusbench.core.specs import DeviceSpec
from nexusbench.core.state import EngineState
from nexusbench.core.units import NS_PER_MS
from nexusbench.partitioners.base import Partitioner, PartitionerOptions

DEFAULT_TTFT_MS = 1000.0
MOST_PROMPTS = 256  # of the queue that are considered


class AdrenalinePartitionerOptions(PartitionerOptions, frozen=True, kw_only=True):
    """``ttft_ms`` is the prompts' SLO: else that of --goodput, else 1,000 ms, which is ours.
    ``margin``: the predicted time of prompts must be that many times shorter, for later arrivals
    and for what the belief leaves out (ours). ``executor``: percent of
    the SMs that the remote attention keeps in any case; it reaches 60 % of an A100's bandwidth with
    20 % of the SMs; to keep all attention on the decode GPU there is ``--scheduler vllm-pd``.
    ``delta``: hysteresis in percent of the SMs, ours.
    """

    ttft_ms: AboveZero | None = None
    margin: Annotated[float, msgspec.Meta(ge=1)] = 2.0
    executor: Percent = 20.0
    delta: Annotated[float, msgspec.Meta(ge=0, le=100)] = 5.0


class AdrenalinePartitioner(Partitioner[AdrenalinePartitionerOptions]):
    """Prefill gets the fewest SMs with which every prompt in the queue is believed to have its
    first token in time, all if one is late already (but for the executor's share).

    Deviations: the paper profiles offline and sets percentages of MPS; the belief leaves out how
    much the attention beside it slows prefill. ``idle`` has no effect: shares are kept, as by MPS.
    """

    needs_belief: ClassVar[bool] = True
    num_gpus: ClassVar[tuple[int, ...]] = (2,)
    source: ClassVar[str] = "Adrenaline, arXiv 2503.20552, resource-efficient prefill colocation"

    def initial(self, spec: DeviceSpec) -> Split:
        """As much for prefill as it can have. Raises UsageError on a single GPU."""
        own = self.options
        shared = [split for split in spec.splits if "remote" in split.partitions]
        if not shared:
            raise UsageError(
                f"partitioner 'adrenaline' divides the first of two GPUs, {spec.name} is one. "
                "Use a simulated pair, such as --device sim:l20+l20"
            )
        total = shared[0].of("prefill") + shared[0].of("remote")
        kept = [split for split in shared if 100 * split.of("remote") >= own.executor * total]
        self._legal = kept or shared[:1]
        step = shared[1].sms[0] - shared[0].sms[0] if len(shared) > 1 else 1
        self._least_change = max(step, round(own.delta / 100 * total))
        return self._legal[-1]

    def split(self, plan: Plan, state: EngineState) -> Split:
        """Decided whenever a prefill is launched."""
        batch = next((b for b in plan.batches if b.partition == "prefill"), None)
        if batch is None:
            return state.split
        return self.settle(self._least(batch, state), state, self._least_change)

    def _least(self, batch: Batch, state: EngineState) -> Split:
        """The smallest share that is fast enough, else the largest."""
        assert self.belief is not None
        affordable = self._ns_per_token(state) * batch.shape.num_tokens
        times = self.belief.predict_splits(batch.shape, [split.sms[0] for split in self._legal])
        self.mode = "least share"
        for split, time in zip(self._legal, times, strict=True):
            if time <= affordable:
                return split
        self.mode = "all it can have"
        return self._legal[-1]

    def _ns_per_token(self, state: EngineState) -> float:
        """The ns that a prompt token may take if each queued prompt is to end in time after those
        before it; 0 if one is late.
        """
        own, home = self.options, state.pool_of("prefill")
        ttft = (own.ttft_ms or state.limits.ttft_ms or DEFAULT_TTFT_MS) * NS_PER_MS / own.margin
        before, affordable = 0, ttft
        for count, request in enumerate(chain(state.prefilling, state.waiting)):
            if request.pool == home:
                before += request.num_tokens - request.num_computed_tokens
                left = ttft - (state.now - request.arrival_ns)
                affordable = min(affordable, max(0.0, left) / before)
            if count == MOST_PROMPTS:
                break
        return affordable
