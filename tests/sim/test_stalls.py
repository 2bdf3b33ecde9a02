"""Where requests once waited for each other for ever, or changed places for ever."""

from __future__ import annotations

import json

import pytest

import nexusbench
from nexusbench.core.batch import Plan
from nexusbench.core.errors import EngineStalled, InputError
from nexusbench.core.state import Limits
from nexusbench.schedulers.base import Scheduler, schedulers
from nexusbench.testing import offer, serve
from nexusbench.testing._harness import Setting, build, make_scheduler

# Two prompts half done, after one of them came back from the host, and no request decodes:
# (prompt, output, arrival in ms) and the flags of the run.
STALLED = {
    "muxwise": (
        [(200, 30, 0), (582, 26, 50), (577, 12, 50)],
        {"kv_blocks": 38, "max_num_batched_tokens": 64},
    ),
    "pdmux": (
        [(16, 1, 50), (577, 26, 100), (600, 1, 105), (577, 12, 105), (600, 12, 155)],
        {"kv_blocks": 39, "max_num_batched_tokens": 17},
    ),
    "semi-pd": (
        [(17, 1, 5), (577, 30, 55), (200, 80, 105), (577, 12, 155), (100, 26, 155)],
        {"kv_blocks": 38, "max_num_batched_tokens": 64, "max_num_seqs": 3},
    ),
    "adrenaline": (
        [(16, 80, 0), (100, 80, 0), (600, 26, 5), (200, 1, 10), (17, 1, 10), (17, 30, 15)],
        {"kv_blocks": 40, "max_num_batched_tokens": 64},
    ),
}


@pytest.mark.parametrize("name", STALLED)
def test_half_done_prompts_do_not_wait_for_each_others_blocks(name, tmp_path):
    requests, flags = STALLED[name]
    path = tmp_path / "trace.jsonl"
    path.write_text(
        "".join(
            json.dumps({"timestamp": at, "input_length": prompt, "output_length": output}) + "\n"
            for prompt, output, at in requests
        ),
        encoding="utf-8",
    )
    config = nexusbench.RunConfig(
        trace=str(path), device="sim:l20", scheduler=f"{name}:preemption=swap", **flags
    )
    metrics = nexusbench.run(config).summary.metrics
    assert metrics["finished"].value == len(requests)


@pytest.mark.slow
@pytest.mark.parametrize("preemption", ["swap", "recompute"])
@pytest.mark.parametrize("name", schedulers.names())
def test_crowds_in_a_pool_for_one_always_end(name, preemption):
    """Long prompts with long answers, a pool that holds one of them, small budgets, many seats."""
    for seed in range(12):
        sizes = [(150 + 37 * ((seed + i) % 5), 12 + 34 * ((seed + 3 * i) % 3)) for i in range(7)]
        requests = [
            offer(i, 20 * i * (seed % 3), *size, max_tokens=80) for i, size in enumerate(sizes)
        ]
        blocks = max(-(-(prompt + output) // 8) for prompt, output in sizes) + seed % 2
        setting = Setting(
            kv_blocks=blocks,
            block_size=8,
            prefix_caching=bool(seed % 4),
            limits=Limits(8, (17, 64)[seed % 2], 1024),
        )
        engine = serve(requests, f"{name}:preemption={preemption}", setting=setting)
        assert all(r.num_tokens == r.stop_len for r in engine.requests)


class Standing(Scheduler):
    """Admits whatever fits, one chunk each, and lets prompts go on in order: two half-done ones in
    a pool for one; ``proceed`` or not.
    """

    work_conserving = False
    goes_on = True

    def schedule(self, ctx):
        from nexusbench.planning.prompts import proceed

        ctx.schedule_decodes(victim=ctx.last_running)
        started = list(ctx.prefilling)
        for request in started:
            if request.in_flight or request not in ctx.prefilling:
                continue
            take = proceed if self.goes_on else type(ctx).try_schedule
            if not take(ctx, request, 16):
                break
        if not ctx.preempted:
            for request in list(ctx.waiting):
                ctx.try_schedule(request, 16)
        return ctx.plan()


def test_proceeding_takes_the_last_ones_blocks_where_the_engine_would_stand_still():
    requests = [offer(i, 0, 64, 3) for i in range(2)]
    setting = Setting(kv_blocks=18, prefix_caching=False)
    engine = serve(requests, Standing, setting=setting)
    assert [r.num_preemptions for r in engine.requests] == [0, 1]
    assert all(r.num_tokens == r.stop_len for r in engine.requests)

    class Waiting(Standing):
        goes_on = False

    with pytest.raises(EngineStalled, match="0 decoding, 2 prefilling, 0 waiting"):
        serve(requests, Waiting, setting=setting)


def test_proceeding_waits_while_a_request_decodes():
    """It ends by itself and frees its blocks; no half-done prompt loses its own for that."""
    requests = [offer(0, 0, 8, 8), offer(1, 0, 64, 3), offer(2, 0, 64, 3)]
    setting = Setting(kv_blocks=6, block_size=16, prefix_caching=False)
    engine = serve(requests, Standing, setting=setting)
    ended = engine.log.tables["ended"].columns
    first = ended["time"][list(ended["request"]).index(0)]
    assert all(time >= first for time in engine.log.tables["preempted"].columns["time"])


def test_a_prompt_waits_for_blocks_on_their_way_out_instead_of_leaving_too():
    """Two half-done prompts, each in the other's way, once changed places for ever: one went out
    while the other still was, and both came back at once.
    """
    requests = [
        offer(0, 0, 16, 1), offer(1, 0, 91, 80, max_tokens=80), offer(2, 0, 197, 1),
        offer(3, 0, 17, 1), offer(4, 0, 199, 26, after=3), offer(5, 14.9, 216, 12),
        offer(6, 15.7, 16, 12), offer(7, 15.7, 180, 12, after=6),
    ]  # fmt: skip
    setting = Setting(
        kv_blocks=29, block_size=8, prefix_caching=False, limits=Limits(8, 64, 1024),
        host_blocks=1450,
    )  # fmt: skip
    for scheduler in ("vllm", "sarathi", "duetserve:tbt_ms=5"):
        name = f"{scheduler}{',' if ':' in scheduler else ':'}preemption=swap,order=spf"
        for seed in range(3):
            engine = serve(requests, name, setting=setting, seed=seed)
            assert all(r.num_tokens == r.stop_len for r in engine.requests)


def test_a_promoted_request_that_lost_its_kv_keeps_its_quantum():
    """Else each would begin anew after every promotion, with no token to show for it."""
    requests = [offer(i, 0, prompt, 5) for i, prompt in enumerate((141, 242, 201, 253))]
    setting = Setting(
        kv_blocks=130, block_size=2, host_blocks=1, prefix_caching=False,
        limits=Limits(16, 1, 1024), audit_every=1 << 40,
    )  # fmt: skip

    def watch(engine):
        assert engine.num_steps < 20_000

    engine = serve(requests, "fastserve:promoted=reset", setting=setting, observer=watch)
    assert all(r.num_tokens == r.stop_len for r in engine.requests)


def test_a_policy_that_preempts_for_ever_is_stopped():
    class Restless(Scheduler):
        """Starts the first of the queue and throws it out again before it has a token."""

        work_conserving = False

        def schedule(self, ctx):
            for request in list(ctx.prefilling):
                ctx.preempt(request)
            head = ctx.waiting.head
            if head is not None and not ctx.preempted:
                ctx.try_schedule(head, 8)
            return ctx.plan()

    with pytest.raises(EngineStalled, match=r"^I10: .* preempted and moved requests 1,001 times"):
        serve([offer(0, 0, 60, 3)], Restless, setting=Setting(prefix_caching=False))


def test_a_policy_that_copies_for_ever_is_stopped():
    class Shuttle(Scheduler):
        """Moves a request from one GPU to the other and back, and never decodes it."""

        partitions = ("prefill", "decode")
        num_gpus = 2
        work_conserving = False

        def schedule(self, ctx):
            for request in ctx.decoding:
                if not request.in_flight:
                    ctx.transfer(request, "decode" if ctx.is_at(request, "prefill") else "prefill")
            if ctx.waiting.head is not None:
                ctx.try_schedule(ctx.waiting.head, partition="prefill")
            return ctx.plan()

    with pytest.raises(EngineStalled, match=r"^I10: .* preempted and moved requests 1,001 times"):
        serve([offer(0, 0, 60, 3)], Shuttle)


@pytest.mark.parametrize(("seats", "most"), [(4, 1000), (499, 1000), (800, 1600)])
def test_moves_without_a_token_are_bounded_by_the_seats(seats, most):
    """All of many requests may be taken once, and come back, before one of them gets a token."""
    setting = Setting(limits=Limits(seats, 64, 1024))
    engine = build([], make_scheduler("vllm"), setting=setting)
    taken, copied = Plan(preemptions=[None] * (most // 2)), Plan(transfers=[None] * (most // 2))
    for _ in range(2):
        engine._count_moves(taken)
        engine._count_moves(copied)
        engine.executor.num_tokens += 1  # and they are counted anew
    engine._count_moves(taken)
    engine._count_moves(copied)
    with pytest.raises(EngineStalled, match=f"moved requests {most + 1:,} times since"):
        engine._count_moves(Plan(transfers=[None]))


def test_offloading_by_a_ratio_needs_sms_for_it():
    requests = [offer(i, 5 * i, 40, 12) for i in range(4)]
    with pytest.raises(InputError, match=r"field 'ratio': .*Use --partitioner adrenaline"):
        serve(requests, "adrenaline:ratio=0.5", "whole")
    engine = serve(requests, "adrenaline:ratio=0", "whole")
    assert all(r.num_tokens == r.stop_len for r in engine.requests)
