"""SGLang's PD multiplexing (``--enable-pdmux``): layer-wise prefill beside decode."""

from __future__ import annotations

from typing import ClassVar

from nexusbench.core.batch import BatchShape, Plan
from nexusbench.core.registry import AtLeastOne
from nexusbench.schedulers._layerwise import LayerwisePrefill
from nexusbench.schedulers.base import Scheduler, SchedulerContext, SchedulerOptions


class PdmuxSchedulerOptions(SchedulerOptions, frozen=True, kw_only=True):
    """``split_forward_token_budget``: layers x new tokens of one prefill launch, at least one
    layer.
    """

    split_forward_token_budget: AtLeastOne = 65_536


class PdmuxScheduler(Scheduler[PdmuxSchedulerOptions]):
    """A step of all decodes first, then the next layers of the one prefill batch.

    Layers per launch = 65,536 // new tokens, whatever decode does; the split follows the decode
    batch size alone (partitioner ``pdmux``). Deviations: admission is by free blocks and seats in
    order of arrival, without SGLang's estimate of the running requests' growth; SGLang queues a
    piece with each decode step, here the next one is launched when the last has ended.
    """

    partitions: ClassVar[tuple[str, ...]] = ("prefill", "decode")
    default_partitioner: ClassVar[str] = "pdmux"
    source: ClassVar[str] = "SGLang main, srt/multiplex; after MuxWise (2504.14489)"

    def __init__(self, options: PdmuxSchedulerOptions | None = None) -> None:
        super().__init__(options)
        self._prefill = LayerwisePrefill()

    def schedule(self, ctx: SchedulerContext) -> Plan:
        """Whichever stream is free; decode is launched first."""
        ctx.schedule_decodes("decode", victim=ctx.last_running)
        if self._prefill.settle(ctx):
            self._prefill.advance(ctx, self._layers)
        return ctx.plan()

    def _layers(self, prefill: BatchShape) -> int:
        budget = self.options.split_forward_token_budget
        return budget // prefill.num_tokens
