"""Layer-wise prefill: a batch of prompts goes through the model some layers at a time."""

from __future__ import annotations

from collections.abc import Callable

from nexusbench.core.batch import BatchShape
from nexusbench.core.request import RequestView
from nexusbench.planning.context import SchedulerContext
from nexusbench.planning.prompts import proceed

# From the batch (all layers of it) to how many layers its next launch computes.
LayerCount = Callable[[BatchShape], int]
Taken = list[tuple[RequestView, int]]  # what was scheduled, and how many tokens of each


class LayerwisePrefill:
    """The batch of prompts that is between two layers on ``partition``, and its successor.

    One batch at a time, in order: prompts whose next chunk is due, then waiting ones, within the
    token budget. Each launch computes as many layers as the policy says. Between two launches one
    prompt may interrupt a batch; the interrupting prompt is not interrupted. For devices that queue
    one launch per partition.
    """

    def __init__(self, partition: str = "prefill") -> None:
        self._partition = partition
        self._interrupted: list[RequestView] = []
        self.batch: list[RequestView] = []

    def settle(self, ctx: SchedulerContext) -> bool:
        """Drop requests that have all their layers, were preempted or cancelled; returns whether
        the partition is free. Policies call this first.
        """
        if not ctx.free_slots(self._partition):
            return False
        self.batch, self._interrupted = (
            [r for r in batch if r.layers_done and r in ctx.prefilling]
            for batch in (self.batch, self._interrupted)
        )
        if not self.batch:
            self.batch, self._interrupted = self._interrupted, []
        return True

    @property
    def interrupting(self) -> bool:
        """Whether an interrupted batch has not continued yet."""
        return bool(self._interrupted)

    def advance(self, ctx: SchedulerContext, count: LayerCount) -> None:
        """The next layers of the batch, or the first ones of the next batch."""
        if self.batch:
            start = self.batch[0].layers_done
            chunks = tuple([(r.layers_tokens, r.num_computed_tokens) for r in self.batch])
            end = min(ctx.num_layers, start + max(1, count(BatchShape(0, 0, chunks))))
            for request in self.batch:
                ctx.try_schedule(
                    request, request.layers_tokens, self._partition, layers=(start, end)
                )
            return
        admitting = not ctx.preempted and not ctx.swap_in_all()
        self._begin(ctx, count, lambda layers: self._gather(ctx, layers, admitting))

    def interrupt(self, ctx: SchedulerContext, request: RequestView, count: LayerCount) -> bool:
        """Compute the waiting ``request`` before the batch, if it fits in one chunk and there is
        room for it; returns whether.
        """

        def take(layers: tuple[int, int]) -> Taken:
            mark = ctx.savepoint()
            tokens = ctx.try_schedule(request, None, self._partition, layers=layers)
            if request.num_computed_tokens + tokens == request.num_tokens:
                return [(request, tokens)]
            ctx.rollback(mark)
            return []

        before = self.batch
        self._begin(ctx, count, take)
        if self.batch:
            self._interrupted = before
            return True
        self.batch = before
        return False

    def _begin(
        self,
        ctx: SchedulerContext,
        count: LayerCount,
        take: Callable[[tuple[int, int]], Taken],
    ) -> None:
        """Begin the batch that ``take`` schedules. How many layers it starts with follows from its
        size, so it is first put together for all of them, and again if that is too many.
        """
        mark = ctx.savepoint()
        taken = take((0, ctx.num_layers))
        if taken:
            chunks = tuple([(tokens, r.num_computed_tokens) for r, tokens in taken])
            layers = max(1, count(BatchShape(0, 0, chunks)))
            if layers < ctx.num_layers:
                ctx.rollback(mark)
                taken = take((0, layers))
        self.batch = [request for request, _ in taken]

    def _gather(self, ctx: SchedulerContext, layers: tuple[int, int], admitting: bool) -> Taken:
        """Prompts between two chunks, then waiting ones, until budget, seats or blocks run out."""
        taken: Taken = []
        for request in [r for r in ctx.prefilling if not r.in_flight]:
            tokens = proceed(ctx, request, None, self._partition, layers=layers)
            if not tokens:
                return taken  # in order: no request overtakes it
            taken.append((request, tokens))
        while admitting and (head := ctx.waiting.head) is not None:
            tokens = ctx.try_schedule(head, None, self._partition, layers=layers)
            if not tokens:
                break
            taken.append((head, tokens))
        return taken
