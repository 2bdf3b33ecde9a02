"""open-infer's way: a static split, all SMs for a lone phase, prefill beside decode steps."""

from __future__ import annotations

from typing import ClassVar

from nexusbench.core.batch import Batch, Plan
from nexusbench.core.registry import AtLeastOne
from nexusbench.planning.prompts import proceed
from nexusbench.schedulers.base import Scheduler, SchedulerContext, SchedulerOptions


class OpeninferSchedulerOptions(SchedulerOptions, frozen=True, kw_only=True):
    """``most_prompts``: of one prefill batch."""

    most_prompts: AtLeastOne = 4096


class OpeninferScheduler(Scheduler[OpeninferSchedulerOptions]):
    """Decides between decode steps: all decodes, and if no prefill is in flight the next one beside
    them, which decode then does not wait for.

    Three streams: all SMs for a phase that is alone (``idle=expand``), else two partitions of a
    static split, here ``fixed:prefill=80`` (open-infer measured 10 to 40 % for decode; ``gc20`` is
    its default). ``--partitioner whole`` is its ``stream`` mode, two streams without partitions.
    It differs from ``semi-pd`` on a fixed split in that a prompt waits for the end of the decode
    step, so no launch shares SMs with a step that has all of them. Deviations: open-infer looks
    for the end of a prefill between decode steps, so its first tokens come up to one step later;
    a prompt over the token budget is chunked.
    """

    partitions: ClassVar[tuple[str, ...]] = ("prefill", "decode")
    default_partitioner: ClassVar[str] = "fixed:prefill=80"
    any_partitioner: ClassVar[bool] = True
    # Prompts that arrive during a decode step are launched with the next one.
    work_conserving: ClassVar[bool] = False
    source: ClassVar[str] = (
        "open-infer, blog on green contexts (June 2026); pegainfer PR 388, green-ctx-sm-partition"
    )

    def __init__(self, options: OpeninferSchedulerOptions | None = None) -> None:
        super().__init__(options)
        self._running: set[str] = set()  # partitions with a batch in flight

    def completed(self, batch: Batch, now: int) -> None:
        """The partition is free."""
        self._running.discard(batch.partition)

    def schedule(self, ctx: SchedulerContext) -> Plan:
        """Nothing during a decode step; then the next one, and a prefill if none is in flight."""
        if "decode" in self._running:
            return ctx.plan()
        ctx.schedule_decodes("decode", victim=ctx.last_running)
        if "prefill" not in self._running:
            self._prefill(ctx)
        plan = ctx.plan()
        self._running.update([batch.partition for batch in plan.batches])
        return plan

    def _prefill(self, ctx: SchedulerContext) -> None:
        """The started prompt, then new ones in order."""
        left = self.options.most_prompts
        for request in [r for r in ctx.prefilling if not r.in_flight]:
            if not left or not proceed(ctx, request, partition="prefill"):
                return  # out of budget or blocks: in order, no request overtakes it
            left -= 1
        if ctx.preempted or ctx.swap_in_all():
            return
        while left and (head := ctx.waiting.head) is not None:
            if not ctx.try_schedule(head, partition="prefill"):
                return
            left -= 1
