"""One iteration of FastServe: which requests are due, which are preempted for them, which run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain

from nexusbench.core.request import RequestView
from nexusbench.planning.context import SchedulerContext
from nexusbench.schedulers._mlfq import MlfqJob

Levels = Iterable[tuple[Iterable[MlfqJob], Iterable[MlfqJob]]]


def rank(job: MlfqJob) -> tuple[int, int]:
    """Order among jobs that have begun."""
    return job.level, job.place


class FastserveTurn:
    """``levels`` is the whole queue, ``jobs`` its jobs by request; ``most_requests`` and
    ``most_tokens`` (of prompts) bound the iteration; ``leaving`` are requests being copied to the
    host. ``holding``: the host is so full that a new request starts only where it has room without
    a preemption.

    ``due`` are the first in the order that fit into the batch and, with all their tokens, into
    memory; ``others`` are all others in GPU memory, in order.
    """

    def __init__(
        self,
        ctx: SchedulerContext,
        levels: Levels,
        jobs: dict[int, MlfqJob],
        *,
        most_requests: int,
        most_tokens: int,
        leaving: set[int],
        holding: bool,
    ) -> None:
        self._ctx = ctx
        self._seats = ctx.limits.max_num_seqs
        self._requests, self._tokens = most_requests, most_tokens
        self._leaving, self._holding = leaving, holding
        self._kept: set[MlfqJob] = set()  # prompts in mid-prefill that get no tokens this time
        self._room = 0  # tokens of prompts that are not yet given to a job
        self._decoding = {r.index for r in ctx.decoding}
        self._here = self._decoding | {r.index for r in ctx.prefilling}
        self._out = {r.index for r in ctx.swapped}
        self._jobs = jobs
        self.due = self._first(levels)
        chosen = {job.request.index for job in self.due}
        self._everyone = sorted([jobs[index] for index in self._here], key=rank)
        self.others = [job for job in self._everyone if job.request.index not in chosen]

    def _first(self, levels: Levels) -> list[MlfqJob]:
        due: list[MlfqJob] = []
        blocks, self._room = self._ctx.kv.num_blocks, self._tokens
        free, seats = self._ctx.kv.num_free, self._seats - self._ctx.num_running
        for job in self._candidates(levels):
            r, index = job.request, job.request.index
            left = r.num_tokens - r.num_computed_tokens
            is_prompt = left > 1 or not (index in self._here or index in self._out)
            here, dry = index in self._here, is_prompt and self._room <= 0
            if dry and not here:
                continue
            # A decode computes one token; the rest of a prompt may take several steps.
            step = min(left + 1, self._ctx.limits.max_num_batched_tokens)
            need = self._ctx.kv.most_blocks(r.num_tokens + 1, step)
            if self._holding and not job.begun and (need > free or seats < 1):
                continue
            # A request without blocks on the GPU leaves each due one a block to grow into.
            spare = 0 if here else len(due) * self._ctx.kv.step_blocks
            full = len(due) == self._requests or len(due) + len(self._kept) == self._seats
            if full or need + spare > blocks:
                break
            blocks -= need
            free -= 0 if here else need
            seats -= not here
            if dry:
                self._kept.add(job)
            else:
                due.append(job)
                self._room -= left if is_prompt else 0
        return due

    def _candidates(self, levels: Levels) -> Iterator[MlfqJob]:
        """The queue, which can be very long; once no tokens are left for prompts, jobs with KV."""
        seen: set[int] = set()
        for begun, fresh in levels:
            for job in chain(begun, fresh):
                if self._room <= 0:
                    rest = (self._here | self._out) - seen
                    yield from sorted([self._jobs[index] for index in rest], key=rank)
                    return
                seen.add(job.request.index)
                yield job

    def make_room(self) -> None:
        """Preempt others, lowest first, for the blocks and seats that the due lack; a swap begins
        before its blocks are needed.
        """
        ctx, kv = self._ctx, self._ctx.kv
        blocks = seats = 0
        for job in self.due:
            r, here = job.request, job.request.index in self._here
            held = kv.blocks_for(r.num_computed_tokens) if here else 0
            step = min(r.num_tokens + 1 - r.num_computed_tokens, ctx.limits.max_num_batched_tokens)
            blocks += kv.most_blocks(r.num_tokens + 1, step) - held
            seats += not here
        blocks -= ctx.kv.num_free + ctx.blocks_coming
        seats -= self._seats - ctx.num_running + len(self._leaving)
        for job in reversed(self.others):
            if blocks <= 0 and seats <= 0:
                return
            if not job.request.in_flight and job not in self._kept:
                before = ctx.kv.num_free + ctx.blocks_coming
                self._evict(job.request)
                ctx.preempt(job.request)
                blocks -= ctx.kv.num_free + ctx.blocks_coming - before
                seats -= 1

    def run(self) -> None:
        """Schedule the due: decodes, prompts and swaps in. Then others, in what is left."""
        self._decode(self.due)
        blocked = False
        for job in self.due:
            r = job.request
            if r.in_flight or r.index in self._decoding:
                continue
            if r.index in self._out:
                blocked = not self._ctx.swap_in(r) or blocked
            elif r.index in self._here or not blocked:
                # A request without blocks may not take those that an earlier one lacks.
                blocked = not self._prefill(r) or blocked
        present = [job for job in self.others if job.request.index in self._here]
        self._decode(present[: self._requests])
        for job in present:
            if job.request.index not in self._decoding and not job.request.in_flight:
                self._prefill(job.request)

    def _decode(self, jobs: list[MlfqJob]) -> None:
        chosen = [job.request for job in jobs if job.request.index in self._decoding]
        self._requests -= self._ctx.schedule_decodes(victim=self._lowest_after, chosen=chosen)

    def _prefill(self, request: RequestView) -> bool:
        if self._requests < 1 or self._tokens < 1:
            return False
        scheduled = self._ctx.try_schedule(request, self._tokens)
        self._tokens -= scheduled
        self._requests -= bool(scheduled)
        return bool(scheduled)

    def _lowest_after(self, request: RequestView) -> RequestView | None:
        """The victim for ``request``: the lowest job in memory, None if all stand before it."""
        for job in reversed(self._everyone):
            r = job.request
            if r is request:
                return None
            if r.index in self._here and not r.in_flight:
                self._evict(r)
                return r
        return None

    def _evict(self, request: RequestView) -> None:
        self._here.discard(request.index)
        self._decoding.discard(request.index)
