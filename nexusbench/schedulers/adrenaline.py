"""Adrenaline (arXiv 2503.20552): prefill and decode on two GPUs, and part of the decodes' attention
back on the prefill GPU.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, ClassVar

import msgspec

from nexusbench.core.batch import Plan
from nexusbench.core.errors import InputError
from nexusbench.core.registry import AboveZero, NotNegative
from nexusbench.core.request import RequestView
from nexusbench.core.units import NS_PER_MS
from nexusbench.planning.prompts import proceed
from nexusbench.schedulers._offloading import AttentionLoad, OffloadBound, fine_now, safe
from nexusbench.schedulers.base import Scheduler, SchedulerContext, SchedulerOptions

DEFAULT_TBT_MS = 100.0
Take = Callable[[SchedulerContext, RequestView, None, str], int]  # how a prompt goes on, or starts


class AdrenalineSchedulerOptions(SchedulerOptions, frozen=True, kw_only=True):
    """``ratio`` takes the place of the offload bound, for sweeping it. ``prefill_kv`` is the share
    of the prefill GPU's KV memory that stays for prompts (section 2: prefill uses up to 21 % of its
    HBM). ``tbt_ms`` is the decodes' SLO: else that of --goodput, else 100 ms, which is ours.
    """

    ratio: NotNegative | None = None
    prefill_kv: Annotated[float, msgspec.Meta(ge=0, lt=1)] = 0.2
    tbt_ms: AboveZero | None = None


class AdrenalineScheduler(Scheduler[AdrenalineSchedulerOptions]):
    """As vllm-pd, but some prompts keep their KV on the prefill GPU and are decoded with the rest:
    dense layers on the decode GPU, attention where the KV is.

    A request is offloaded if the bound holds at its longest (C1) or at present lengths (C2), else
    its KV crosses the link. Deviations: it is classified when its prompt is done and, while it
    waits for room on the decode GPU, again; C1 counts all that are offloaded at their longest, or
    the bound could be exceeded later; B_TPOT is bounded by the decode GPU's memory too, or a loose
    SLO would forbid offloading where only memory is short. Equal GPUs; a classified request is not
    moved again.
    """

    partitions: ClassVar[tuple[str, ...]] = ("prefill", "decode")
    default_partitioner: ClassVar[str] = "adrenaline"
    num_gpus: ClassVar[int] = 2
    needs_belief: ClassVar[bool] = True
    # A preempted request waits for the GPU that it was on, even while the other one idles.
    work_conserving: ClassVar[bool] = False
    source: ClassVar[str] = "Adrenaline, arXiv 2503.20552, load-aware offloading, Algorithm 1"

    def __init__(self, options: AdrenalineSchedulerOptions | None = None) -> None:
        super().__init__(options)
        self._offloaded: dict[int, int] = {}  # request -> its preemptions when it was classified
        self._bound: OffloadBound | None = None

    def schedule(self, ctx: SchedulerContext) -> Plan:
        """Classify requests whose prompts are done, decode both kinds, copy the local ones, then
        prompts.
        """
        if self.options.ratio and not ctx.sms("remote"):
            raise InputError(
                "scheduler 'adrenaline' has no SMs for the attention that it is to offload",
                field="ratio",
                hint="Use --partitioner adrenaline, or ratio=0",
            )
        decodes, leaving = self._classify(ctx)
        ctx.schedule_decodes("decode", victim=ctx.last_running, chosen=decodes, remote="prefill")
        for request in leaving:
            if request.in_flight or not ctx.is_at(request, "prefill"):
                continue
            if request not in ctx.decoding or not ctx.transfer(request, "decode"):
                break  # preempted in this instant, or no room: copies are in order
        blocked: set[str] = set()
        for request in [r for r in ctx.prefilling if not r.in_flight]:
            self._prompt(ctx, request, blocked, proceed)
        if ctx.preempted or ctx.swap_in_all():
            return ctx.plan()
        for request in list(ctx.waiting):
            self._prompt(ctx, request, blocked, SchedulerContext.try_schedule)
            if "prefill" in blocked:
                break
        return ctx.plan()

    def _prompt(
        self, ctx: SchedulerContext, request: RequestView, blocked: set[str], take: Take
    ) -> None:
        """Compute a prompt, or recompute it, on the GPU that it is or last was on, in order."""
        home = "prefill" if ctx.is_at(request, "prefill") else "decode"
        if home not in blocked and not take(ctx, request, None, home):
            blocked.add(home)

    def _classify(self, ctx: SchedulerContext) -> tuple[list[RequestView], list[RequestView]]:
        """The requests to decode, and those to copy to the decode GPU."""
        decodes, ready, local, offloaded = [], [], AttentionLoad(), AttentionLoad()
        for request in ctx.decoding:
            if ctx.is_at(request, "decode"):
                local.add(request)
                decodes.append(request)
            elif self._offloaded.get(request.index) == request.num_preemptions:
                offloaded.add(request)
                decodes.append(request)
            elif request.in_flight:
                local.add(request)  # being copied there
            else:
                ready.append(request)
        leaving = []
        for request in ready:
            ratio = self.bound(ctx, local)
            if safe(offloaded, request, local, ratio) or fine_now(offloaded, local, ratio):
                self._offloaded[request.index] = request.num_preemptions
                offloaded.add(request)
                decodes.append(request)
            else:
                local.add(request)
                leaving.append(request)
        return decodes, leaving

    def bound(self, ctx: SchedulerContext, local: AttentionLoad) -> float:
        """The offload bound now, or the fixed ratio."""
        if self.options.ratio is not None:
            return self.options.ratio
        if self._bound is None:
            assert self.belief is not None
            tbt = self.options.tbt_ms or ctx.limits.tbt_ms or DEFAULT_TBT_MS
            self._bound = OffloadBound(self.belief, tbt * NS_PER_MS)
        there, here = ctx.kv_of("prefill").num_blocks, ctx.kv_of("decode").num_blocks
        each = local.tokens / max(1, local.requests)
        return self._bound.of(
            each,
            ctx.sms("decode"),
            ctx.sms("remote"),
            (1.0 - self.options.prefill_kv) * there / here,
            ctx.kv.tokens_in(here, int(each)),
        )

    def finished(self, request: RequestView) -> None:
        """Drop its classification."""
        self._offloaded.pop(request.index, None)
