"""After a rollback everything is as before; only the recency of shared cached blocks may differ."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from nexusbench.schedulers.base import Scheduler, schedulers
from nexusbench.testing._harness import build
from nexusbench.testing._probe import FORWARDED, StateSnapshot
from tests.examples import examples
from tests.sim.strategies import POLICIES, workloads


class Books:
    """Everything that a refused plan must leave as it was."""

    def __init__(self, ctx):
        state, journal = ctx._state, ctx._journal
        pools = [manager.pool for manager in ctx._pools]
        self.snapshot = StateSnapshot(state)
        self.blank = [list(pool.blank) for pool in pools]
        self.cached = [set(pool.cached) for pool in pools]
        self.refs = [list(pool.refs) for pool in pools]
        self.hashes = [(dict(pool._hash_of), dict(pool._block_of)) for pool in pools]
        self.preempted, self.moves = len(journal.preempted), len(journal.transfers)
        self.coming = ctx.blocks_coming
        self.drafts = {
            name: (
                list(draft.decodes),
                list(draft.chunks),
                draft.tokens,
                draft.context,
                draft.remote if draft.decodes else None,
            )
            for name, draft in journal.drafts.items()
            if draft.decodes or draft.chunks
        }

    def differs(self, other):
        words = self.snapshot.difference(other.snapshot)
        if words is not None:
            return words
        for name in (
            "blank", "cached", "refs", "hashes", "preempted", "moves", "coming", "drafts",
        ):  # fmt: skip
            if getattr(self, name) != getattr(other, name):
                return f"{name}: {getattr(self, name)} became {getattr(other, name)}"
        return None


class Hesitant(Scheduler):
    """Plans as ``inner`` does, or at random, takes it back, checks the books, then plans for good.

    Every other instant it keeps what was before a savepoint.
    """

    def __init__(self, inner, chance):
        super().__init__(inner.options)
        self.inner, self.chance = inner, chance
        self.shared = False
        for attribute in FORWARDED:
            self.__dict__[attribute] = getattr(inner, attribute)
        self.work_conserving = False

    @property
    def name(self):
        return self.inner.name

    def order_key(self, request):
        return self.inner.order_key(request)

    def completed(self, batch, now):
        self.inner.completed(batch, now)

    def finished(self, request):
        self.inner.finished(request)

    def schedule(self, ctx):
        self.inner.belief = self.belief
        before = Books(ctx)
        self.anything(ctx)
        ctx.rollback()
        self.same(before, Books(ctx))
        kept = [r for r in ctx.prefilling if not r.in_flight][:1]
        for request in kept:
            ctx.try_schedule(request, 3, self.home(ctx, request))
        mark, before = ctx.savepoint(), Books(ctx)
        self.anything(ctx)
        ctx.rollback(mark)
        self.same(before, Books(ctx))
        ctx.rollback()
        return self.inner.schedule(ctx)

    def same(self, before, after):
        difference = before.differs(after)
        assert difference is None, difference

    def home(self, ctx, prompt):
        """The partition of the GPU that has a started prompt's blocks."""
        first, last = self.partitions[0], self.partitions[-1]
        return first if ctx.is_at(prompt, first) else last

    def anything(self, ctx):
        """A random walk over what a policy may do."""
        chance, first, last = self.chance, self.partitions[0], self.partitions[-1]
        repeat = chance.randint(1, 3)
        for _ in range(chance.randint(1, 8)):
            prompts = [r for r in ctx.prefilling if not r.in_flight]
            action = chance.randint(0, 6)
            if action == 0:
                remote = first if self.num_gpus > 1 and chance.random() < 0.5 else None
                ctx.schedule_decodes(last, victim=ctx.last_running, repeat=repeat, remote=remote)
            elif action == 1 and ctx.waiting.head is not None:
                waiting = list(ctx.waiting)
                ctx.try_schedule(chance.choice(waiting), chance.randint(1, 40), first)
            elif action == 2 and prompts:
                prompt = chance.choice(prompts)
                ctx.try_schedule(prompt, chance.randint(1, 40), self.home(ctx, prompt))
            elif action == 3:
                running = [r for r in (*ctx.prefilling, *ctx.decoding) if not r.in_flight]
                if running:
                    ctx.preempt(chance.choice(running), chance.choice(["recompute", "swap", None]))
            elif action == 4:
                mark = ctx.savepoint()
                if ctx.waiting.head is not None:
                    ctx.try_schedule(ctx.waiting.head, None, first)
                ctx.rollback(mark)
            elif action == 5 and ctx.swapped:
                ctx.swap_in(chance.choice(list(ctx.swapped)))
            elif action == 6 and self.num_gpus > 1:
                for request in [r for r in ctx.decoding if not r.in_flight]:
                    ctx.transfer(request, last if ctx.is_at(request, first) else first)


@settings(max_examples=examples(120))
@given(POLICIES, workloads(max_requests=10), st.integers(0, 10**6))
def test_rollback_leaves_no_trace(policy, workload, seed):
    scheduler, partitioner = policy
    hesitant = Hesitant(schedulers.create(scheduler), random.Random(seed))
    engine = build(workload.requests, hesitant, partitioner, setting=workload.setting)
    engine.run()
    assert engine.kv.num_used == 0


@pytest.mark.slow
@settings(max_examples=examples(60))
@given(POLICIES, workloads(max_requests=10), st.integers(0, 10**6))
def test_hesitation_does_not_change_the_run(policy, workload, seed):
    """Without prefix caching there is no recency either, and the log is the same to the byte."""
    scheduler, partitioner = policy
    setting = replace(workload.setting, prefix_caching=False)
    logs = []
    for make in (lambda p: p, lambda p: Hesitant(p, random.Random(seed))):
        policy = make(schedulers.create(scheduler))
        engine = build(workload.requests, policy, partitioner, setting=setting)
        engine.run()
        engine.log.tables["kv_blocked"].clear()  # a try that was taken back is still a try
        logs.append(engine.log.digest())
    assert logs[0] == logs[1]
