"""After a rollback everything is as before; only the recency of shared cached blocks may differ."""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from nexusbench.schedulers.base import Scheduler, schedulers
from nexusbench.testing._harness import build
from nexusbench.testing._probe import Snapshot
from tests.sim.strategies import POLICIES, workloads


class Books:
    """Everything that a refused plan must leave as it was."""

    def __init__(self, ctx):
        state, pool = ctx._state, ctx._kv.pool
        self.snapshot = Snapshot(state)
        self.blank = list(pool.blank)
        self.cached = set(pool.cached)
        self.recency = list(pool.cached)
        self.refs = list(pool.refs)
        self.hashes = dict(pool._hash_of), dict(pool._block_of)
        self.preempted = len(ctx._journal.preempted)
        self.drafts = {
            name: (list(draft.decodes), list(draft.chunks), draft.tokens, draft.context)
            for name, draft in ctx._drafts.items()
            if draft.decodes or draft.chunks
        }

    def differs(self, other):
        words = self.snapshot.difference(other.snapshot)
        if words is not None:
            return words
        for name in ("blank", "cached", "refs", "hashes", "preempted", "drafts"):
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
        for name in ("partitions", "needs_belief", "listens", "swap_gib"):
            self.__dict__[name] = getattr(inner, name)
        self.work_conserving = False
        self.default_partitioner = inner.default_partitioner

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
            ctx.try_schedule(request, 3, self.partitions[0])
        mark, before = ctx.savepoint(), Books(ctx)
        self.anything(ctx)
        ctx.rollback(mark)
        self.same(before, Books(ctx))
        ctx.rollback()
        return self.inner.schedule(ctx)

    def same(self, before, after):
        difference = before.differs(after)
        assert difference is None, difference

    def anything(self, ctx):
        """A random walk over what a policy may do."""
        chance, first, last = self.chance, self.partitions[0], self.partitions[-1]
        repeat = chance.randint(1, 3)
        for _ in range(chance.randint(1, 8)):
            prompts = [r for r in ctx.prefilling if not r.in_flight]
            action = chance.randint(0, 4)
            if action == 0:
                ctx.schedule_decodes(last, victim=ctx.last_running, repeat=repeat)
            elif action == 1 and ctx.waiting.head is not None:
                waiting = list(ctx.waiting)
                ctx.try_schedule(chance.choice(waiting), chance.randint(1, 40), first)
            elif action == 2 and prompts:
                ctx.try_schedule(chance.choice(prompts), chance.randint(1, 40), first)
            elif action == 3:
                running = [r for r in (*ctx.prefilling, *ctx.decoding) if not r.in_flight]
                if running:
                    ctx.preempt(chance.choice(running))
            elif action == 4:
                mark = ctx.savepoint()
                if ctx.waiting.head is not None:
                    ctx.try_schedule(ctx.waiting.head, None, first)
                ctx.rollback(mark)


@settings(max_examples=120)
@given(POLICIES, workloads(max_requests=10), st.integers(0, 10**6))
def test_rollback_leaves_no_trace(policy, workload, seed):
    scheduler, partitioner = policy
    hesitant = Hesitant(schedulers.create(scheduler), random.Random(seed))
    engine = build(workload.requests, hesitant, partitioner, setting=workload.setting)
    engine.run()
    assert engine.kv.num_used == 0


@settings(max_examples=60)
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
