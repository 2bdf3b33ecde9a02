"""Pieces of policies with everything around them made up: what a decision is computed from."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from nexusbench.core.batch import Batch, BatchShape, Chunk, Plan, Split
from nexusbench.core.errors import InvariantBreach
from nexusbench.core.state import EngineState, InFlight, Limits
from nexusbench.engine.arrivals import NEVER, Patience
from nexusbench.kv.manager import BlockPool, KVCacheManager
from nexusbench.partitioners._latency import LatencyWindow
from nexusbench.partitioners._launches import LaunchBook
from nexusbench.partitioners.bullet import BulletPartitioner as BulletSplits
from nexusbench.partitioners.duetserve import DuetservePartitioner as DuetSplits
from nexusbench.partitioners.muxwise import MuxwisePartitioner as MuxwiseSplits
from nexusbench.partitioners.muxwise import MuxwisePartitionerOptions, _cell, _power
from nexusbench.planning.prompts import proceed, resume
from nexusbench.schedulers._layerwise import LayerwisePrefill
from nexusbench.schedulers._offloading import AttentionLoad
from nexusbench.schedulers._turn import FastserveTurn
from nexusbench.testing import offer, tiny_device, tiny_gpu
from nexusbench.testing._harness import Setting, build, make_scheduler

GPU = tiny_gpu(num_sms=40, sm_minimum=2, sm_multiple=1)
BOTH = ("prefill", "decode")
PREFILL, DECODE = BatchShape(0, 0, ((100, 20),)), BatchShape(4, 400)
MS = 1_000_000


def request(index=0, prompt=10, tokens=None, computed=0, **more):
    made = offer(index, 0, prompt, 9, **more)
    made.num_tokens = prompt if tokens is None else tokens
    made.num_computed_tokens = computed
    return made


def split(prefill, whole=40):
    return Split(BOTH, (prefill, whole - prefill))


# -- engine ----------------------------------------------------------------------------------------


def test_a_client_whose_request_has_ended_is_not_waited_for():
    patient = offer(0, 0, 5, 5, timeout_ms=50.0)
    patience = Patience([patient])
    patience.watch(patient)
    assert patience.next_ns == 50 * MS
    patient.outcome = 0
    assert list(patience.pop_due(1)) == []
    assert patience.next_ns == NEVER


@pytest.mark.parametrize(
    ("timeout", "cancel", "due"), [(50, 20, 20), (20, 50, 20), (50, 0, 50), (0, 50, 50)]
)
def test_the_earlier_of_two_clocks_runs_out(timeout, cancel, due):
    client = offer(0, 3, 5, 5, timeout_ms=timeout, cancel_after_ms=cancel)
    patience = Patience([client])
    patience.watch(client)
    assert list(patience.pop_due((3 + due) * MS - 1)) == []
    assert [found for found, _ in patience.pop_due((3 + due) * MS)] == [client]


def test_a_busy_partition_hides_no_idle_one():
    """I7 looks at every partition: prefill is computing, decode idles beside a ready request."""
    engine = build([], make_scheduler("nexus"), setting=Setting(kv_blocks=20))
    engine.state.in_flight["prefill"].append(InFlight(0, Batch("prefill", [], [], PREFILL), 8))
    engine.state.decoding.append(request(0, tokens=11, computed=10))
    with pytest.raises(InvariantBreach, match="'decode' idle although a decoding request is ready"):
        engine.auditor.check_work_conserving(Plan())


# -- KV --------------------------------------------------------------------------------------------


def test_what_a_preempted_request_left_is_counted_by_its_own_blocks():
    kv = KVCacheManager(16, 4, hash_block=8)
    mine = request(0, 10, tokens=15, computed=14)
    assert kv.allocate(mine, 14, []) is not None
    kv.publish_own(mine)
    kv.free(mine)
    mine.num_preemptions, mine.num_computed_tokens = 1, 0
    assert kv.count_cached([mine, request(1, 10)]) == [12, 0]


def test_a_prefix_id_may_name_a_single_block():
    kv = KVCacheManager(16, 4, hash_block=4)
    one, two = (request(i, 12, prefix_ids=(1, 2 + 7 * i, 3)) for i in range(2))
    assert kv.allocate(one, 12, []) is not None
    one.num_computed_tokens = 12
    kv.publish(one)
    assert kv.find_prefix(two) == one.blocks[:1]
    assert kv.count_cached([two]) == [4]


def test_every_change_of_what_can_be_found_is_counted():
    """Orders that look at the cache ask whether it has changed since."""
    pool = BlockPool(4)
    (block,), _ = pool.take(1)
    seen = [pool.changes]
    pool.publish(block, 5)
    seen.append(pool.changes)
    pool.unpublish([block])
    seen.append(pool.changes)
    assert len(set(seen)) == 3
    assert pool.find(5) is None


# -- schedulers ------------------------------------------------------------------------------------


def sglang(**options):
    named = ",".join(f"{key}={value}" for key, value in options.items())
    return make_scheduler(f"sglang:{named}" if named else "sglang")


@pytest.mark.parametrize(
    ("prompt", "generated", "most", "expected"),
    [
        (10, 0, 5000, 4096),  # clipped
        (10, 1000, 5000, 4000),
        (10, 904, 5000, 4096),
        (10, 0, 70, 70),
        (10, 30, 70, 40),
        (7000, 0, 5000, 999),  # of a pool of 8,000 tokens, less one
        (7999, 0, 5000, 0),
    ],
)
def test_sglang_expects_what_may_still_come(prompt, generated, most, expected):
    made = request(0, prompt, tokens=prompt + generated, max_tokens=most)
    assert sglang()._expected_output(made, 8000) == expected


def test_sglangs_room_is_what_is_free_less_what_will_grow():
    policy = sglang(init_new_token_ratio=0.5)
    policy._ratio = 0.5
    decode = request(0, 10, tokens=14, computed=13, max_tokens=20)  # 16 to come
    started = request(1, 30, tokens=30, computed=10, max_tokens=9)  # 20 of the prompt, 9 to come
    ctx = SimpleNamespace(
        kv=KVCacheManager(10, 16),
        decoding=[decode], prefilling=[started],
    )  # fmt: skip
    assert policy._room(ctx, 8000) == 160 - 20 - 0.5 * (16 + 9)


class Blocks(KVCacheManager):
    """A pool of which ``free`` blocks are free."""

    def __init__(self, free, total=100, size=4):
        super().__init__(total, size)
        self.free = free

    @property
    def num_free(self):
        return self.free


class Free:
    """A context in which ``takes`` says how many tokens of a request are scheduled."""

    def __init__(self, takes, **more):
        self.takes, self.asked, self.log = takes, [], []
        self.num_layers, self.now, self.num_running = 8, 0, 0
        self.prefilling, self.decoding, self.waiting = [], [], SimpleNamespace(head=None)
        self.preempted, self.blocks_coming = [], 0
        self.left, self.limits = 100, Limits(8, 64, 1024)
        self.__dict__.update(more)

    def savepoint(self):
        return 7

    def rollback(self, mark):
        self.log.append(("rollback", mark))

    def try_schedule(self, request, tokens=None, partition="all", *, layers=None):
        self.asked.append((request.index, tokens, partition, layers))
        return self.takes(request)

    def budget(self, partition="all"):
        return self.left

    def preempt(self, request, kind=None):
        self.log.append(("preempt", request.index))
        if request in self.prefilling:
            self.prefilling.remove(request)

    def last_running(self, request):
        return self.prefilling[-1] if self.prefilling else None

    def swap_in_all(self):
        return False


def test_a_prompt_that_fits_no_single_chunk_interrupts_nobody():
    prefill, ctx = LayerwisePrefill(), Free(lambda r: 6)
    first = request(0, 20)
    prefill.batch = [first]
    assert prefill.interrupt(ctx, request(1, 10), lambda shape: 8) is False
    assert ctx.log == [("rollback", 7)]
    assert prefill.batch == [first]
    assert not prefill.interrupting
    assert prefill.interrupt(ctx, request(2, 6), lambda shape: 8) is True
    assert [r.index for r in prefill.batch] == [2]
    assert prefill.interrupting


def test_a_partial_prompt_takes_the_blocks_of_the_last_to_join():
    me, last = request(0, 20), request(1, 20)
    ctx = Free(lambda r: 0 if last in ctx.prefilling else 9, prefilling=[me, last])
    assert resume(ctx, me, 9) == 9
    assert ctx.log == [("preempt", 1)]


def test_a_partial_prompt_without_anybody_to_take_from_waits():
    ctx = Free(lambda r: 0)
    assert resume(ctx, request(0, 20)) == 0
    assert ctx.log == []
    alone = request(0, 20)
    ctx = Free(lambda r: 0, prefilling=[alone])
    assert resume(ctx, alone) == 0
    assert ctx.log == [("preempt", 0)]
    spent = Free(lambda r: 9, left=0)
    assert resume(spent, request(0, 20)) == 0
    assert spent.asked == []


class Kinds(Free):
    """Notes how each is preempted; a swapped one is on its way out until its copy ends."""

    def preempt(self, request, kind=None):
        self.log.append((request.index, kind))
        assert len(self.log) < 20  # it goes round for ever
        if self.swaps and kind is None:
            request.in_flight = True
        else:
            self.prefilling.remove(request)

    swaps = False


def test_a_prompt_that_waits_or_is_in_flight_takes_no_blocks():
    """One that was preempted a moment ago, for an earlier one, or that is being copied."""
    other, waits, flies = request(0, 20), request(1, 20), request(2, 20)
    flies.in_flight = True
    for go_on, prompts in ((resume, (waits, flies)), (proceed, (waits,))):
        for prompt in prompts:
            ctx = Free(
                lambda r: 0, prefilling=[flies, other], idle=True, is_at=lambda r, name: True
            )
            assert go_on(ctx, prompt) == 0
            assert ctx.asked == []
            assert ctx.log == []


def test_a_prompt_waits_for_the_copy_of_the_one_it_swapped_out():
    me, last = request(0, 20), request(1, 20)
    ctx = Kinds(lambda r: 0, prefilling=[me, last], swaps=True)
    assert resume(ctx, me) == 0
    assert ctx.log == [(1, None)]
    assert len(ctx.asked) == 1


@pytest.mark.parametrize(("coming", "taken"), [(0, [(0, None)]), (1, [])])
def test_a_prompt_leaves_itself_only_where_no_blocks_are_on_their_way(coming, taken):
    me = request(0, 20)
    ctx = Kinds(lambda r: 0, prefilling=[me], blocks_coming=coming)
    assert resume(ctx, me) == 0
    assert ctx.log == taken
    assert len(ctx.asked) == 1  # it does not start again in the same step


@pytest.mark.parametrize(
    ("idle", "decodes_at", "taken"),
    [(True, None, [3]), (False, None, []), (True, "prefill", []), (True, "decode", [3])],
)
def test_proceeding_takes_from_the_last_here_only_where_the_engine_would_stand(
    idle, decodes_at, taken
):
    """Not while something is in flight, nor while a request of this GPU decodes: it will end."""
    me, second, away, last = (request(i, 20) for i in range(4))
    place = {0: "prefill", 1: "prefill", 2: "decode", 3: "prefill", 9: decodes_at}
    ctx = Kinds(
        lambda r: 0 if last in ctx.prefilling else 8,
        prefilling=[me, second, last, away], idle=idle, swaps=True,
        decoding=[request(9, 5, tokens=6, computed=5)] if decodes_at else [],
        is_at=lambda r, name: place[r.index] == name,
    )  # fmt: skip
    assert proceed(ctx, me, None, "prefill") == (8 if taken else 0)
    assert ctx.log == [(index, "recompute") for index in taken]


@pytest.mark.parametrize("order", [(1, 2, 3), (2, 1, 3), (3, 2, 1), (2, 3, 1)])
@pytest.mark.parametrize(("key", "victim"), [("spf", 2), ("fcfs", 3)])
def test_nexus_takes_from_the_last_of_three_by_its_score(order, key, victim):
    """Whichever joined last: by what is left, or by arrival; never one in flight."""
    policy = make_scheduler(f"nexus:order={key},preemption=swap")
    me, flies = request(0, 30), request(8, 500)
    flies.in_flight = True
    made = {
        1: request(1, 90, computed=60), 2: request(2, 100, computed=20),
        3: request(3, 120, computed=50),
    }  # fmt: skip
    ctx = Kinds(
        lambda r: 0 if made[victim] in ctx.prefilling else 7, swaps=True,
        prefilling=[me, *(made[i] for i in order), flies],
        order_key=lambda r: r.num_tokens if key == "spf" else r.index,
    )  # fmt: skip
    assert policy._take(ctx, me) == 1
    assert ctx.log == [(victim, "recompute")]


class Queue(list):
    """The waiting ones: who is scheduled is gone from it."""

    @property
    def head(self):
        return self[0] if self else None


POLICIES = {
    "vllm": "all", "sarathi": "all", "sglang": "all", "nexus": "prefill", "semi-pd": "prefill",
    "pdmux": "prefill", "muxwise": "prefill", "vllm-pd": "prefill", "adrenaline": "prefill",
}  # fmt: skip


@pytest.mark.parametrize("name", POLICIES)
def test_in_a_step_that_preempted_no_request_starts(name):
    """Whatever is free: the blocks are those that an earlier one has just lost."""
    for preempted in (True, False):
        waiting = Queue([request(0, 10)])

        def take(r, waiting=waiting):
            waiting.remove(r)
            return 10

        ctx = Free(
            take, waiting=waiting, preempted=preempted, limits=Limits(8, 64, 1024),
            kv=Blocks(50, total=50),
            schedule_decodes=lambda *rest, **more: 0, free_slots=lambda name="all": 1,
            cached_tokens=lambda r: 0, is_at=lambda r, name: name == "prefill",
            order_key=lambda r: 0.0, sms=lambda name: 8, plan=lambda: "plan",
        )  # fmt: skip
        policy = make_scheduler(name)
        if name == "adrenaline":
            policy._prompt = lambda ctx, r, *rest: ctx.try_schedule(r, None, "prefill")
        assert policy.schedule(ctx) == "plan"
        started = [(0, POLICIES[name])]
        asked = [(index, partition) for index, _, partition, _ in ctx.asked]
        assert asked[:1] == ([] if preempted else started)
        assert len(waiting) == preempted


def test_bullet_adds_no_prompt_to_a_batch_that_took_blocks():
    policy, half = make_scheduler("bullet:order=fcfs"), request(9, 50)
    policy._prospects = SimpleNamespace(
        prompt=lambda r, sms: 1.0, saturating_tokens=lambda sms: 999,
        next_prompt=lambda *asked: None,
    )  # fmt: skip
    policy._slo = None
    for preempted in (True, False):
        queue = Queue([request(0, 10)])
        ctx = Free(
            lambda r, queue=queue: 10 if r is half else queue.remove(r) or 10,
            prefilling=[half], waiting=queue, preempted=preempted,
        )  # fmt: skip
        found = [r.index for r, _ in policy._new_batch(ctx, (0, 2), 8)]
        assert found == ([9] if preempted else [9, 0])


def test_muxwise_believes_that_no_tokens_take_no_time():
    policy = make_scheduler("muxwise")
    policy.belief = SimpleNamespace(predict=lambda shape, sms: 5.0 * shape.num_tokens)
    ctx = SimpleNamespace(sms=lambda name: 8)
    assert [policy._time(ctx, tokens, 9) for tokens in (-1, 0, 1, 3)] == [0.0, 0.0, 5.0, 15.0]


def test_bullets_new_batch_takes_prompts_until_they_are_bound_by_compute():
    queue = [request(i, 40) for i in range(5)]
    policy, begins = make_scheduler("bullet:order=latency"), []

    class Seen:
        def prompt(self, r, sms):
            return 1000.0

        def saturating_tokens(self, sms):
            return 100

        def next_prompt(self, waiting, begin, slo, sms):
            begins.append(begin)
            return

    policy._prospects, policy._slo = Seen(), None
    half = request(9, 50)
    ctx = Free(lambda r: 40, prefilling=[half], waiting=Waiting(queue), now=500)
    inner = ctx.try_schedule
    ctx.try_schedule = lambda r, *rest, **more: ctx.waiting.drop(r) or inner(r, *rest, **more)
    found = policy._new_batch(ctx, (0, 2), 8)
    # 40 of the half-done prompt, then 40 and 40: 120 are enough.
    assert [(r.index, tokens) for r, tokens in found] == [(9, 40), (0, 40), (1, 40)]
    assert begins == [1500.0, 2500.0]


class Waiting:
    def __init__(self, queue):
        self.queue = queue

    @property
    def head(self):
        return self.queue[0] if self.queue else None

    def drop(self, r):
        if r in self.queue:
            self.queue.remove(r)


def test_bullet_takes_blocks_from_a_later_prompt_that_is_not_in_flight():
    mine, flying, later = request(0, 20), request(1, 20), request(2, 20)
    flying.in_flight = True
    ctx = Free(lambda r: 0 if later in ctx.prefilling else 20, prefilling=[mine, later, flying])
    assert make_scheduler("bullet")._take(ctx, mine, (0, 2)) == 20
    assert ctx.log == [("preempt", 2)]
    ctx = Free(lambda r: 0, prefilling=[mine, flying])
    assert make_scheduler("bullet")._take(ctx, mine, (0, 2)) == 0
    assert ctx.log == []


def test_the_load_of_offloaded_attention():
    load = AttentionLoad()
    load.add(request(0, 10, tokens=15, max_tokens=64))
    load.add(request(1, 20, tokens=20, max_tokens=64))
    assert (load.requests, load.tokens, load.worst) == (2, 35, 10 + 64 + 20 + 64)


def turn(due, others, *, free=0, coming=0, running=8, leaving=(), here=()):
    """The part of an iteration of FastServe that makes room, of 8 seats and blocks of 4."""
    made = FastserveTurn.__new__(FastserveTurn)
    freed = []

    def preempt(r):
        freed.append(r.index)
        kv.free += 3

    kv = Blocks(free)
    made._ctx = SimpleNamespace(
        kv=kv, blocks_coming=coming, num_running=running, preempt=preempt,
        limits=Limits(8, 64, 1024),
    )  # fmt: skip
    made._seats, made._leaving = 8, set(leaving)
    made._kept, made._here, made._decoding = set(), set(here), set()
    made.due = [SimpleNamespace(request=r) for r in due]
    made.others = [Job(r) for r in others]
    made.make_room()
    return freed


class Job:
    def __init__(self, r):
        self.request = r


@pytest.mark.parametrize(
    ("free", "coming", "running", "freed"),
    [
        (3, 0, 7, []),  # 11 + 1 tokens are three blocks, and there is a seat
        (2, 0, 7, [5]),
        (2, 1, 7, []),  # a block that a copy will free is as good
        (0, 0, 7, [5]),
        (9, 0, 8, [5]),  # room, but no seat
        (9, 0, 9, [5, 4]),
    ],
)
def test_fastserve_makes_room_from_the_lowest_up_for_blocks_and_seats(free, coming, running, freed):
    lower = [request(4, 8, tokens=9, computed=8), request(5, 8, tokens=9, computed=8)]
    assert turn([request(0, 11)], lower, free=free, coming=coming, running=running) == freed


def test_fastserve_counts_what_the_due_hold_and_who_is_leaving():
    here = request(0, 11, tokens=12, computed=11)
    other = request(5, 8, tokens=9, computed=8)
    assert turn([here], [other], free=1, here=[0]) == []  # one more block than its three
    assert turn([here], [other], free=0, here=[0]) == [5]
    assert turn([request(0, 11)], [other], free=9, running=8) == [5]
    assert turn([request(0, 11)], [other], free=9, running=8, leaving=[8]) == []
    flying = request(6, 8)
    flying.in_flight = True
    assert turn([request(0, 11)], [other, flying], free=0) == [5]


@pytest.mark.parametrize(
    ("holding", "begun", "prompt", "running", "due"),
    [
        (True, False, 15, 7, True),  # 15 + 1 tokens are the four blocks that are free
        (True, False, 16, 7, False),
        (True, False, 15, 8, False),  # no seat
        (True, True, 16, 8, True),  # it was there before: it may take what it needs
        (False, False, 16, 8, True),
    ],
)
def test_while_the_host_is_nearly_full_only_what_has_room_already_starts(
    holding, begun, prompt, running, due
):
    ctx = SimpleNamespace(
        kv=Blocks(4), limits=Limits(8, 64, 1024),
        num_running=running, decoding=[], prefilling=[], swapped=[],
    )  # fmt: skip
    job = SimpleNamespace(request=request(0, prompt), begun=begun, level=0, place=0)
    made = FastserveTurn(
        ctx, [([], [job])], {0: job}, most_requests=8, most_tokens=64, leaving=set(),
        holding=holding,
    )  # fmt: skip
    assert made.due == ([job] if due else [])


@pytest.mark.parametrize(
    ("prompt", "cached", "starts"),
    [(20, 0, True), (21, 0, False), (24, 4, True), (25, 4, False), (40, 20, True)],
)
def test_sarathi_starts_a_prompt_if_all_of_it_that_is_not_cached_fits(prompt, cached, starts):
    """Five free blocks of four; of the batch it takes what is left."""
    ctx = Free(lambda r: 7, kv=Blocks(5), cached_tokens=lambda r: cached)
    assert make_scheduler("sarathi")._admit(ctx, request(0, prompt), 7) == (7 if starts else 0)
    assert ctx.asked == ([(0, 7, "all", None)] if starts else [])


# -- partitioners ----------------------------------------------------------------------------------


def state_of(made, tbt_ms=None):
    spec = tiny_device(gpu=GPU).spec
    limits = Limits(8, 64, 1024, tbt_ms=tbt_ms)
    return EngineState(spec, KVCacheManager(100, 4), limits, BOTH, made.initial(spec))


def both(prefill=PREFILL, decode=DECODE):
    return Plan([Batch("prefill", [], [], prefill), Batch("decode", [], [], decode)])


class Inverse:
    """A step takes ``ns`` over its SMs; a prefill 0."""

    monotone, learns = True, False

    def __init__(self, ns):
        self.ns = ns

    def predict(self, shape, sms, neighbour=None):
        return 0.0 if shape.chunks else self.ns / sms

    def predict_splits(self, shape, sms, neighbour=None, neighbour_sms=()):
        return [self.predict(shape, own) for own in sms]


def test_muxwise_guards_by_a_third_until_it_has_seen_more():
    """30 SMs of a step of 900 ms on one are 30 ms alone: 39 ms within the guard of 1.3."""
    made = MuxwiseSplits(MuxwisePartitionerOptions(tbt_ms=39.0), belief=Inverse(900.0 * MS))
    assert made.split(both(), state_of(made)).sms == (10, 30)
    made = MuxwiseSplits(MuxwisePartitionerOptions(tbt_ms=38.99), belief=Inverse(900.0 * MS))
    assert made.split(both(), state_of(made)).sms == (9, 31)


def test_muxwise_moves_by_single_sms():
    made = MuxwiseSplits(MuxwisePartitionerOptions(tbt_ms=39.0), belief=Inverse(900.0 * MS))
    state = state_of(made)
    state.split = split(11)
    assert made.split(both(), state).sms == (10, 30)


def test_cells_of_the_guard_are_powers_of_four_from_2k():
    assert [_power(n, 2048, 131_072) for n in (0, 2048, 2049, 8192, 8193, 10**9)] == [
        2048, 2048, 8192, 8192, 32_768, 131_072,
    ]  # fmt: skip
    two = BatchShape(0, 0, ((1024, 8192), (1024, 0)))
    assert _cell(two, BatchShape(4, 2048), 30) == (2048, 8192, 4, 2048, 30)
    assert _cell(BatchShape(0, 0, ((2049, 0),)), BatchShape(5, 0), 8) == (8192, 2048, 16, 2048, 8)


@pytest.mark.parametrize(
    ("asked", "users", "steps"), [(None, None, 100.0), (30.0, 60.0, 30.0), (None, 60.0, 60.0)]
)
def test_duetserves_tau_is_the_option_else_the_users_else_100_ms(asked, users, steps):
    from nexusbench.partitioners.duetserve import DuetservePartitionerOptions

    class Step(Inverse):
        def predict(self, shape, sms, neighbour=None):
            return (1.0 if shape.chunks else self.ns) * 20 / sms

    for ns, allowed in ((steps * MS, True), (steps * MS * 1.001, False)):
        made = DuetSplits(DuetservePartitionerOptions(tbt_ms=asked), belief=Step(ns))
        state = state_of(made, users)
        state.split = split(20)
        made._legal = [split(20), split(38)]
        chosen = made.split(both(), state)
        # On 20 SMs a step takes ``ns``; on the 2 SMs of the other split it always takes too long.
        assert chosen == split(20)
        made._legal = [split(38), split(20)]
        assert (made.split(both(), state) == split(20)) == allowed


def test_duetserve_keeps_a_split_within_two_percent_of_the_best():
    class Rated(Inverse):
        """The step on 19 SMs is 1.5 % faster than on 20, on 18 it is 3 % faster."""

        def predict(self, shape, sms, neighbour=None):
            return 1.0 if shape.chunks else MS * {20: 1.0, 19: 0.985, 18: 0.97}[sms]

    made = DuetSplits(belief=Rated(0))
    state = state_of(made)
    state.split = split(20)
    made._legal = [split(20), split(21)]
    assert made.split(both(), state) == split(20)
    made._legal = [split(20), split(22)]
    assert made.split(both(), state) == split(22)
    made._legal = [split(21), split(22)]
    assert made.split(both(), state) == split(22)


def test_bullet_gives_decode_the_fewest_sms_that_are_enough_by_two_steps_or_more():
    made = BulletSplits()
    state_of(made)
    made._legal = [split(10 + i) for i in range(8)]
    assert made._reduce_decode(lambda at: at <= 6, 3) == 6
    assert made._reduce_decode(lambda at: at <= 4, 3) == 3  # one step: not worth it
    assert made._reduce_decode(lambda at: at <= 5, 3) == 5
    assert made._reduce_decode(lambda at: True, 3) == 7
    assert made._reduce_decode(lambda at: at <= 1, 3) == 1
    assert made._reduce_decode(lambda at: False, 3) == 0
    assert made._reduce_decode(lambda at: at in (2, 3, 6), 3) == 3  # no gap is jumped over


def test_a_launch_is_beside_what_runs_or_else_what_starts_with_it():
    made = BulletSplits()
    state = state_of(made)
    book = LaunchBook("expand")
    plan = both()
    book.note(plan, split(15), state)
    first, second = (book.ended(batch, 5) for batch in plan.batches)
    assert (first.sms, first.beside) == (15, (DECODE, 25))
    assert (second.sms, second.beside) == (25, (PREFILL, 15))
    other = BatchShape(1, 10)
    state.in_flight["decode"].append(InFlight(0, Batch("decode", [], [], other), 33))
    plan = both()
    book.note(plan, split(15), state)
    assert book.ended(plan.batches[0], 9).beside == (other, 33)


def test_a_lone_launch_has_all_sms_unless_its_share_is_kept():
    made = BulletSplits()
    state = state_of(made)
    for idle, sms in (("expand", 40), ("reserve", 15)):
        book, plan = LaunchBook(idle), Plan([Batch("prefill", [], [], PREFILL)])
        state.now = 100
        book.note(plan, split(15), state)
        launch = book.ended(plan.batches[0], 160)
        assert (launch.sms, launch.beside, launch.ns) == (sms, None, 60)
        again = book.ended(plan.batches[0], 200)  # its second repetition
        assert again.ns == 40
        assert book.ended(Batch("prefill", [], [], PREFILL), 300) is None


def test_tpot_is_observed_from_the_window_on():
    """A first token that came at the moment at which the window began belongs to it."""
    window = LatencyWindow(40)
    window.close(90.0, 100)
    mine = request(0, 10, tokens=11, computed=10)
    window.add(Batch("prefill", [], [Chunk(mine, 10, 0)], PREFILL), None, 100)
    mine.num_tokens += 4
    window.add(Batch("decode", [mine], [], DECODE), None, 180)
    assert window.close(90.0, 180).tpot == 20.0
    gone = request(1, 10, tokens=11, computed=10)
    window.add(Batch("prefill", [], [Chunk(gone, 10, 0)], PREFILL), None, 180)
    mine.num_tokens += 1
    window.add(Batch("decode", [mine], [], DECODE), None, 200)
    assert window.close(90.0, 200).tpot == 20.0
    assert window.close(90.0, 201).tpot is None


def test_bullet_leaves_prefill_its_least_share_where_that_is_enough():
    belief = SimpleNamespace(predict=lambda shape, sms, neighbour=None: 100.0 / sms)
    made = BulletSplits(belief=belief)
    state = state_of(made)
    made._pace.late = lambda *asked: True
    state.split = split(30)
    assert made.split(both(), state).sms == (2, 38)
    assert made.mode == "reduce-prefill"


def test_a_batch_of_decodes_reads_the_contexts_of_all():
    engine = build([], make_scheduler("vllm"), setting=Setting(kv_blocks=20))
    for index, computed in enumerate((5, 10, 3)):
        decode = request(index, tokens=computed + 1, computed=computed)
        decode.blocks = engine.kv.pool.take(3)[0]
        engine.state.decoding.append(decode)
    engine.journal.begin()
    assert engine.context.schedule_decodes(chosen=engine.state.decoding[:2]) == 2
    assert engine.context.schedule_decodes() == 1
    (batch,) = engine.context.plan().batches
    assert (batch.shape.num_decodes, batch.shape.decode_context) == (3, 18)


def test_semi_pd_brings_swapped_requests_back_while_a_prompt_is_computed():
    flying = request(0, 20)
    flying.in_flight = True
    ctx, asked = Free(lambda r: 0, prefilling=[flying]), []
    ctx.schedule_decodes = lambda *rest, **more: 0
    ctx.swap_in_all = lambda: asked.append("swapped") or True
    ctx.plan = lambda: "plan"
    assert make_scheduler("semi-pd").schedule(ctx) == "plan"
    assert asked == ["swapped"]


def test_adrenalines_first_to_be_ready_is_the_first_to_go():
    policy, asked = make_scheduler("adrenaline"), []
    first, second = request(0), request(1)
    policy._classify = lambda ctx: ([], [first, second])
    ctx = Free(lambda r: 0, decoding=[first, second], preempted=[first])
    ctx.schedule_decodes = lambda *rest, **more: 0
    ctx.is_at = lambda r, name: True
    ctx.transfer = lambda r, name: asked.append(r.index) or False
    ctx.plan = lambda: "plan"
    assert policy.schedule(ctx) == "plan"
    assert asked == [0]  # there is no room for it, and nothing overtakes


def test_sarathi_takes_no_blocks_for_a_prompt_that_gets_no_tokens():
    """The first half-done prompt takes the whole chunk: the second waits, nobody is preempted."""
    first, second = request(0, 90), request(1, 90)
    ctx = Free(lambda r: 16 if r is first else 0, prefilling=[first, second])
    ctx.schedule_decodes = lambda *rest, **more: 0
    ctx.limits = Limits(8, 64, 1024)
    ctx.plan = lambda: "plan"
    assert make_scheduler("sarathi:chunk=16").schedule(ctx) == "plan"
    assert [(index, tokens) for index, tokens, *_ in ctx.asked] == [(0, 16)]
    assert ctx.log == []


def test_a_first_token_is_remembered_until_its_request_decodes():
    window = LatencyWindow(40)
    window.close(90.0, 100)
    mine, other = request(0, 10, tokens=11, computed=10), request(1, 10, tokens=15, computed=14)
    window.add(Batch("prefill", [], [Chunk(mine, 10, 0)], PREFILL), None, 100)
    window.add(Batch("decode", [other], [], DECODE), None, 180)
    window.close(90.0, 180)
    mine.num_tokens += 2
    window.add(Batch("decode", [mine], [], DECODE), None, 200)
    assert window.close(90.0, 200).tpot == 50.0
