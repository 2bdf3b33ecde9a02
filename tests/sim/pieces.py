"""A policy for tests only: prompts layer by layer, decodes several steps in one launch."""

from __future__ import annotations

from nexusbench.schedulers.base import Scheduler


class Pieces(Scheduler):
    """``prefill`` computes chunks of at most ``chunk`` tokens in pieces of ``layers`` layers;
    ``decode`` launches ``repeat`` steps at once, or as many as fit.
    """

    partitions = ("prefill", "decode")
    default_partitioner = "fixed"
    layers, repeat, chunk = 2, 3, 24
    whole = 4  # layers of the model

    def __init__(self, options=None):
        super().__init__(options)
        self.piece = None  # (request, its chunk's size, next layer)

    def schedule(self, ctx):
        if ctx.free_slots("decode"):
            self.decode(ctx)
        if ctx.free_slots("prefill"):
            self.prefill(ctx)
        return ctx.plan()

    def decode(self, ctx):
        mark = ctx.savepoint()
        ready = sum(not r.in_flight for r in ctx.decoding)
        if ctx.schedule_decodes("decode", repeat=self.repeat) < ready:
            ctx.rollback(mark)
            ctx.schedule_decodes("decode", victim=ctx.last_running)

    def prefill(self, ctx):
        if self.piece is not None and (
            self.piece[0].num_computed_tokens != self.piece[3] or not self.piece[0].layers_done
        ):
            self.piece = None  # it was preempted
        request, size, layer, _ = self.piece or self.next_prompt(ctx)
        if request is None:
            return
        end = min(self.whole, layer + self.layers)
        done = ctx.try_schedule(request, size, "prefill", layers=(layer, end))
        if not done:
            others = [r for r in ctx.prefilling if r is not request and not r.in_flight]
            if others:
                ctx.preempt(others[-1])
            return
        computed = request.num_computed_tokens
        self.piece = None if end == self.whole else (request, done, end, computed)

    def next_prompt(self, ctx):
        for request in ctx.prefilling:
            if not request.in_flight:
                return request, self.chunk, 0, None
        return ctx.waiting.head, self.chunk, 0, None


def pieces(layers, repeat, chunk, whole=4):
    """A factory of :class:`Pieces` with these sizes, for a model of ``whole`` layers."""

    def make():
        policy = Pieces()
        policy.whole = whole
        policy.layers, policy.repeat, policy.chunk = layers, repeat, chunk
        return policy

    return make
