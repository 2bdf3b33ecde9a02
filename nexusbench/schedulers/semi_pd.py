"""semi-PD (arXiv 2504.19867): prefill and decode as two first-come-first-served streams."""

from __future__ import annotations

from typing import ClassVar

from nexusbench.core.batch import Plan
from nexusbench.planning.prompts import proceed
from nexusbench.schedulers.base import Scheduler, SchedulerContext


class SemiPdScheduler(Scheduler):
    """Decodes on ``decode``, prompts in order of arrival on ``prefill``, chunked at the budget.

    What the paper adds is how the split follows the SLOs: the partitioner ``semi-pd``.

    With ``--partitioner whole`` it is the paper's strongest baseline, (100, 100): two streams, no
    partition. Deviations: the paper's two processes share KV through a unified memory manager,
    here there is one engine and one pool; its bound of 512 decodes is the engine's
    ``max_num_seqs``.
    """

    partitions: ClassVar[tuple[str, ...]] = ("prefill", "decode")
    default_partitioner: ClassVar[str] = "semi-pd"
    source: ClassVar[str] = "semi-PD, arXiv 2504.19867"

    def schedule(self, ctx: SchedulerContext) -> Plan:
        """Decodes first, since they free memory; then the started prompt, then new ones."""
        ctx.schedule_decodes("decode", victim=ctx.last_running)
        for request in [r for r in ctx.prefilling if not r.in_flight]:
            if not proceed(ctx, request, partition="prefill"):
                return ctx.plan()  # out of budget or blocks: in order, none overtakes
        if not ctx.preempted and not ctx.swap_in_all():
            while (head := ctx.waiting.head) is not None:
                if not ctx.try_schedule(head, partition="prefill"):
                    break
        return ctx.plan()
