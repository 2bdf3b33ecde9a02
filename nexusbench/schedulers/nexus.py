"""Nexus (arXiv 2507.06608): prefill and decode as two streams on two shares of one GPU."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from nexusbench.core.batch import Plan
from nexusbench.core.request import RequestView
from nexusbench.schedulers.base import Order, Scheduler, SchedulerContext, SchedulerOptions


class NexusSchedulerOptions(SchedulerOptions, frozen=True, kw_only=True):
    """Nexus orders prompts shortest first with ageing (section 4.3.1, Algorithm 2; gamma = 15,
    section 5).
    """

    order: Order = "spf"


class NexusScheduler(Scheduler[NexusSchedulerOptions]):
    """Decodes FCFS on ``decode``, prompts in SPF order with ageing on ``prefill``; each stream at
    its own pace.

    Deviations (docs/decisions/0006): a prompt longer than the budget is chunked (Algorithm 2 as
    printed would never take it), and a prompt in mid-prefill keeps competing by its remaining
    tokens, which the score already favours.
    """

    partitions: ClassVar[tuple[str, ...]] = ("prefill", "decode")
    default_partitioner: ClassVar[str] = "nexus"
    any_partitioner: ClassVar[bool] = True  # two plain streams, which others only size differently
    source: ClassVar[str] = "Nexus, arXiv 2507.06608, sections 4 and 5"

    def schedule(self, ctx: SchedulerContext) -> Plan:
        """Fill whichever stream has a free slot; decodes first, since they free memory."""
        if ctx.free_slots("decode"):
            ctx.schedule_decodes("decode", victim=ctx.last_running)
        if ctx.free_slots("prefill") and not ctx.preempted:
            for request in self._prompts(ctx):
                started = request in ctx.prefilling
                if not self._take(ctx, request) and started:
                    break  # no waiting request may take the blocks that it lacks
        return ctx.plan()

    def _take(self, ctx: SchedulerContext, request: RequestView) -> bool:
        """Schedule a prompt; one in mid-prefill may take the blocks of a later one in mid-prefill.

        Decodes are never preempted for a prompt: they end by themselves and free their blocks. But
        without this rule two half-done prompts could wait for each other's blocks for ever.
        """
        scheduled = ctx.try_schedule(request, partition="prefill")
        while not scheduled and request in ctx.prefilling and ctx.budget("prefill") > 0:
            later = [r for r in ctx.prefilling if not r.in_flight and r is not request]
            if not later:
                break
            last = max(later, key=lambda r: self._key(ctx, r))
            ctx.preempt(last, "recompute")  # the blocks are needed now
            scheduled = ctx.try_schedule(request, partition="prefill")
        return bool(scheduled)

    def _prompts(self, ctx: SchedulerContext) -> Iterator[RequestView]:
        """Prompts in mid-prefill and waiting ones, merged by score.

        A waiting one that finds no seat or no blocks keeps out those behind it, but not the prompts
        that have both.
        """
        started = [r for r in ctx.prefilling if not r.in_flight]
        started.sort(key=lambda r: self._key(ctx, r), reverse=True)
        admitting = not ctx.swap_in_all() and ctx.num_running < ctx.limits.max_num_seqs
        while ctx.budget("prefill") > 0:
            head = ctx.waiting.head if admitting else None
            if started and (head is None or self._key(ctx, started[-1]) <= self._key(ctx, head)):
                prompt = started.pop()
                if prompt in ctx.prefilling:
                    yield prompt  # unless it was preempted in this instant for an earlier one
            elif head is not None:
                yield head
                taken = ctx.waiting.head is not head
                admitting = taken and ctx.num_running < ctx.limits.max_num_seqs
            else:
                return

    def _key(self, ctx: SchedulerContext, request: RequestView) -> float:
        return ctx.order_key(request) - (
            request.num_computed_tokens if self.options.order == "spf" else 0
        )
