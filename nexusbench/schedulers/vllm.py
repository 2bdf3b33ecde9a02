"""vLLM v1's scheduler: chunked prefill in one token budget, decodes first."""

from __future__ import annotations

from typing import ClassVar

from nexusbench.core.batch import Plan
from nexusbench.planning.prompts import fill
from nexusbench.schedulers.base import Scheduler, SchedulerContext, SchedulerOptions


class VllmSchedulerOptions(SchedulerOptions, frozen=True, kw_only=True):
    """``whole_prompt``: admit a prompt only if all of it fits into free blocks, not just its first
    chunk. vLLM's ``scheduler_reserve_full_isl``, on by default in 0.19; prompts in mid-prefill are
    then no longer preempted for want of blocks.
    """

    whole_prompt: bool = False


class VllmScheduler(Scheduler[VllmSchedulerOptions]):
    """No phases: every running request gets the tokens it lacks, then the waiting ones, in one
    budget.

    Deviations: asynchronous scheduling and multi-step are off; running order is "decoding, then
    prefilling, each in order of joining", which equals vLLM's list unless several prompts are in
    mid-prefill.
    """

    source: ClassVar[str] = (
        "vLLM v1 scheduler from 0.7 on, before 0.19 (whole_prompt=true: 0.19); chunked prefill "
        "after Sarathi-Serve (2403.02310)"
    )

    @property
    def rules(self) -> str:
        """The version by the one option that tells them apart."""
        return "vLLM 0.19" if self.options.whole_prompt else "vLLM v1 before 0.19"

    def schedule(self, ctx: SchedulerContext) -> Plan:
        """Running first (preempting the last to join where blocks lack), then admit in order."""
        ctx.schedule_decodes(victim=ctx.last_running)
        fill(ctx, whole_prompt=self.options.whole_prompt)
        return ctx.plan()
