"""What policies and the engine ask of pools in which blocks have several sizes."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from nexusbench.core.batch import BatchShape, Plan
from nexusbench.core.config import RunConfig
from nexusbench.core.errors import InvariantBreach
from nexusbench.core.kv_layout import KvGroup, KvLayout
from nexusbench.core.state import Limits
from nexusbench.kv.grouped import GroupedKV
from nexusbench.planning.prompts import fits_whole
from nexusbench.profiles.points import PointSetting
from nexusbench.profiling.desk import BatchDesk, Pool, ShapedBatch
from nexusbench.schedulers._turn import FastserveTurn
from nexusbench.serving.assembly import assemble
from nexusbench.serving.runner import engine_of
from nexusbench.testing import offer, tiny_device
from nexusbench.testing._harness import Setting, build, make_scheduler

# Blocks of four tokens: one page of all tokens, three of the last eight.
LAYOUT = KvLayout((KvGroup("full", 64.0), KvGroup("window", 192.0, 8)))
SIZES = LAYOUT.paged(4)
LIMITS = Limits(8, 64, 1024)


def request(index, prompt, *, tokens=None, computed=0, max_tokens=100):
    made = offer(index, 0, prompt, 50)
    made.num_tokens = prompt if tokens is None else tokens
    made.num_computed_tokens, made.max_tokens = computed, max_tokens
    return made


def holding(engine, index, computed):
    """A decoding request that has computed ``computed`` tokens."""
    made = request(index, computed, tokens=computed + 1, computed=computed)
    made.blocks = engine.kv.reserve(computed, computed)[0]
    engine.state.decoding.append(made)
    return made


def engine_with(blocks=200, scheduler="vllm", **more):
    setting = Setting(kv_blocks=blocks, layout=LAYOUT, limits=LIMITS, **more)
    engine = build([], make_scheduler(scheduler), setting=setting)
    engine.journal.begin()
    return engine


def test_blocks_that_a_swap_will_free_are_counted_in_pages():
    engine = engine_with(scheduler="vllm:preemption=swap")
    r, journal = holding(engine, 0, 40), engine.journal
    assert (len(r.blocks), engine.kv.held(r)) == (20, 10 + 2 * 3)
    mark = len(journal.entries)
    assert journal.copy(r, engine.state.device.host, True)
    assert engine.context.blocks_coming == 16
    waits = request(1, 40, tokens=41, computed=40)
    assert [journal.claim_block(waits) for _ in range(17)] == [True] * 16 + [False]
    early = request(2, 4, tokens=5, computed=4)
    journal.rollback(mark + 1)
    assert engine.context.blocks_coming == 16
    assert journal.claim_block(waits)
    assert [journal.claim_block(early) for _ in range(4)] == [True] * 3 + [False]
    journal.rollback(mark + 1)
    journal.claim_block(early)
    assert engine.context.blocks_coming == 12
    journal.rollback(mark)
    assert journal.coming == 0


def test_a_copy_that_has_ended_leaves_nothing_to_come():
    engine = engine_with(scheduler="vllm:preemption=swap")
    r = holding(engine, 0, 40)
    engine.journal.copy(r, engine.state.device.host, True)
    engine.executor.movers.start(engine.journal.transfers[0])
    assert engine.state.swapping_blocks == 16
    (output,) = engine.device.wait(None)
    engine.executor.complete(output)
    assert (engine.state.swapping_blocks, engine.kv.num_used) == (0, 0)
    assert engine.pools[1].num_used == 16


@pytest.mark.parametrize(("free", "out"), [(20, False), (19, True)])
def test_a_swapped_request_comes_back_once_its_pages_and_a_step_are_free(free, out):
    """It had 20 entries, in which 16 pages were, and enters a block of four more."""
    engine = engine_with(100, scheduler="vllm:preemption=swap")
    holding(engine, 1, 4)  # four pages, and something runs
    r = request(0, 40, tokens=41, computed=40)
    r.pool, r.blocks = 1, engine.pools[1].reserve(40, 40)[0]
    engine.state.swapped.append(r)
    engine.kv.pool.draw([0] * (96 - free), 96 - free)
    assert engine.context.swap_in_all() is out


@pytest.mark.parametrize(("free", "idle"), [(3, False), (4, True)])
def test_a_decode_is_ready_once_a_block_of_every_group_is_free(free, idle):
    engine = engine_with(50)
    holding(engine, 0, 40)
    engine.kv.pool.draw([0] * (engine.kv.num_free - free), engine.kv.num_free - free)
    if idle:
        with pytest.raises(InvariantBreach, match="'all' idle although a decoding request"):
            engine.auditor.check_work_conserving(Plan())
    else:
        engine.auditor.check_work_conserving(Plan())


@pytest.mark.parametrize(("free", "idle"), [(11, False), (12, True)])
def test_a_prompt_would_fit_beside_a_step_of_each_running_request(free, idle):
    """Eight tokens are two blocks of each group, eight pages; four for the one that runs."""
    engine = engine_with(50)
    r = holding(engine, 0, 40)
    r.in_flight = True
    engine.state.waiting.add(request(1, 8))
    engine.kv.pool.draw([0] * (engine.kv.num_free - free), engine.kv.num_free - free)
    if idle:
        with pytest.raises(InvariantBreach, match="a prompt is waiting and would fit"):
            engine.auditor.check_work_conserving(Plan())
    else:
        engine.auditor.check_work_conserving(Plan())


@pytest.mark.parametrize(
    ("prompt", "step", "free", "fits"),
    [(16, 64, 16, True), (16, 64, 15, False), (400, 4, 100 + 4 * 3, True), (400, 4, 111, False)],
)
def test_a_whole_prompt_needs_all_of_its_tokens_and_a_window_beside_a_step(
    prompt, step, free, fits
):
    kv = GroupedKV(free, SIZES)
    ctx = SimpleNamespace(kv=kv, limits=Limits(8, step, 1024), cached_tokens=lambda r: 0)
    assert fits_whole(ctx, request(0, prompt)) is fits
    ctx.cached_tokens = lambda r: 4  # a page of all tokens less
    kv.pool.draw([0], 1)
    assert fits_whole(ctx, request(0, prompt)) is fits


def test_sglangs_room_is_in_the_pages_that_requests_will_grow_by():
    policy = make_scheduler("sglang")
    policy._ratio = 0.5
    full = request(0, 10, tokens=30, computed=29, max_tokens=36)  # 16 to come, a page in four
    short = request(1, 4, tokens=4, computed=3, max_tokens=10)  # four of ten fill its window
    kv = GroupedKV(100, SIZES)
    ctx = SimpleNamespace(kv=kv, decoding=[full, short], prefilling=[])
    assert policy._room(ctx, 8000) == 400 - 0.5 * (16 + 10 + 4 * 3)
    ctx.prefilling = [request(2, 30, computed=10, max_tokens=0)]
    assert policy._room(ctx, 8000) == 400 - 20 - 0.5 * (16 + 10 + 4 * 3)


@pytest.mark.parametrize(("free", "retracts"), [(8, False), (7, True)])
def test_sglang_retracts_where_the_next_blocks_of_all_groups_do_not_fit(free, retracts):
    policy = make_scheduler("sglang")
    asked = []
    policy._retract = asked.append
    decoding = [request(i, 4, tokens=5, computed=4) for i in range(2)]  # four pages each
    ctx = SimpleNamespace(
        kv=GroupedKV(free, SIZES), decoding=decoding, blocks_coming=0,
        schedule_decodes=lambda **more: 0, last_running=None,
    )  # fmt: skip
    policy._decode(ctx)
    assert asked == ([ctx] if retracts else [])


@pytest.mark.parametrize(("blocks", "due"), [(24, [0, 1]), (23, [0])])
def test_fastserve_leaves_each_due_one_a_block_of_every_group(blocks, due):
    """Seven tokens and one are two blocks of four pages; the second one leaves four for the first
    to grow into, and the first has its own eight.
    """
    jobs = [SimpleNamespace(request=request(i, 7), begun=False, level=0, place=i) for i in range(2)]
    ctx = SimpleNamespace(
        kv=GroupedKV(blocks - 4, SIZES), limits=LIMITS, num_running=0, decoding=[],
        prefilling=[], swapped=[],
    )  # fmt: skip
    made = FastserveTurn(
        ctx, [([], jobs)], dict(enumerate(jobs)), most_requests=8, most_tokens=64, leaving=set(),
        holding=False,
    )  # fmt: skip
    assert [job.request.index for job in made.due] == due


def test_duetserve_looks_ahead_as_far_as_blocks_of_all_groups_reach(monkeypatch):
    """Two decodes and 17 pages: two blocks of four pages for each, eight tokens."""
    policy = make_scheduler("duetserve")
    policy.belief = object()
    seen = []
    monkeypatch.setattr(
        "nexusbench.schedulers.duetserve.duets",
        lambda belief, decode, prefill, legal, bound, steps: seen.append(steps),
    )
    policy._fill = lambda ctx: None
    shapes = [BatchShape(2, 60), BatchShape(0, 0, ((8, 0),))]
    batches = [
        SimpleNamespace(partition=name, shape=shape)
        for name, shape in zip(("decode", "prefill"), shapes, strict=True)
    ]
    ctx = SimpleNamespace(
        savepoint=lambda: 0, schedule_decodes=lambda *rest, **more: 2, kv=GroupedKV(17, SIZES),
        plan=lambda: SimpleNamespace(batches=batches), preempted=False, splits=(), limits=LIMITS,
        decoding=[request(i, 30, tokens=31, computed=30) for i in range(2)],
    )  # fmt: skip
    assert not policy._split(ctx)
    assert seen == [range(1, 9)]


def test_copies_are_timed_by_the_bytes_of_a_page(tmp_path):
    trace = tmp_path / "t.jsonl"
    trace.write_text('{"timestamp": 0, "input_length": 10, "output_length": 2}\n')
    config = RunConfig(
        trace=str(trace), model="gpt-oss-120b", device="sim:h200", scheduler="vllm", kv_blocks=50
    )
    engine = engine_of(assemble(config))
    assert engine.config.block_bytes == 16 * 18 * 2 * 8 * 64 * 2


def test_a_batch_of_a_sweep_holds_what_its_requests_would_hold():
    """A decode after 40 tokens has ten blocks of all tokens, and three of its window."""
    pool = Pool(200, 4, LIMITS, SIZES)
    desk = BatchDesk(tiny_device(), pool)
    work = ShapedBatch(BatchShape(2, 80))
    assert pool.blocks_of(work) == 2 * (11 + 3 * 3)
    batch = desk.batch(work, "all")
    assert desk.kv.num_used == 2 * (11 + 3 * 3)
    assert all(desk.kv.covers(r) for r in batch.decodes)
    least = pool.enough_for([PointSetting("decode", BatchShape(1, 40), 4)])
    assert least.num_blocks == SIZES.of(40 + 16, 40)
