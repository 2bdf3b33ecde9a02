"""Layer-wise prefill beside decode: what pdmux and MuxWise launch, and how long it may take."""

from __future__ import annotations

from itertools import pairwise

import pytest

from nexusbench.core.state import Limits
from nexusbench.testing import offer, serve, tiny_gpu
from nexusbench.testing._harness import Setting, make_scheduler

LONG = [offer(0, 0, 8, 60), offer(1, 0, 8, 60)]
PROMPTS = [offer(2 + i, 60 + 100 * i, 500, 2) for i in range(3)]
SETTING = Setting(limits=Limits(8, 512, 1024), gpu=tiny_gpu(jitter=0.0))
MS = 1_000_000


def launches(engine):
    """(partition, start, end, SMs) of each launch."""
    submitted, done = (engine.log.tables[name].columns for name in ("submitted", "step_done"))
    ends = dict(zip(done["step"], done["time"], strict=True))
    partitions = engine.scheduler.partitions
    return [
        (partitions[code], start, ends[step], sms)
        for step, start, code, sms in zip(
            submitted["step"], submitted["time"], submitted["partition"], submitted["sms"],
            strict=True,
        )
    ]  # fmt: skip


def run(policy, partitioner=None, requests=None, setting=SETTING):
    shapes = []
    scheduler = make_scheduler(policy)
    schedule = scheduler.schedule

    def watched(ctx):
        plan = schedule(ctx)
        shapes.extend((ctx.now, batch.shape) for batch in plan.batches if batch.chunks)
        return plan

    scheduler.schedule = watched
    engine = serve(requests or [*LONG, *PROMPTS], scheduler, partitioner, setting=setting)
    return engine, shapes


@pytest.mark.parametrize(("budget", "layers"), [(100_000, 4), (1500, 3), (1000, 2), (1, 1)])
def test_pdmux_computes_budget_over_new_tokens_layers_per_launch(budget, layers):
    _, shapes = run(f"pdmux:split_forward_token_budget={budget}", requests=PROMPTS)
    pieces = [shape.layers[1] - shape.layers[0] for _, shape in shapes if shape.layers[1] < 4]
    assert all(shape.num_tokens == 500 for _, shape in shapes)
    assert set(pieces) <= {layers}
    assert len(shapes) == 3 * -(-4 // layers)


def beside_decodes(engine, partition="prefill"):
    """Launches of a partition that began while the other one was computing."""
    rows = launches(engine)
    others = [(start, end) for name, start, end, _ in rows if name != partition]
    return [
        row for row in rows
        if row[0] == partition and any(start <= row[1] < end for start, end in others)
    ]  # fmt: skip


def test_muxwise_covers_about_one_decode_step_with_each_launch_of_prefill():
    """On the even split a prompt of 500 takes many decode steps; a layer of it takes several."""
    requests = [offer(i, 0, 500, 60) for i in range(6)] + [offer(9, 900, 200, 2)]
    requests = [offer(i, r.arrival_ns / MS, r.num_prompt_tokens, r.stop_len - r.num_prompt_tokens)
                for i, r in enumerate(requests)]  # fmt: skip
    engine, shapes = run("muxwise", "fixed:prefill=80", requests)
    whole, _ = run("semi-pd", "fixed:prefill=80", requests)
    pieces = [end - start for _, start, end, _ in beside_decodes(engine)]
    chunk = max(end - start for _, start, end, _ in beside_decodes(whole))
    steps = [end - start for _, start, end, _ in beside_decodes(engine, "decode")]
    step, layer = max(steps), chunk / 4
    assert any(shape.layers == (0, 1) for _, shape in shapes)
    assert len(pieces) > 2
    # At least a step, at most the layer more by which the division is rounded up.
    assert all(piece < step + 1.2 * layer for piece in pieces)
    assert max(pieces) < 0.8 * chunk


@pytest.mark.parametrize("policy", ["pdmux:split_forward_token_budget=600", "muxwise"])
def test_a_decode_step_is_launched_the_moment_the_last_one_ended(policy):
    engine, _ = run(policy)
    decodes = [row for row in launches(engine) if row[0] == "decode"]
    assert len(decodes) > 20
    for before, after in pairwise(decodes):
        assert after[1] == before[2]


@pytest.mark.parametrize("policy", ["pdmux:split_forward_token_budget=600", "muxwise"])
def test_a_decode_shares_its_sms_with_no_more_than_one_piece(policy):
    """A lone prefill has all SMs; a decode that joins must get its own after that piece."""
    engine, _ = run(policy)
    rows = launches(engine)
    shared = [
        (decode[1], piece[1])
        for decode in rows if decode[0] == "decode"
        for piece in rows if piece[0] == "prefill"
        and piece[1] < decode[2] and decode[1] < piece[2]
        and piece[3] + decode[3] > 16
    ]  # fmt: skip
    assert shared
    for decode in {start for start, _ in shared}:
        assert len([1 for start, _ in shared if start == decode]) == 1


def test_without_decodes_muxwise_computes_all_layers_at_once():
    _, shapes = run("muxwise", requests=[offer(i, 100 * i, 500, 1) for i in range(3)])
    assert {shape.layers for _, shape in shapes} == {(0, 4)}


def first_tokens(engine):
    """When each request got its first token."""
    token, done = (engine.log.tables[name].columns for name in ("token", "step_done"))
    owners, first = iter(token["request"]), {}
    for time, count in zip(done["time"], done["tokens"], strict=True):
        for _ in range(count):
            first.setdefault(next(owners), time)
    return first


def test_muxwise_lets_a_short_prompt_in_between_if_the_long_one_keeps_its_bound():
    requests = [*LONG, offer(2, 60, 500, 2), offer(3, 70, 8, 2), offer(4, 71, 480, 2)]
    never = first_tokens(run("muxwise", requests=requests)[0])
    often = first_tokens(run("muxwise:preempt=true,ttft_ms=5000", requests=requests)[0])
    tight = first_tokens(run("muxwise:preempt=true,ttft_ms=1", requests=requests)[0])
    assert never[2] < never[3]
    assert often[3] < often[2] < often[4]
    assert tight == never
