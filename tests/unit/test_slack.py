"""Prefill only with slack: no decode step is believed to break its bound because of prompts."""

from __future__ import annotations

import pytest

from nexusbench.core.batch import BatchShape
from nexusbench.core.errors import InputError
from nexusbench.core.state import Limits
from nexusbench.testing import offer, serve
from nexusbench.testing._harness import Setting, make_scheduler
from tests.sim.golden_runs import trace

MS = 1_000_000
WIDE = Setting(kv_blocks=4000, limits=Limits(8, 256, 1024))
LOAD = [offer(i, 90 * i, 40 if i % 3 else 300 + 40 * (i % 5), 15) for i in range(40)]


def watched(name, requests=LOAD, setting=WIDE):
    """Each batch with the time believed for it when it was planned, and for one token more of its
    last chunk; and whether a prompt was left that had tokens for it.
    """
    policy, seen = make_scheduler(name), []
    inner = policy.schedule

    def schedule(ctx):
        plan = inner(ctx)
        for batch in plan.batches:
            shape, longer = batch.shape, None
            if shape.chunks:
                (count, context), last = shape.chunks[-1], batch.chunks[-1]
                chunks = (*shape.chunks[:-1], (count + 1, context))
                more = last.context + last.num_tokens < last.request.num_tokens
                if more and shape.num_tokens < ctx.limits.max_num_batched_tokens:
                    longer = BatchShape(shape.num_decodes, shape.decode_context, chunks)
            predict, sms = policy.belief.predict, ctx.num_sms
            seen.append(
                (batch, predict(shape, sms), None if longer is None else predict(longer, sms))
            )
        return plan

    policy.schedule = schedule
    engine = serve(requests, policy, setting=setting)
    return engine, seen


@pytest.mark.parametrize("tbt_ms", [20, 35])
def test_prompts_fill_a_decode_step_up_to_its_bound_and_no_further(tbt_ms):
    _, seen = watched(f"slack:tbt_ms={tbt_ms}")
    mixed = [(time, longer) for batch, time, longer in seen if batch.decodes and batch.chunks]
    assert len(mixed) > 5
    assert all(time <= tbt_ms * MS for time, _ in mixed)
    cut = [longer for _, longer in mixed if longer is not None]
    assert len(cut) > 3
    assert all(longer > tbt_ms * MS for longer in cut)


def test_without_decodes_a_prompt_gets_the_whole_budget():
    _, seen = watched("slack:tbt_ms=1", [offer(i, 5000 * i, 500, 2) for i in range(3)])
    assert [b.shape.num_tokens for b, _, _ in seen if b.chunks] == 3 * [256, 244]


def test_without_slack_no_prompt_starts_beside_decodes_unless_it_must():
    requests = [offer(0, 0, 10, 30), offer(1, 60, 200, 2)]
    engine, seen = watched("slack:tbt_ms=1", requests)
    assert not any(batch.decodes and batch.chunks for batch, _, _ in seen)
    ends, log = {}, engine.log.tables
    for index, time in zip(*(log["ended"].columns[c] for c in ("request", "time")), strict=True):
        ends[index] = time
    admitted = log["admitted"].columns
    assert list(admitted["time"])[1] >= ends[0]
    _, seen = watched("slack:tbt_ms=1,least=7", requests)
    mixed = [b.shape.num_tokens - 1 for b, _, _ in seen if b.decodes and b.chunks]
    assert len(mixed) > 20
    assert set(mixed) == {7}


@pytest.mark.parametrize(
    ("option", "asked", "bound"), [("tbt_ms=20", 50.0, 20), ("least=0", 50.0, 50), ("", None, 100)]
)
def test_the_bound_is_the_option_else_the_users_else_100_ms(option, asked, bound):
    setting = Setting(kv_blocks=4000, limits=Limits(8, 1024, 1024, tbt_ms=asked))
    load = [offer(i, 90 * i, 900 if i % 4 else 40, 15) for i in range(16)]
    _, seen = watched(f"slack:{option}" if option else "slack", load, setting)
    cut = [longer for batch, _, longer in seen if batch.decodes and longer is not None]
    most = max(time for batch, time, _ in seen if batch.decodes and batch.chunks)
    assert 0.8 * bound * MS < most <= bound * MS
    assert all(longer > bound * MS for longer in cut)


def test_with_all_the_slack_in_the_world_it_is_vllm():
    engine, _ = watched("slack:tbt_ms=100000", trace(12, 40))
    other = serve(trace(12, 40), "vllm", setting=WIDE)
    for name in ("token", "step_done", "chunk"):
        assert engine.log.tables[name].columns == other.log.tables[name].columns


def test_bounds_that_are_none_are_refused():
    for option in ("tbt_ms=0", "least=-1"):
        with pytest.raises(InputError, match=option.partition("=")[0]):
            make_scheduler(f"slack:{option}")
