"""FastServe (arXiv 2305.05920): preemptive scheduling by a skip-join MLFQ, with proactive swaps."""

from __future__ import annotations

from collections import deque
from typing import ClassVar, Literal

from nexusbench.core.batch import Batch, BatchShape, Plan, PreemptionKind
from nexusbench.core.registry import AboveZero, AtLeastOne, NotNegative
from nexusbench.core.request import RequestView
from nexusbench.core.units import NS_PER_MS
from nexusbench.schedulers._mlfq import Mlfq
from nexusbench.schedulers._turn import FastserveTurn
from nexusbench.schedulers.base import Scheduler, SchedulerContext, SchedulerOptions

HOST_RESERVE = 0.1  # of the host's blocks: with fewer free, none is swapped out for a new request


class FastserveSchedulerOptions(SchedulerOptions, frozen=True, kw_only=True):
    """``quantum_ms``: of the highest level. A request idle for ``starved_ms`` is promoted, checked
    every ``check_every`` iterations (FastServe's code: 1,000); ``promoted``: it will ``keep`` or
    ``reset`` the quantum of its level before.
    ``max_batch`` requests and ``max_prefill_tokens`` of prompts make one iteration; by default the
    engine's own limits, so that a comparison gives every policy the same budget (as Nexus's
    does); FastServe's code has 16 and 2,048.
    """

    preemption: PreemptionKind = "swap"
    quantum_ms: AboveZero = 10.0
    starved_ms: NotNegative = 3000.0
    check_every: AtLeastOne = 100
    promoted: Literal["keep", "reset"] = "keep"
    max_batch: AtLeastOne | None = None
    max_prefill_tokens: AtLeastOne | None = None


class FastserveScheduler(Scheduler[FastserveSchedulerOptions]):
    """Each iteration runs the requests of the highest levels; one that is demoted keeps its KV.

    The *due* are the first in the order of the queue that fit into the batch and, together, into
    memory. Where they lack blocks or seats, others are swapped out, lowest first, before these are
    needed; swapped ones that are due are copied back while the rest computes. What the due leave of
    a batch is given to others in memory. ``order`` applies to requests of one level that never ran.

    Deviations: for invariant I10 the starved are promoted ten times as often as in FastServe's
    code, whose 1,000 iterations of 40 ms are 40 s for a limit of 3 s, and they keep their quantum:
    with 10 ms a promoted request runs once and is where it was (``check_every=1000,promoted=reset``
    is the code's way, and starves under overload; a request that lost its KV keeps it then, too);
    prompts and decodes share a batch; a prompt over the budget is chunked; no lowest level; the
    first iteration's time is the belief's (with what the prefix cache holds), not one of a
    profile; without host memory, or when it is full, preempted requests recompute.
    """

    advised: ClassVar[tuple[str, ...]] = ("",)  # levels decide most, order little
    needs_belief: ClassVar[bool] = True
    swap_gib: ClassVar[float] = 120.0  # as in Nexus's comparison (2507.06608, section 6.1)
    source: ClassVar[str] = "FastServe, arXiv 2305.05920, section 4; code LLMServe/FastServe"

    def __init__(self, options: FastserveSchedulerOptions | None = None) -> None:
        super().__init__(options)
        keeps = self.options.promoted == "keep"
        self._queue = Mlfq(int(self.options.quantum_ms * NS_PER_MS), keeps=keeps)
        self._launched: deque[int] = deque()  # times of the launches in flight
        self._ended = self._iterations = 0
        self._leaving: set[int] = set()  # on their way to the host

    def completed(self, batch: Batch, now: int) -> None:
        """Charge an iteration's time to its requests, promote the starved every ``check_every``."""
        took = now - max(self._launched.popleft(), self._ended)
        self._ended, self._iterations = now, self._iterations + 1
        self._queue.ran([request for request, _ in batch.items], took, now)
        if not self._iterations % self.options.check_every:
            self._queue.promote(self.options.starved_ms * NS_PER_MS, now)

    def finished(self, request: RequestView) -> None:
        """Remove it from the queue."""
        self._queue.leave(request)

    def schedule(self, ctx: SchedulerContext) -> Plan:
        """Make room for the due requests, then the batch."""
        if not ctx.free_slots():
            return ctx.plan()
        self._join(ctx)
        own, limits = self.options, ctx.limits
        here = {r.index for r in (*ctx.decoding, *ctx.prefilling)}
        self._leaving &= here
        turn = FastserveTurn(
            ctx,
            self._queue.levels(None if own.order == "fcfs" else ctx.order_key),
            self._queue.jobs,
            most_requests=min(own.max_batch or limits.max_num_seqs, limits.max_num_seqs),
            most_tokens=own.max_prefill_tokens or limits.max_num_batched_tokens,
            leaving=self._leaving,
            holding=self._holds(ctx),
        )
        turn.make_room()
        turn.run()
        plan = ctx.plan()
        for preemption in plan.preemptions:
            index = preemption.request.index
            if preemption.kind == "swap":
                self._leaving.add(index)
            else:
                self._queue.jobs[index].lost = True
        for batch in plan.batches:
            self._launched.append(ctx.now)
            for chunk in batch.chunks:
                self._queue.begin(chunk.request)
        return plan

    def _join(self, ctx: SchedulerContext) -> None:
        """Add new requests to the queue, by the predicted time of their first iteration."""
        jobs, belief = self._queue.jobs, self.belief
        assert belief is not None
        known = len(ctx.waiting) + ctx.num_running + len(ctx.swapped)
        if known == len(jobs):
            return
        new = [r for r in ctx.waiting if r.index not in jobs]
        for request in sorted(new, key=lambda r: r.arrival_rank):
            cached = ctx.cached_tokens(request)
            shape = BatchShape(0, 0, ((request.num_tokens - cached, cached),))
            self._queue.join(request, belief.predict(shape, ctx.sms("all")))

    def _holds(self, ctx: SchedulerContext) -> bool:
        """Whether the host is so full that no request is swapped out for a new one."""
        host = ctx.host
        return (
            bool(ctx.swapped)
            and host is not None
            and (host.num_free < HOST_RESERVE * host.num_blocks)
        )
