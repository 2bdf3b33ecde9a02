"""vLLM with prefill and decode on two GPUs: engine-level disaggregation with a KV connector."""

from __future__ import annotations

from typing import ClassVar

from nexusbench.core.batch import Plan
from nexusbench.planning.prompts import proceed
from nexusbench.schedulers.base import Scheduler, SchedulerContext


class VllmPdScheduler(Scheduler):
    """Prompts on the first GPU, decodes on the second; a finished prompt's KV crosses the link.

    A prompt keeps its blocks on the first GPU until the copy has ended, and copies begin in order
    when the second has room: a full decode GPU holds back prefill. What decode preempts is
    recomputed on the decode GPU, beside its decodes, as a vLLM instance does.
    Deviations: the link is dedicated (no shared transfer buffer that can overflow), and copies wait
    for whole prompts (no layer-wise streaming).
    """

    partitions: ClassVar[tuple[str, ...]] = ("prefill", "decode")
    num_gpus: ClassVar[int] = 2
    # A preempted request waits for the GPU that decodes it, even while the other one idles.
    work_conserving: ClassVar[bool] = False
    source: ClassVar[str] = "vLLM 0.8 disaggregated prefilling (KV connector), 1 prefill + 1 decode"

    def schedule(self, ctx: SchedulerContext) -> Plan:
        """Decodes and recomputations there, prompts here, copies whenever there is room."""
        ctx.schedule_decodes("decode", victim=ctx.last_running)
        for request in [r for r in ctx.decoding if ctx.is_at(r, "prefill") and not r.in_flight]:
            if not ctx.transfer(request, "decode"):
                break  # copies are in order
        blocked: set[str] = set()
        for request in [r for r in ctx.prefilling if not r.in_flight]:
            home = "prefill" if ctx.is_at(request, "prefill") else "decode"
            if not proceed(ctx, request, partition=home):
                blocked.add(home)  # no waiting request may take the blocks that it lacks
        if ctx.preempted or ctx.swap_in_all():
            return ctx.plan()
        for request in list(ctx.waiting):
            home = "decode" if request.num_preemptions else "prefill"
            if home not in blocked and not ctx.try_schedule(request, partition=home):
                blocked.add(home)
            if "prefill" in blocked:
                break
        return ctx.plan()
