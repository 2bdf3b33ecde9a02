"""Prefill only with slack: as many prompt tokens beside the decodes as their bound leaves time."""

from __future__ import annotations

from typing import Annotated, ClassVar

import msgspec

from nexusbench.core.batch import BatchShape, Plan
from nexusbench.core.registry import AboveZero
from nexusbench.core.units import NS_PER_MS
from nexusbench.planning.prompts import fill, resume
from nexusbench.schedulers.base import Scheduler, SchedulerContext, SchedulerOptions

TBT_MS = 100.0  # as for duetserve, where the user asks for no bound


class SlackSchedulerOptions(SchedulerOptions, frozen=True, kw_only=True):
    """``tbt_ms``: the bound on a step that decodes; else that of --goodput, else 100 ms. ``least``:
    prompt tokens that such a step takes in any case; with 0, decodes that are slower than the bound
    by themselves keep every prompt out until fewer are left.
    """

    tbt_ms: AboveZero | None = None
    least: Annotated[int, msgspec.Meta(ge=0)] = 0


class SlackScheduler(Scheduler[SlackSchedulerOptions]):
    """One batch at a time on all SMs: every decode, then prompts in order, each as far as the step
    is believed to end within the TBT bound. Without decodes, as many tokens as the budget allows.

    The control for every split: what it gains over a token budget is knowing the bound, not SMs of
    its own. Niyama's chunks follow from the slack of deadlines and a predictor in the same way;
    here the slack is that of the step alone, time won earlier is not spent. Leaving prompts out of
    decode steps altogether, as serving kits do, is ``tbt_ms`` below a step's time. The belief is
    calibrated while it serves; it knows no tiles, so chunks are not cut to them.
    """

    needs_belief: ClassVar[bool] = True
    calibrates: ClassVar[bool] = True
    source: ClassVar[str] = (
        "Niyama, arXiv 2503.22562: dynamic chunking; MiaAI-Lab's GLM kit: MIXED_PREFILL_CHUNK=skip"
    )

    def schedule(self, ctx: SchedulerContext) -> Plan:
        """Decodes, then what fits of unfinished prompts, then of new ones."""
        decodes = ctx.schedule_decodes(victim=ctx.last_running)
        if decodes:
            self._fit(ctx)
        elif not any(r.in_flight for r in ctx.decoding):
            fill(ctx, whole_prompt=False)
        return ctx.plan()

    def _fit(self, ctx: SchedulerContext) -> None:
        """Prompts in order, until one of them has no slack, budget, seat or block left."""
        step = ctx.plan().batches[0].shape
        for request in [r for r in ctx.prefilling if not r.in_flight]:
            left = request.num_tokens - request.num_computed_tokens
            most = self._most(ctx, step, left, request.num_computed_tokens)
            took = resume(ctx, request, most) if most else 0
            if took < left:
                return
            step = _with(step, took, request.num_tokens - left)
        if ctx.preempted or ctx.swap_in_all():
            return
        while (head := ctx.waiting.head) is not None:
            cached = ctx.cached_tokens(head)
            left = head.num_tokens - cached
            most = self._most(ctx, step, left, cached)
            took = ctx.try_schedule(head, most) if most else 0
            if took < left:
                return
            step = _with(step, took, cached)

    def _most(self, ctx: SchedulerContext, step: BatchShape, left: int, context: int) -> int:
        """Tokens of a prompt, after ``context``, that ``step`` has time for: at most those left."""
        assert self.belief is not None
        own, sms = self.options, ctx.num_sms
        bound = (own.tbt_ms or ctx.limits.tbt_ms or TBT_MS) * NS_PER_MS
        most = min(left, ctx.budget())
        in_any_case = own.least - (step.num_tokens - step.num_decodes)
        low, high = max(0, min(most, in_any_case)), most + 1
        while high - low > 1:
            # The whole rest first: while there is slack enough that is the answer.
            middle = most if high > most else (low + high) // 2
            if self.belief.predict(_with(step, middle, context), sms) <= bound:
                low = middle
            else:
                high = middle
        return low


def _with(step: BatchShape, tokens: int, context: int) -> BatchShape:
    """``step`` with one chunk more."""
    chunks = (*step.chunks, (tokens, context))
    return BatchShape(step.num_decodes, step.decode_context, chunks)
