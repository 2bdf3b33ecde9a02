"""Time-debt chunks (oMLX): a chunk of prompts costs decode time, which decode gets back first."""

from __future__ import annotations

from typing import ClassVar

from nexusbench.core.batch import Batch, Plan
from nexusbench.core.registry import AboveZero
from nexusbench.core.units import NS_PER_MS
from nexusbench.planning.prompts import proceed
from nexusbench.schedulers.base import Scheduler, SchedulerContext, SchedulerOptions

STALL_MS = 500.0  # oMLX's stall target
LEAST_CHUNK, GRID = 256, 64  # of a chunk that decodes wait for


class DebtSchedulerOptions(SchedulerOptions, frozen=True, kw_only=True):
    """``share``: decode time owed per time of a chunk, so decodes keep at least share / (1 + share)
    of the speed that they have alone. ``tbt_ms``: the gap that a chunk and the decode step after it
    may make; else that of --goodput. Without either a chunk alone may take oMLX's 500 ms.
    """

    share: AboveZero = 0.5
    tbt_ms: AboveZero | None = None


class DebtScheduler(Scheduler[DebtSchedulerOptions]):
    """A chunk or a decode step, never both. A chunk that decodes wait for runs up a debt of
    ``share`` times its time; until decode steps have taken as long, no chunk starts.

    Such chunks are sized in time: the target times the best tokens per second seen (the best, not
    the mean: chunks slow each other down, and the mean would shrink them ever further), at least
    256 tokens, in steps of 64. Where no request decodes there is no debt and no bound. Deviations:
    a chunk holds the next tokens of several prompts, where oMLX computes one prompt at a time; the
    target is derived from the TBT bound where there is one, less the last decode step.
    """

    source: ClassVar[str] = (
        "oMLX PR 2633 (decode fairness), 3487; vLLM fork local-inference-lab PR 612 (compute share)"
    )

    def __init__(self, options: DebtSchedulerOptions | None = None) -> None:
        super().__init__(options)
        self._began: tuple[int, bool] | None = None  # the batch in flight: when, decodes waiting
        self._debt = self._step = self._rate = 0.0  # ns, ns, tokens per ns

    def completed(self, batch: Batch, now: int) -> None:
        """Book its time: a chunk runs up debt, a decode step repays it."""
        assert self._began is not None
        (start, waiting), self._began = self._began, None
        took = float(max(1, now - start))
        if not batch.chunks:
            self._step, self._debt = took, max(0.0, self._debt - took)
            return
        self._rate = max(self._rate, batch.shape.num_tokens / took)
        if waiting:
            self._debt += self.options.share * took

    def schedule(self, ctx: SchedulerContext) -> Plan:
        """Prompts if no debt is left, else decodes; whichever there is where there is one."""
        if self._began is not None:
            return ctx.plan()  # the next decision needs this batch's time
        if not ctx.decoding:
            self._debt = 0.0
        indebted = self._debt > 0.0
        if indebted or not self._chunk(ctx):
            decodes = ctx.schedule_decodes(victim=ctx.last_running)
            if indebted and not decodes:
                self._chunk(ctx)  # no decode has a block: nothing can repay the debt
        plan = ctx.plan()
        if plan.batches:
            self._began = ctx.now, bool(ctx.decoding)
        return plan

    def _chunk(self, ctx: SchedulerContext) -> bool:
        """Draft the next tokens of started prompts, then of new ones; returns whether there are."""
        most = self._most(ctx) if ctx.decoding else ctx.budget()
        left = most
        for request in [r for r in ctx.prefilling if not r.in_flight]:
            taken = proceed(ctx, request, left) if left else 0
            left -= taken
            if not taken:
                return left < most  # in order: no request overtakes it
        if not ctx.preempted and not ctx.swap_in_all():
            while left and (head := ctx.waiting.head) is not None:
                taken = ctx.try_schedule(head, left)
                left -= taken
                if not taken:
                    break
        return left < most

    def _most(self, ctx: SchedulerContext) -> int:
        """Tokens of a chunk that decodes wait for."""
        bound = self.options.tbt_ms or ctx.limits.tbt_ms
        target = bound * NS_PER_MS - self._step if bound else STALL_MS * NS_PER_MS
        tokens = int(max(0.0, target) * self._rate) // GRID * GRID
        return min(max(tokens, LEAST_CHUNK), ctx.budget())
