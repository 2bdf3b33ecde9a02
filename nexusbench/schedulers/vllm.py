"""vLLM v1's scheduler (0.7 to 0.8): chunked prefill in one token budget, decodes first."""

from __future__ import annotations

from typing import ClassVar, cast

from nexusbench.core.batch import Plan
from nexusbench.core.request import RequestView
from nexusbench.schedulers._resume import resume
from nexusbench.schedulers.base import Scheduler, SchedulerContext, SchedulerOptions


class VllmOptions(SchedulerOptions, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``whole_prompt``: admit a prompt only if all of it fits into free blocks, not just its first
    chunk. vLLM's ``scheduler_reserve_full_isl``, on by default in 0.19; prompts in mid-prefill are
    then no longer preempted for want of blocks.
    """

    whole_prompt: bool = False


class Vllm(Scheduler):
    """No phases: every running request gets the tokens it lacks, then the waiting ones, in one
    budget.

    Deviations: asynchronous scheduling and multi-step are off; running order is "decoding, then
    prefilling, each in order of joining", which equals vLLM's list unless several prompts are in
    mid-prefill.
    """

    Options: ClassVar[type[SchedulerOptions]] = VllmOptions
    source: ClassVar[str] = (
        "vLLM v1 scheduler, 0.7-0.8; chunked prefill after Sarathi-Serve (2403.02310)"
    )

    def schedule(self, ctx: SchedulerContext) -> Plan:
        """Running first (preempting the last to join where blocks lack), then admit in order."""
        ctx.schedule_decodes(victim=ctx.last_running)
        self.fill(ctx)
        return ctx.plan()

    def fill(self, ctx: SchedulerContext, partition: str = "all") -> None:
        """Chunks for what is left of the budget: prompts in mid-prefill, then waiting ones."""
        for request in [r for r in ctx.prefilling if not r.in_flight]:
            if not resume(ctx, request, partition=partition) or ctx.budget(partition) <= 0:
                break
        if not ctx.preempted and not ctx.swap_in_all():
            while (head := ctx.waiting.head) is not None and self._admit(ctx, head, partition):
                pass

    def _admit(self, ctx: SchedulerContext, head: RequestView, partition: str) -> bool:
        """Start the head of the queue, if there is room for it."""
        if cast(VllmOptions, self.options).whole_prompt:
            size = ctx.kv.block_size
            if -(-(head.num_tokens - ctx.cached_tokens(head)) // size) > ctx.kv.num_free:
                return False
        return ctx.try_schedule(head, partition=partition) > 0
