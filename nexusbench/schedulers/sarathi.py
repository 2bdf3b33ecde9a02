"""Sarathi (arXiv 2308.16369), Sarathi-Serve (2403.02310): chunks of prompts beside all decodes."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import msgspec

from nexusbench.core.batch import Plan
from nexusbench.core.registry import AtLeastOne
from nexusbench.core.request import RequestView
from nexusbench.planning.prompts import fits_whole, resume
from nexusbench.schedulers.base import Scheduler, SchedulerContext, SchedulerOptions


class SarathiSchedulerOptions(SchedulerOptions, frozen=True, kw_only=True):
    """``mode``: ``serve`` (Sarathi-Serve) fills one token budget with decodes and chunks of as many
    prompts as fit; ``maximal`` (Sarathi) puts one chunk of one prompt beside all decodes.
    ``chunk``: that budget, or the size of that chunk. ``tile``: rows of a GEMM tile; a batch that
    has prompts is cut to a multiple of it (0: it is not).
    """

    mode: Literal["serve", "maximal"] = "serve"
    chunk: AtLeastOne = 512
    tile: Annotated[int, msgspec.Meta(ge=0)] = 128


class SarathiScheduler(Scheduler[SarathiSchedulerOptions]):
    """Every decode in every batch, then unfinished prompts, then new ones, in what is left of the
    budget: nothing ever stalls a decode but a lack of KV blocks.

    A prompt is admitted when free blocks hold all of it, as Sarathi-Serve's block manager demands.
    Deviations: the budget is given (``chunk``, its code's 512 by default), not found by profiling
    against a TBT SLO, and never above the engine's; chunks do not shrink over a prompt's stages
    (its dynamic chunking is off by default); blocks are taken chunk by chunk, so a prompt in
    mid-prefill can still find none, and then the last to join is preempted. A batch whose prompts
    end early is no multiple of the tile: holding back a prompt's last tokens would cost it a
    whole iteration.
    """

    source: ClassVar[str] = (
        "Sarathi, arXiv 2308.16369; Sarathi-Serve, 2403.02310: stall-free batching"
    )

    def schedule(self, ctx: SchedulerContext) -> Plan:
        """Decodes, unfinished prompts, new ones."""
        decodes = ctx.schedule_decodes(victim=ctx.last_running)
        left = self._prompt_tokens(decodes, ctx.limits.max_num_batched_tokens)
        one_only = self.options.mode == "maximal"
        for request in [r for r in ctx.prefilling if not r.in_flight]:
            scheduled = resume(ctx, request, left) if left > 0 else 0
            left = 0 if one_only and scheduled else left - scheduled
            if not scheduled:
                return ctx.plan()  # no tokens or no blocks are left for those behind it
        if not ctx.preempted and not ctx.swap_in_all():
            while left > 0 and (head := ctx.waiting.head) is not None:
                scheduled = self._admit(ctx, head, left)
                if not scheduled:
                    break
                left = 0 if one_only else left - scheduled
        return ctx.plan()

    def _prompt_tokens(self, decodes: int, most: int) -> int:
        """What a batch with so many decodes takes of prompts: to a tile's end, if it reaches one.

        In the maximal mode chunk + decodes is rounded down, so with chunk 512 and 17 decodes the
        chunk has 495 tokens: C - (B - 1), as the paper chooses it.
        """
        own = self.options
        total = min(own.chunk + (decodes if own.mode == "maximal" else 0), most)
        if own.tile and total >= own.tile:
            total -= total % own.tile
        return total - decodes

    def _admit(self, ctx: SchedulerContext, head: RequestView, most: int) -> int:
        """Start the head of the queue if all of its prompt fits into free blocks."""
        return ctx.try_schedule(head, most) if fits_whole(ctx, head) else 0
