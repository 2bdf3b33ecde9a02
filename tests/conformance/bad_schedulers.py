"""Policies that break the contract, one way each, and honest ones that do not."""

from __future__ import annotations

import gc
import random
import sys

from nexusbench.core.batch import Batch, BatchShape, Chunk, Plan, Preemption
from nexusbench.engine.engine import Engine
from nexusbench.schedulers.base import Scheduler

MS = 1_000_000


class Honest(Scheduler):
    """First come, first served, in one budget; the bad ones are this with one thing wrong."""

    def schedule(self, ctx):
        self.decode(ctx)
        self.prompts(ctx)
        return ctx.plan()

    def decode(self, ctx):
        ctx.schedule_decodes(victim=ctx.last_running)

    def prompts(self, ctx):
        for request in list(ctx.prefilling):
            while ctx.budget() > 0 and not request.in_flight and not ctx.try_schedule(request):
                victim = ctx.last_running(request)
                ctx.preempt(victim)
                if victim is request:
                    break
        if not ctx.preempted:
            while (head := ctx.waiting.head) is not None and ctx.try_schedule(head):
                pass


class PeeksAtLength(Honest):
    """Shortest output first, by the trace's true length."""

    def order_key(self, request):
        return float(request.stop_len - request.num_prompt_tokens)


class PeeksThroughState(Honest):
    """Preempts whoever has most left to generate, read from the state behind the context."""

    def decode(self, ctx):
        def victim(request):
            free = [r for r in ctx._state.decoding if not r.in_flight]
            return max(free, key=lambda r: r.stop_len - r.num_tokens)

        ctx.schedule_decodes(victim=victim)


class PeeksThroughGc(Honest):
    """Finds the engine among all objects and shortens its chunks if much is still to come."""

    found = (None, None)

    def prompts(self, ctx):
        if ctx is not self.found[0]:
            mine = (x for x in gc.get_objects() if isinstance(x, Engine) and x.context is ctx)
            self.found = ctx, next(mine)
        future = len(self.found[1].requests) - self.found[1].num_arrived
        for request in list(ctx.prefilling):
            ctx.try_schedule(request, 7 if future > 5 else None)
        while (head := ctx.waiting.head) is not None:
            if not ctx.try_schedule(head, 7 if future > 5 else None):
                break


class PeeksThroughFrames(Honest):
    """Finds the engine in its callers' frames and takes the one with the shortest true output."""

    def prompts(self, ctx):
        frame = sys._getframe()
        while frame is not None and not isinstance(frame.f_locals.get("self"), Engine):
            frame = frame.f_back
        engine = frame.f_locals["self"]
        for request in list(ctx.prefilling):
            ctx.try_schedule(request)
        for request in sorted(engine.state.waiting, key=lambda r: r.stop_len):
            if not ctx.try_schedule(request):
                break


class NeverChunks(Honest):
    """Takes a prompt only whole, as Nexus's Algorithm 2 is printed."""

    work_conserving = False

    def prompts(self, ctx):
        while (head := ctx.waiting.head) is not None and head.num_tokens <= ctx.budget():
            if not ctx.try_schedule(head):
                break


class NeverChunksAndSaysNothing(NeverChunks):
    work_conserving = True


class Lifo(Honest):
    """Last come, first served."""

    def order_key(self, request):
        return -float(request.index)


class NeglectsOldDecodes(Honest):
    """Gives the seat of whoever has sat longest to somebody new; the old one queues at the end."""

    def schedule(self, ctx):
        full = ctx.num_running == ctx.limits.max_num_seqs
        if full and len(ctx.waiting) > 9 and ctx.decoding:
            ctx.preempt(ctx.decoding[0])
        self.decode(ctx)
        for request in list(ctx.prefilling):
            ctx.try_schedule(request)
        while (head := ctx.waiting.head) is not None and ctx.try_schedule(head):
            pass
        return ctx.plan()

    def order_key(self, request):
        return float(request.index) + 1e6 * request.num_preemptions


class Mutates(Honest):
    """Declares a prompt computed."""

    def schedule(self, ctx):
        for request in ctx.prefilling:
            if not request.in_flight and request.num_tokens - request.num_computed_tokens > 9:
                request.num_computed_tokens += 8
        return super().schedule(ctx)


class MutatesQueue(Honest):
    """Moves the tail of the queue to its head."""

    def schedule(self, ctx):
        if len(ctx.waiting) > 3:
            ctx.waiting._items.reverse()
        return super().schedule(ctx)


class MutatesInHook(Honest):
    def order_key(self, request):
        request.max_tokens = 1
        return float(request.index)


class TwoStreams(Honest):
    """Honest on two partitions, for the bad ones below."""

    partitions = ("prefill", "decode")
    default_partitioner = "fixed"

    def schedule(self, ctx):
        if ctx.free_slots("decode"):
            ctx.schedule_decodes("decode", victim=ctx.last_running)
        if ctx.free_slots("prefill") and not ctx.preempted:
            self.prompts(ctx)
        return ctx.plan()

    def prompts(self, ctx):
        for request in list(ctx.prefilling):
            if not ctx.try_schedule(request, partition="prefill"):
                return
        while (head := ctx.waiting.head) is not None:
            if not ctx.try_schedule(head, partition="prefill"):
                return


class HoldsAndWaits(TwoStreams):
    """Starts every prompt before it goes on with any, so that half-done ones hold all blocks."""

    work_conserving = False

    def prompts(self, ctx):
        while (head := ctx.waiting.head) is not None and ctx.try_schedule(head, 8, "prefill"):
            pass
        for request in list(ctx.prefilling):
            ctx.try_schedule(request, partition="prefill")


class PreemptsInFlight(TwoStreams):
    def schedule(self, ctx):
        for request in ctx.decoding:
            if request.in_flight and ctx.free_slots("prefill"):
                ctx.preempt(request)
        return super().schedule(ctx)


class ReschedulesInFlight(TwoStreams):
    """Frees a flying prompt to compute it once more."""

    work_conserving = False

    def schedule(self, ctx):
        for request in ctx.prefilling:
            if ctx.free_slots("decode"):
                request.in_flight = False
                ctx.try_schedule(request, partition="decode")
        return super().schedule(ctx)


class LaunchesInFlight(TwoStreams):
    """A plan made by hand, with requests that another launch is computing."""

    def schedule(self, ctx):
        flying = [r for r in ctx.decoding if r.in_flight]
        if flying and ctx.free_slots("prefill"):
            shape = BatchShape(len(flying), 0)
            return Plan([Batch("prefill", flying, [], shape)])
        return super().schedule(ctx)


class OverBudget(Honest):
    """A plan made by hand: everything that waits, at once."""

    def schedule(self, ctx):
        plan = super().schedule(ctx)
        rest = [Chunk(r, r.num_tokens, 0) for r in ctx.waiting]
        if rest and plan.batches:
            plan.batches[0].chunks.extend(rest)
        return plan


class Unscheduled(Honest):
    """A plan made by hand: a prompt that holds no blocks."""

    def schedule(self, ctx):
        head = ctx.waiting.head
        if head is None or head.num_tokens > ctx.budget():
            return super().schedule(ctx)
        shape = BatchShape(0, 0, ((head.num_tokens, 0),))
        return Plan([Batch("all", [], [Chunk(head, head.num_tokens, 0)], shape)])


class Twice(Honest):
    """Two tokens in one step, please."""

    def schedule(self, ctx):
        plan = super().schedule(ctx)
        for batch in plan.batches:
            batch.decodes.extend(batch.decodes)
        return plan


class Forgets(Honest):
    """Schedules, and returns another plan."""

    def schedule(self, ctx):
        super().schedule(ctx)
        return Plan()


class WrongShape(Honest):
    """Says that its batch is small."""

    def schedule(self, ctx):
        plan = super().schedule(ctx)
        for batch in plan.batches:
            batch.shape = BatchShape(1, 0)
        return plan


class InventsPreemptions(Honest):
    def schedule(self, ctx):
        plan = super().schedule(ctx)
        if len(ctx.decoding) > 2:
            plan.preemptions.append(Preemption(ctx.decoding[0]))
        return plan


class DecodesByTrySchedule(Honest):
    """Takes decodes one by one with the call that is for prompts."""

    def decode(self, ctx):
        for request in list(ctx.decoding):
            ctx.try_schedule(request)


class Idles(Honest):
    """Waits 5 ms before every step."""

    def __init__(self, options=None):
        super().__init__(options)
        self.ready_at = None

    def schedule(self, ctx):
        if self.ready_at is None:
            self.ready_at = ctx.now + 5 * MS
        if ctx.now < self.ready_at:
            return Plan(wake_at=self.ready_at)
        self.ready_at = None
        return super().schedule(ctx)


class IdlesAndSaysSo(Idles):
    work_conserving = False


class Livelock(Honest):
    """Computes one token of a prompt, throws it away, and begins again."""

    work_conserving = False

    def schedule(self, ctx):
        self.decode(ctx)
        for request in list(ctx.prefilling):
            ctx.preempt(request)
        head = ctx.waiting.head
        if head is not None:
            ctx.try_schedule(head, 1 if head.num_tokens > 1 else None)
        return ctx.plan()


class WakesForEver(Honest):
    """Asks to be woken again and again, and does nothing."""

    work_conserving = False

    def schedule(self, ctx):
        return Plan(wake_at=ctx.now + 1)


class LoopsInside(Honest):
    """Tries until it succeeds, within one instant."""

    def prompts(self, ctx):
        while ctx.waiting.head is not None and ctx.budget() > 0:
            ctx.try_schedule(ctx.waiting.head)
        for request in list(ctx.prefilling):
            ctx.try_schedule(request)


class Random(Honest):
    """Unseeded chance."""

    def order_key(self, request):
        return random.random()


class Raises(Honest):
    def schedule(self, ctx):
        if ctx.num_running > 3:
            raise ZeroDivisionError("no seats")
        return super().schedule(ctx)


class ReturnsNothing(Honest):
    def schedule(self, ctx):
        super().schedule(ctx)


class TakesBlocks(Honest):
    """Takes blocks from the pool itself."""

    def schedule(self, ctx):
        if ctx.kv.num_free > 20:
            ctx.kv.pool.take(1)
        return super().schedule(ctx)
