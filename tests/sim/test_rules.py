"""Rules of policies and of the cache that only show in who is taken, when, and what is found."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from nexusbench.core.batch import Batch, BatchShape
from nexusbench.core.errors import InvariantBreach
from nexusbench.core.state import InFlight, Limits, WaitingQueue
from nexusbench.engine.arrivals import Arrivals
from nexusbench.kv.manager import KVCacheManager
from nexusbench.planning.context import SchedulerContext
from nexusbench.planning.order import CacheOrder, Ranking
from nexusbench.schedulers.fastserve import FastserveScheduler
from nexusbench.schedulers.sglang import SglangScheduler, SglangSchedulerOptions
from nexusbench.schedulers.vllm import VllmScheduler
from nexusbench.testing import offer, serve
from nexusbench.testing._harness import Setting, build, make_scheduler

HOST = 1


def rows(engine, table):
    columns = engine.log.tables[table].columns
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


class SwapsOnce(VllmScheduler):
    """vLLM that swaps request ``who`` out once it has decoded for ``after`` tokens."""

    who, after = 1, 1

    def schedule(self, ctx):
        for request in ctx.decoding:
            made = request.num_tokens - request.num_prompt_tokens
            if request.index == self.who and made >= self.after and not request.num_preemptions:
                ctx.preempt(request, "swap")
        return super().schedule(ctx)


def swaps_once(**how):
    kind = type("SwapsOnce", (SwapsOnce,), how)
    return lambda: kind(kind.Options(preemption="swap"))


# -- swapping --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("prompt", "waits"), [(97, False), (98, False), (99, True), (100, True)])
def test_a_hundredth_of_the_blocks_stays_free_while_others_run(prompt, waits, monkeypatch):
    """As vLLM v0's watermark: who comes back leaves 2 of 200 blocks, or waits until none runs."""
    asked = []
    inner = SchedulerContext.swap_in_all

    def watched(ctx):
        out = list(ctx.swapped)
        left = ctx.kv.num_free - len(out[0].blocks) if out else None
        running = ctx.num_running
        kept_out = inner(ctx)
        if out:
            asked.append((left, running, not kept_out))
        return kept_out

    monkeypatch.setattr(SchedulerContext, "swap_in_all", watched)
    # The first has 100 blocks and some; the other comes back to all others but a few.
    requests = [offer(0, 0, 98, 4), offer(1, 0, prompt, 3)]
    setting = Setting(
        kv_blocks=200, block_size=1, prefix_caching=False, limits=Limits(4, 256, 1024)
    )
    engine = serve(requests, swaps_once(), setting=setting)
    ended = {row["request"]: row["time"] for row in rows(engine, "ended")}
    back = next(row for row in rows(engine, "moved") if row["source"] == HOST)
    assert asked
    assert all(came == (running == 0 or left >= 2) for left, running, came in asked)
    assert (back["time"] >= ended[0]) == waits


@pytest.mark.parametrize(
    ("swapped", "free", "holds"), [(1, 9, True), (1, 10, False), (0, 9, False), (1, 100, False)]
)
def test_a_tenth_of_the_host_is_kept_from_new_requests(swapped, free, holds):
    """FastServe: with less than that free, who is out comes back before a new one starts."""
    policy = make_scheduler("fastserve")
    assert isinstance(policy, FastserveScheduler)
    ctx = SimpleNamespace(
        swapped=[object()] * swapped, host=SimpleNamespace(num_free=free, num_blocks=100)
    )
    assert policy._holds(ctx) is holds
    assert policy._holds(SimpleNamespace(swapped=[object()], host=None)) is False


def test_what_was_swapped_out_is_found_by_others():
    """A prompt and answer that left for the host stay in the GPU's cache until they are evicted."""
    first, second = offer(0, 0, 24, 30), offer(1, 0, 46, 2)
    first.prefix_ids, first.named_tokens = (1, 2, 3, 4, 5, 6), 48
    second.prefix_ids, second.num_tokens = (1, 2, 3, 4, 5, 90), 46
    found = []

    def watch(engine):
        if engine.state.swapped and not found:
            found.extend(engine.kv.count_cached([second]))

    engine = serve(
        [first], swaps_once(who=0, after=18), setting=Setting(kv_blocks=64), observer=watch
    )
    out, back = rows(engine, "moved")
    assert (out["request"], out["target"], back["source"]) == (0, HOST, HOST)
    assert out["tokens"] >= 40
    assert found == [40]  # both name 40 tokens alike, of which 24 are the first one's prompt


def test_lpm_looks_again_after_an_eviction():
    """Who had the longest cached prefix is not first for what is cached no more."""
    kv = KVCacheManager(8, 4, hash_block=4)
    gone, plain = offer(5, 0, 17, 2, prefix_ids=(1, 2, 3, 4, 50)), offer(2, 0, 17, 2)
    writer = offer(0, 0, 16, 2, prefix_ids=(1, 2, 3, 4))
    for request in (gone, plain, writer):
        request.num_tokens = request.num_prompt_tokens
        request.arrival_rank = request.index
    kv.allocate(writer, 16, [])
    writer.num_computed_tokens = 16
    kv.publish(writer)
    kv.free(writer)
    waiting = WaitingQueue()
    order = CacheOrder(Ranking("lpm", 10.0), waiting, kv, lambda r: float(r.arrival_rank))
    for request in (plain, gone):
        request.order_key = order.joining(request)
        waiting.add(request)
    order.begin()
    assert [r.index for r in waiting] == [5, 2]
    kv.allocate(offer(7, 0, 32, 2), 32, [])  # takes all blocks, the cached ones too
    order.begin()
    assert [r.index for r in waiting] == [2, 5]


# -- who is preempted, and what else happens in that step ------------------------------------------


def test_nexus_takes_from_the_half_done_prompt_that_is_last_by_its_score():
    """Not from the last to join: the short ones that overtook it go on."""
    requests = [offer(0, 0, 240, 2), offer(1, 10, 120, 2), offer(2, 60, 80, 2)]
    setting = Setting(kv_blocks=62, prefix_caching=False, limits=Limits(8, 64, 1024))
    engine = serve(requests, "nexus:gamma=0", setting=setting)
    started = [row["request"] for row in rows(engine, "admitted")]
    assert started[:3] == [0, 1, 2]
    taken = rows(engine, "preempted")
    assert {row["request"] for row in taken} == {0}
    before = {row["request"] for row in rows(engine, "admitted") if row["time"] < taken[0]["time"]}
    assert before >= {0, 1}


@pytest.mark.parametrize("scheduler", ["vllm", "sarathi", "semi-pd", "vllm:order=spf"])
def test_no_request_is_admitted_in_a_step_that_preempted(scheduler):
    """Though the blocks just freed would hold the short prompt at the head of the queue."""
    requests = [offer(i, 0, 24, 30) for i in range(3)] + [offer(3 + i, 200, 3, 2) for i in range(3)]
    setting = Setting(kv_blocks=27, prefix_caching=False, limits=Limits(6, 64, 1024))
    engine = serve(requests, scheduler, setting=setting)
    preempted = {row["time"] for row in rows(engine, "preempted")}
    assert preempted
    admitted = [row["time"] for row in rows(engine, "admitted")]
    assert not preempted & set(admitted)
    waiting = {row["time"]: row["waiting"] for row in rows(engine, "submitted")}
    assert any(waiting.get(time, 0) > 1 for time in preempted)  # others than itself waited


def test_no_request_comes_back_from_the_host_in_a_step_that_preempted():
    """Though there is room: what a preemption freed is the earlier one's that it was for."""
    seen = []

    class Takes(SwapsOnce):
        def schedule(self, ctx):
            ready = [r for r in ctx.decoding if not r.in_flight and not r.num_preemptions]
            if ctx.swapped and ready and not seen:
                ctx.preempt(ready[0], "recompute")
                out = ctx.swap_in_all()
                seen.append((out, len(ctx.plan().transfers), len(ctx.swapped)))
            return super().schedule(ctx)

    requests = [offer(0, 0, 24, 12), offer(1, 0, 24, 12)]
    engine = serve(requests, lambda: Takes(Takes.Options(preemption="swap")))
    assert seen == [(True, 0, 1)]
    assert all(r.num_tokens == r.stop_len for r in engine.requests)


# -- arrivals of one moment ------------------------------------------------------------------------


def arrived(arrivals, now):
    return [request.index for request in arrivals.pop_due(now)]


def test_turns_that_fall_due_together_come_in_the_traces_order():
    requests = [offer(0, 0, 5, 2), offer(1, 0, 5, 2), offer(2, 0, 5, 2, after=1, think_ms=2),
                offer(3, 0, 5, 2, after=0, think_ms=4)]  # fmt: skip
    arrivals = Arrivals(requests)
    assert arrived(arrivals, 0) == [0, 1]
    arrivals.ended(requests[0], 1_000_000, finished=True)  # 3 is due at 5 ms
    arrivals.ended(requests[1], 3_000_000, finished=True)  # and so is 2, pushed later
    assert arrived(arrivals, 5_000_000) == [2, 3]


@pytest.mark.parametrize("turn", [1, 2])
def test_a_turn_and_a_lone_request_of_one_moment_come_in_the_traces_order(turn):
    lone = 3 - turn
    requests = [offer(0, 0, 5, 2), None, None]
    requests[turn] = offer(turn, 0, 5, 2, after=0, think_ms=4)
    requests[lone] = offer(lone, 5, 5, 2)
    arrivals = Arrivals(requests)
    assert arrived(arrivals, 0) == [0]
    arrivals.ended(requests[0], 1_000_000, finished=True)
    assert arrived(arrivals, 5_000_000) == [1, 2]


# -- a damaged pool is noticed ---------------------------------------------------------------------


class _Stop(Exception):
    """In the middle of a run."""


@pytest.fixture
def halted():
    """An engine with two requests running, one waiting, and a published prefix."""
    requests = [offer(i, 0, 24, 20, prefix_ids=(1, 2, 3)) for i in range(2)]
    requests.append(offer(2, 0, 60, 5))

    def watch(engine):
        if len(engine.state.decoding) == 2 and engine.state.waiting:
            raise _Stop

    engine = build(
        requests, make_scheduler("vllm:preemption=swap"),
        setting=Setting(kv_blocks=24, limits=Limits(2, 64, 1024)), observer=watch,
    )  # fmt: skip
    with pytest.raises(_Stop):
        engine.run()
    engine.auditor.check_books()
    return engine


def _twice(engine):
    blocks = engine.state.decoding[0].blocks
    blocks[-1] = blocks[0]


def _uncovered(engine):
    engine.state.decoding[0].num_computed_tokens += 400


def _waiting_holds(engine):
    engine.state.waiting.head.blocks = [engine.state.decoding[0].blocks[0]]


def _leak(engine):
    engine.state.decoding[0].blocks.pop()


def _count(engine):
    engine.kv.pool.refs[engine.state.decoding[0].blocks[0]] += 1


def _free_twice(engine):
    engine.kv.pool.blank.append(engine.kv.pool.blank[0])


def _held_and_free(engine):
    engine.kv.pool.blank[0] = engine.state.decoding[0].blocks[-1]


def _lost(engine):
    engine.kv.pool.blank.pop()


def _other_hash(engine):
    pool = engine.kv.pool
    key = next(iter(pool._block_of))
    pool._block_of[key] = engine.state.decoding[0].blocks[-1]


def _on_the_host(engine):
    engine.pools[HOST].pool.refs[0] = 1


def _moved_by_hand(engine):
    engine.state.decoding[0].pool = HOST


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (_twice, "holds the same block twice"),
        (_uncovered, "has computed tokens without a block"),
        (_waiting_holds, "waiting request 'r2' holds blocks"),
        (_leak, "has 1 references recorded, 0 held"),
        (_count, "references recorded"),
        (_free_twice, "in the free lists twice"),
        (_held_and_free, "a held block is in a free list"),
        (_lost, "free blocks are not"),
        (_other_hash, "points at a block with another hash"),
        (_on_the_host, "block 0 has 1 references recorded, 0 held"),
        (_moved_by_hand, "references recorded"),
    ],
)
def test_each_damage_to_the_books_is_i3(halted, damage, said):
    damage(halted)
    with pytest.raises(InvariantBreach, match="I3") as caught:
        halted.auditor.check_books()
    assert said in str(caught.value)


# -- and so is a run that did not end as it must ---------------------------------------------------


def _still_flying(engine):
    batch = Batch("all", [], [], BatchShape(1, 9))
    engine.state.in_flight["all"].append(InFlight(0, batch, 16, -1, 0))


def _never_ended(engine):
    engine.requests[1].outcome = -1


def _too_short(engine):
    engine.requests[1].num_tokens -= 1


def _too_long(engine):
    engine.requests[1].num_tokens += 1


def _without_tokens(engine):
    engine.requests[1].num_tokens = 0


def _cut_prompt(engine):
    engine.requests[2].num_tokens = engine.requests[2].num_prompt_tokens - 1


def _reported_more(engine):
    engine.executor.num_tokens += 1


def _one_end_more(engine):
    engine.executor.num_ended += 1


def _still_held(engine):
    ghost = offer(9, 0, 8, 2)
    ghost.blocks = engine.kv.pool.take(2)[0]
    engine.state.decoding.append(ghost)


def _referenced(engine):
    engine.kv.pool.refs[0] = 1


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (_still_flying, "I1 broken: a launch is still in flight at the end"),
        (_never_ended, "I1 broken: request 'r1' never ended"),
        (_too_short, "I4 broken: 'r1' has 23 tokens at the end, not 24 or more"),
        (_too_long, "I4 broken: 'r1' has 25 tokens at the end, not 24 or more"),
        (_without_tokens, "I4 broken: 'r1' has 0 tokens at the end, not 24 or more"),
        (_cut_prompt, "I4 broken: 'r2' has 19 tokens at the end, not 20 or more"),
        (_reported_more, "I4 broken: {} tokens generated, but {} reported"),
        (_one_end_more, "I1 broken: 4 requests offered, 5 ended"),
        (_still_held, "I3 broken: 2 blocks are held after the last request"),
        (_referenced, "I3 broken: block 0 has 1 references recorded, 0 held"),
    ],
)
def test_each_way_not_to_end_is_told(damage, said):
    """Two are finished, one was called off in mid-answer, one was rejected, without a token."""
    requests = [
        offer(0, 0, 20, 4), offer(1, 0, 20, 4), offer(2, 0, 20, 40, cancel_after_ms=90.0),
        offer(3, 0, 900, 200),
    ]  # fmt: skip
    engine = serve(requests, "vllm")
    assert [r.outcome for r in engine.requests] == [0, 0, 3, 1]
    assert 0 < engine.requests[2].num_output_tokens < 40
    made = engine.num_tokens
    engine.auditor.check_end(engine.requests)
    damage(engine)
    with pytest.raises(InvariantBreach) as caught:
        engine.auditor.check_end(engine.requests)
    assert said.format(made, made + 1) in str(caught.value)


@pytest.mark.parametrize("interval", [1, 10])
def test_sglang_looks_for_requests_after_so_many_decode_steps(interval):
    """``--scheduler-recv-interval``: at once after a prompt, then after that many decode steps."""
    scheduler = SglangScheduler(SglangSchedulerOptions(receive_interval=interval))
    alone = serve([offer(0, 0, 20, 61)], SglangScheduler())
    times = [row["time"] for row in rows(alone, "submitted")]
    late = (times[13] + 1) / 1e6  # while the 13th decode step runs
    engine = serve([offer(0, 0, 20, 61), offer(1, late, 20, 2)], scheduler)
    launched = [bool(row["decodes"]) for row in rows(engine, "submitted")]
    before = launched[1:].index(False)  # decode steps before the second prompt
    assert before == (13 if interval == 1 else 20)
