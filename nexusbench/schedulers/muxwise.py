"""MuxWise (arXiv 2504.14489): as many layers of prefill per launch as one decode step covers."""

from __future__ import annotations

from math import ceil
from typing import ClassVar

from nexusbench.core.batch import BatchShape, Plan
from nexusbench.core.registry import AboveZero
from nexusbench.core.request import RequestView
from nexusbench.core.units import NS_PER_MS
from nexusbench.schedulers._layerwise import LayerwisePrefill
from nexusbench.schedulers.base import Scheduler, SchedulerContext, SchedulerOptions


class MuxwiseSchedulerOptions(SchedulerOptions, frozen=True, kw_only=True):
    """``preempt``: a waiting prompt that is faster than what is left of the prefill batch goes in
    between, as long as that batch keeps its TTFT bound: ``ttft_ms``, else that of ``--goodput``;
    without either no batch is interrupted.
    """

    preempt: bool = False
    ttft_ms: AboveZero | None = None


class MuxwiseScheduler(Scheduler[MuxwiseSchedulerOptions]):
    """Decodes first, then N = ceil(T_d N_layers / T_p) layers of the prefill batch, so that one
    launch of it covers one decode step; all that are left while no request decodes.

    T_d and T_p are the belief's predictions for both on the split in force, which is one decision
    old: the split for a plan is chosen after it. The dispatcher is the partitioner ``muxwise``.
    Preemption is not recursive, and only of prompts that fit in one chunk; the paper's condition
    (the long one keeps its TTFT bound) is checked with the belief. Its event polling has no
    counterpart: the engine decides at each launch's end.
    """

    partitions: ClassVar[tuple[str, ...]] = ("prefill", "decode")
    default_partitioner: ClassVar[str] = "muxwise"
    needs_belief: ClassVar[bool] = True
    source: ClassVar[str] = "MuxWise, arXiv 2504.14489"

    def __init__(self, options: MuxwiseSchedulerOptions | None = None) -> None:
        super().__init__(options)
        self._prefill = LayerwisePrefill()

    def schedule(self, ctx: SchedulerContext) -> Plan:
        """Whichever stream is free; decode is launched first."""
        ctx.schedule_decodes("decode", victim=ctx.last_running)
        if self._prefill.settle(ctx):

            def count(prefill: BatchShape) -> int:
                return self._layers(ctx, prefill)

            head = self._interrupter(ctx)
            if head is None or not self._prefill.interrupt(ctx, head, count):
                self._prefill.advance(ctx, count)
        return ctx.plan()

    def _layers(self, ctx: SchedulerContext, prefill: BatchShape) -> int:
        """Layers of ``prefill`` that take about as long as the decode step beside it."""
        if not ctx.decoding:
            return ctx.num_layers
        context = sum([r.num_computed_tokens for r in ctx.decoding])
        decode = BatchShape(len(ctx.decoding), context)
        belief, p, d = self.belief, ctx.sms("prefill"), ctx.sms("decode")
        assert belief is not None
        step = belief.predict(decode, d, (prefill, p))
        whole = belief.predict(prefill, p, (decode, d))
        return ceil(min(1.0, step / whole) * ctx.num_layers)

    def _interrupter(self, ctx: SchedulerContext) -> RequestView | None:
        """The waiting prompt that may go in between, or None."""
        options, head = self.options, ctx.waiting.head
        bound = options.ttft_ms if options.ttft_ms is not None else ctx.limits.ttft_ms
        batch = self._prefill.batch
        if not options.preempt or bound is None or head is None or not batch:
            return None
        if self._prefill.interrupting or ctx.preempted or ctx.swapped:
            return None
        short = self._time(ctx, head.num_tokens - ctx.cached_tokens(head), 0)
        rest = 0.0
        for request in batch:
            done = request.num_computed_tokens
            size, after = request.layers_tokens, done + request.layers_tokens
            left = (ctx.num_layers - request.layers_done) / ctx.num_layers
            rest += left * self._time(ctx, size, done)
            rest += self._time(ctx, request.num_tokens - after, after)
        due = min([request.arrival_ns for request in batch]) + bound * NS_PER_MS
        return head if short < rest and ctx.now + short + rest <= due else None

    def _time(self, ctx: SchedulerContext, tokens: int, context: int) -> float:
        """Believed ns of a prompt's next ``tokens``."""
        assert self.belief is not None
        if tokens <= 0:
            return 0.0
        return self.belief.predict(BatchShape(0, 0, ((tokens, context),)), ctx.sms("prefill"))
