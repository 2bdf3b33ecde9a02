"""DuetServe (arXiv 2511.04791): mixed batches, two streams only while those would be slow."""

from __future__ import annotations

from typing import ClassVar

from nexusbench.core.batch import Plan
from nexusbench.core.registry import AboveZero, AtLeastOne
from nexusbench.core.units import NS_PER_MS
from nexusbench.planning.prompts import fill
from nexusbench.policies.duetserve import duets
from nexusbench.schedulers.base import Scheduler, SchedulerContext
from nexusbench.schedulers.vllm import VllmSchedulerOptions

TBT_MS = 100.0


class DuetserveSchedulerOptions(VllmSchedulerOptions, frozen=True, kw_only=True):
    """``tbt_ms``: tau, else what --goodput asks for, else 100 ms (the paper's own value is not in
    our sources); the partitioner has the same. ``look_ahead``: the most decode steps in one launch.
    """

    tbt_ms: AboveZero | None = None
    look_ahead: AtLeastOne = 64


class DuetserveScheduler(Scheduler[DuetserveSchedulerOptions]):
    """Each iteration is vLLM's mixed batch on all SMs, unless it is believed to take longer than
    tau: then k decode steps in one launch beside a prefill, and nothing new until both have ended.

    A mixed batch runs alone on ``prefill``, hence on all SMs. This policy chooses whether to split,
    and k, for the best of all splits; the partitioner reads k from the plan and solves for the
    split again. There is no split where none keeps decode steps, and the wait of decodes for the
    prefill after their k steps, within tau, nor where memory lacks k slots for each decode.
    Deviations: a step's time is predicted beside the prefill, where the belief can; what the paper
    profiles per size of partition, peak FLOP/s and bandwidth, is calibrated while it serves
    (without that, a belief that is too fast on few SMs makes each prefill wait for decodes).
    """

    partitions: ClassVar[tuple[str, ...]] = ("prefill", "decode")
    default_partitioner: ClassVar[str] = "duetserve"
    # An iteration ends as a whole: whichever stream is done waits for the other.
    work_conserving: ClassVar[bool] = False
    needs_belief: ClassVar[bool] = True
    calibrates: ClassVar[bool] = True
    source: ClassVar[str] = "DuetServe, arXiv 2511.04791"

    def schedule(self, ctx: SchedulerContext) -> Plan:
        """A mixed batch, or both streams, once nothing is in flight."""
        if not (ctx.free_slots("prefill") and ctx.free_slots("decode")):
            return ctx.plan()
        start = ctx.savepoint()
        self._mix(ctx)
        if ctx.preempted:
            return ctx.plan()  # memory is short: no room to look ahead
        mixed = ctx.plan()
        if mixed.batches and self._too_slow(mixed, ctx):
            ctx.rollback(start)
            if not self._split(ctx):
                ctx.rollback(start)
                self._mix(ctx)
        return ctx.plan()

    def _mix(self, ctx: SchedulerContext) -> None:
        ctx.schedule_decodes("prefill", victim=ctx.last_running)
        self._fill(ctx)

    def _fill(self, ctx: SchedulerContext) -> None:
        fill(ctx, "prefill", whole_prompt=self.options.whole_prompt)

    def _bound(self, ctx: SchedulerContext) -> float:
        return (self.options.tbt_ms or ctx.limits.tbt_ms or TBT_MS) * NS_PER_MS

    def _too_slow(self, mixed: Plan, ctx: SchedulerContext) -> bool:
        """Whether decodes would wait for chunks for longer than tau."""
        shape = mixed.batches[0].shape
        assert self.belief is not None
        if not shape.num_decodes or not shape.chunks:
            return False
        return self.belief.predict(shape, ctx.num_sms) > self._bound(ctx)

    def _split(self, ctx: SchedulerContext) -> bool:
        """Draft both streams; returns False if memory or tau do not allow it."""
        assert self.belief is not None
        begin = ctx.savepoint()
        ctx.schedule_decodes("decode")
        self._fill(ctx)
        shapes = {batch.partition: batch.shape for batch in ctx.plan().batches}
        each = ctx.kv.num_free // (ctx.kv.step_blocks * max(1, len(ctx.decoding)))
        room = each * ctx.kv.block_size
        longest = max([r.max_tokens - r.num_tokens + r.num_prompt_tokens for r in ctx.decoding])
        most = min(self.options.look_ahead, room, longest)
        if ctx.preempted or len(shapes) < 2 or most < 1:
            return False
        legal = [split for split in ctx.splits if not split.overlapping]
        steps = range(1, most + 1)
        found = duets(
            self.belief, shapes["decode"], shapes["prefill"], legal, self._bound(ctx), steps
        )
        if not found:
            return False
        ctx.rollback(begin)
        ready = sum(not r.in_flight for r in ctx.decoding)
        best = max(found, key=lambda duet: duet.rate)
        if ctx.schedule_decodes("decode", repeat=best.steps) < ready:
            return False
        self._fill(ctx)
        return not ctx.preempted and len(ctx.plan().batches) == 2
