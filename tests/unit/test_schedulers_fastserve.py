"""FastServe: levels, quanta, promotions and swaps as its paper and code have them."""

from __future__ import annotations

import random

import pytest

from nexusbench.core.errors import InputError
from nexusbench.core.events import PREEMPTION_KINDS
from nexusbench.core.state import Limits
from nexusbench.core.units import NS_PER_MS
from nexusbench.schedulers._mlfq import Mlfq
from nexusbench.testing import ConformanceError, offer, serve
from nexusbench.testing._harness import Setting, build, make_scheduler, tiny_device
from nexusbench.testing.scheduler import check_starvation

QUANTUM = 10 * NS_PER_MS
SWAP, RECOMPUTE = (PREEMPTION_KINDS.index(kind) for kind in ("swap", "recompute"))


class MsPerToken:
    """A belief: every token of a prompt takes a millisecond."""

    def predict(self, shape, sms, neighbour=None):
        return shape.num_tokens * NS_PER_MS


def crowd(seed, count=24, every_ms=25):
    rng = random.Random(seed)
    return [
        offer(i, every_ms * i, rng.randint(4, 90), rng.randint(2, 50), max_tokens=64)
        for i in range(count)
    ]


def levels(policy):
    return {index: job.level for index, job in policy._queue.jobs.items()}


def instants(options, requests, setting, *, device=None, belief=None):
    """Per decision: levels, (running, decodable) before; batch and preempted after. The engine."""
    policy, seen = make_scheduler(f"fastserve:{options}" if options else "fastserve"), []
    inner = policy.schedule

    def schedule(ctx):
        policy._join(ctx)
        place = {i: (job.level, job.place) for i, job in policy._queue.jobs.items()}
        here = [r.index for r in (*ctx.decoding, *ctx.prefilling) if not r.in_flight]
        waiting = [r.index for r in ctx.waiting]
        plan = inner(ctx)
        batch = [r.index for b in plan.batches for r, _ in b.items]
        gone = [p.request.index for p in plan.preemptions]
        seen.append((place, here, waiting, batch, gone))
        return plan

    policy.schedule = schedule
    engine = build(requests, policy, setting=setting, device=device)
    if belief is not None:
        policy.belief = belief
    engine.run()
    return seen, engine


def kinds(engine):
    return list(engine.log.tables["preempted"].columns["kind"])


# -- the queue -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompt", "level"), [(1, 0), (10, 0), (11, 1), (20, 1), (40, 2), (41, 3), (400, 6)]
)
def test_a_request_joins_the_first_level_whose_quantum_holds_its_first_iteration(prompt, level):
    seen, _ = instants("", [offer(0, 0, prompt, 1)], Setting(), belief=MsPerToken())
    assert seen[0][0][0][0] == level


def test_what_the_prefix_cache_holds_need_not_be_computed():
    ids = tuple(range(5))
    requests = [offer(0, 0, 40, 1, prefix_ids=ids), offer(1, 5000, 40, 1, prefix_ids=ids)]
    seen, _ = instants("", requests, Setting(), belief=MsPerToken())
    joined = {index: level for place, *_ in reversed(seen) for index, (level, _) in place.items()}
    assert joined == {0: 2, 1: 0}  # 40 tokens, then 4


def test_a_request_is_demoted_when_it_has_used_up_its_quantum():
    policy = make_scheduler("fastserve")
    inner, used, seen = policy.completed, {}, []

    def completed(batch, now):
        before = levels(policy)
        inner(batch, now)
        seen.append((before, levels(policy), [r.index for r, _ in batch.items], now))

    policy.completed = completed
    engine = serve([offer(0, 0, 8, 60), offer(1, 40, 8, 60)], policy)
    starts = engine.log.tables["submitted"].columns["time"]
    demotions = 0
    for step, (before, after, batch, now) in enumerate(seen):
        for index in batch:
            used[index] = used.get(index, 0) + now - starts[step]
            spent = used[index] > QUANTUM << before[index]
            assert after[index] == before[index] + spent
            if spent:
                used[index], demotions = 0, demotions + 1
    assert demotions >= 6


def test_the_demoted_go_to_the_front_and_keep_their_order_there():
    queue = Mlfq(QUANTUM)
    requests = [offer(i, 0, 8, 4) for i in range(5)]
    queue.join(requests[4], 2 * QUANTUM)  # a new one of the next level
    for request in requests[:4]:
        queue.join(request, 1)
        queue.begin(request)
    queue.ran(requests[:1], QUANTUM + 1, 0)
    queue.ran(requests[1:3], QUANTUM + 1, 0)
    order = [[j.request.index for j in (*begun, *fresh)] for begun, fresh in queue.levels(None)]
    assert order == [[3], [1, 2, 0, 4]]


@pytest.mark.slow
def test_who_is_idle_too_long_is_promoted_at_the_next_check_and_not_before():
    """Short prompts fill a batch of two; the long one, of a low level, gets no turn."""
    short = [offer(1 + i, 30 * i, 8, 12) for i in range(150)]
    policy = make_scheduler("fastserve:max_batch=2,check_every=10,starved_ms=500")
    inner, seen = policy.completed, []

    def completed(batch, now):
        idle = {i: now - job.idle_since for i, job in policy._queue.jobs.items()}
        served = {r.index for r, _ in batch.items}
        before = levels(policy)
        inner(batch, now)
        after = levels(policy)
        seen.append((idle, before, after, served, policy._iterations))

    policy.completed = completed
    serve([offer(0, 1, 200, 4), *short], policy, setting=Setting(audit_every=99))
    promoted = 0
    for idle, before, after, served, iteration in seen:
        for index, level in before.items():
            starved = idle[index] >= 500 * NS_PER_MS and index not in served
            lifted = after.get(index, level) == 0 < level
            assert lifted == (starved and level > 0 and iteration % 10 == 0)
            promoted += lifted
    assert promoted > 5


# -- who runs --------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["fcfs", "spf"])
def test_the_higher_level_always_goes_first(order):
    """With memory for all, nobody runs while somebody of a higher level does not."""
    setting = Setting(kv_blocks=2000, limits=Limits(64, 512, 1024))
    seen, engine = instants(f"max_batch=3,order={order}", crowd(1), setting)
    passed_over = 0
    for place, here, waiting, batch, gone in seen:
        assert not gone
        rest = [i for i in (*here, *waiting) if i not in batch]
        if batch and rest:
            assert max(place[i][0] for i in batch) <= min(place[i][0] for i in rest)
            passed_over += 1
    assert passed_over > 20
    assert not kinds(engine), "losing a turn is not losing the KV"


def test_the_batch_keeps_to_the_limits_given_and_by_default_to_the_engines():
    for options, requests, tokens in (("max_batch=2,max_prefill_tokens=24", 2, 24), ("", 6, 64)):
        engine = serve(crowd(2, every_ms=2), f"fastserve:{options}".rstrip(":"),
                       setting=Setting(limits=Limits(6, 64, 1024)))  # fmt: skip
        log = engine.log.tables["submitted"].columns
        sizes = [a + b for a, b in zip(log["decodes"], log["chunks"], strict=True)]
        assert max(sizes) == requests
        assert tokens - requests < max(log["prefill_tokens"]) <= tokens


@pytest.mark.slow
def test_nobody_starves_under_a_stream_that_cannot_be_served():
    check_starvation(lambda: make_scheduler("fastserve"))
    check_starvation(lambda: make_scheduler("fastserve:order=spf,gamma=0"))
    with pytest.raises(ConformanceError, match="I10: starves"):
        check_starvation(lambda: make_scheduler("fastserve:check_every=1000,promoted=reset"))


# -- memory ----------------------------------------------------------------------------------------

TIGHT = Setting(kv_blocks=45, limits=Limits(8, 64, 1024))


@pytest.mark.slow
def test_the_lowest_are_swapped_out_and_come_back_and_nothing_is_lost():
    outs = 0
    for seed in range(4):
        seen, engine = instants("max_batch=4", crowd(seed), TIGHT)
        for place, here, _, _, gone in seen:
            kept = [i for i in here if i not in gone]
            if gone and kept:
                assert min(place[i] for i in gone) > max(place[i] for i in kept)
        moves = engine.log.tables["moved"].columns
        out = [i for i, to in zip(moves["request"], moves["target"], strict=True) if to]
        back = [i for i, to in zip(moves["request"], moves["target"], strict=True) if not to]
        assert sorted(out) == sorted(back)
        assert set(kinds(engine)) == {SWAP}
        assert {r.outcome for r in engine.requests} == {0}
        outs += len(out)
    assert outs > 20


def test_copies_run_beside_batches():
    """Proactive: while somebody is on the way, others compute."""
    engine = serve(crowd(3), "fastserve:max_batch=4", setting=TIGHT)
    steps, moves = (engine.log.tables[name].columns for name in ("submitted", "moved"))
    beside = sum(
        any(start <= time <= end for time in steps["time"])
        for start, end in zip(moves["time"], moves["end"], strict=True)
    )
    assert beside > 0.8 * len(moves["time"])


def test_without_host_memory_or_with_too_little_it_recomputes():
    none = serve(crowd(0), "fastserve", setting=TIGHT, device=tiny_device(host=False))
    assert set(kinds(none)) == {RECOMPUTE}
    little = Setting(kv_blocks=45, host_blocks=24, limits=TIGHT.limits)
    some = serve(crowd(0), "fastserve:max_batch=4", setting=little)
    assert set(kinds(some)) == {SWAP, RECOMPUTE}
    for engine in (none, some):
        assert {r.outcome for r in engine.requests} == {0}


def test_a_swap_out_for_a_new_request_on_a_full_host_is_not_undone_before_it_runs():
    """One seat, and a host that the first one fills: it may not come back before the second ran."""
    setting = Setting(kv_blocks=2, host_blocks=1, limits=Limits(1, 4, 1024), prefix_caching=False)
    engine = serve([offer(0, 0, 5, 1), offer(1, 0, 1, 1)], "fastserve", setting=setting)
    assert len(kinds(engine)) <= 2


def test_nobody_new_starts_where_there_is_no_room_while_the_host_is_nearly_full():
    """FastServe's code: not with fewer than a tenth of the host's blocks free."""
    held = 0
    policy = make_scheduler("fastserve:max_batch=4")
    inner = policy.schedule

    def schedule(ctx):
        nonlocal held
        full = bool(ctx.swapped) and ctx.host.num_free < 0.1 * ctx.host.num_blocks
        fresh = {i for i, job in policy._queue.jobs.items() if not job.begun}
        room = ctx.kv.num_free * ctx.kv.block_size
        short = any(r.num_tokens >= room for r in ctx.waiting)
        plan = inner(ctx)
        if full:
            held += short
            new = [r for b in plan.batches for r, _ in b.items if r.index in fresh]
            assert sum(r.num_tokens + 1 for r in new) <= room
        return plan

    policy.schedule = schedule
    serve(crowd(0), policy, setting=Setting(kv_blocks=45, host_blocks=40, limits=TIGHT.limits))
    assert held


def test_options_out_of_range_are_refused_by_name():
    for option in ("quantum_ms=0", "max_batch=0", "check_every=0", "starved_ms=-1"):
        with pytest.raises(InputError, match=option.partition("=")[0]):
            make_scheduler(f"fastserve:{option}")
