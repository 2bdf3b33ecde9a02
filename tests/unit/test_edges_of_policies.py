"""Schedulers and partitioners at their edges: the last token, the smallest step, a full pool."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from nexusbench.core.batch import Plan
from nexusbench.core.errors import InvariantBreach
from nexusbench.core.state import Limits
from nexusbench.engine.invariants import Auditor
from nexusbench.kv.manager import KVCacheManager
from nexusbench.partitioners._latency import LatencyWindow
from nexusbench.partitioners.adrenaline import AdrenalinePartitioner, AdrenalinePartitionerOptions
from nexusbench.testing import offer, serve, tiny_device, tiny_gpu
from nexusbench.testing._harness import Setting, build, make_scheduler


def rows(engine, table):
    columns = engine.log.tables[table].columns
    names = list(columns)
    return [dict(zip(names, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def test_fastserve_gives_its_last_token_to_the_next_prompt():
    """A budget of 64: the first prompt takes 63, the second begins with what is left."""
    engine = serve([offer(0, 0, 63, 3), offer(1, 0, 20, 3)], "fastserve")
    first = [row for row in rows(engine, "chunk") if row["step"] == 0]
    assert [(row["request"], row["tokens"]) for row in first] == [(0, 63), (1, 1)]


def test_a_window_with_one_prompt_knows_no_load():
    seen = LatencyWindow(100).close(90.0, 0)
    assert (seen.prompt_ns, seen.load, seen.ttft, seen.tpot) == (0.0, 0.0, None, None)


@pytest.mark.parametrize(("delta", "sms"), [(0, 2), (12, 2), (25, 4), (50, 8)])
def test_adrenalines_hysteresis_is_a_percentage_of_one_gpu(delta, sms):
    made = AdrenalinePartitioner(AdrenalinePartitionerOptions(delta=delta))
    made.initial(tiny_device(count=2).spec)
    assert made._least_change == sms


# -- I7 --------------------------------------------------------------------------------------------


def auditor(kv_blocks, *requests, limits=None):
    """The checks of an engine in which the requests wait and nothing runs."""
    setting = Setting(kv_blocks=kv_blocks, limits=limits or Limits(8, 64, 1024))
    engine = build(requests, make_scheduler("vllm"), setting=setting)
    for request in engine.requests:
        request.num_tokens = request.num_prompt_tokens
        engine.state.waiting.add(request)
    return engine, engine.auditor


def test_a_prompt_that_fits_to_the_last_block_would_fit():
    for kv_blocks, prompt, fits in ((10, 40, True), (9, 40, False), (10, 41, False)):
        _, checks = auditor(kv_blocks, offer(0, 0, prompt, 1))
        if fits:
            with pytest.raises(InvariantBreach, match=r"I7.* a prompt is waiting and would fit"):
                checks.check_work_conserving(Plan())
        else:
            checks.check_work_conserving(Plan())


def test_a_block_is_left_to_each_running_request():
    engine, checks = auditor(10, offer(0, 0, 36, 1))
    running = offer(7, 0, 4, 9)
    running.num_tokens, running.num_computed_tokens = 5, 4
    running.in_flight = True
    running.blocks = []
    engine.state.decoding.append(running)
    with pytest.raises(InvariantBreach, match="would fit"):
        checks.check_work_conserving(Plan())  # 10 blocks, less one: 36 tokens
    engine.state.waiting.head.num_tokens = 37
    checks.check_work_conserving(Plan())


def test_no_seat_no_breach():
    limits = Limits(1, 64, 1024)
    engine, checks = auditor(10, offer(0, 0, 8, 1), limits=limits)
    running = offer(7, 0, 4, 9)
    running.in_flight = True
    engine.state.decoding.append(running)
    checks.check_work_conserving(Plan())
    engine.state.limits = Limits(2, 64, 1024)
    with pytest.raises(InvariantBreach, match="would fit"):
        checks.check_work_conserving(Plan())


def test_a_started_prompt_comes_before_those_that_wait():
    """It needs all of its remaining blocks; while it lacks one, the others may wait behind it."""
    engine, checks = auditor(10, offer(0, 0, 4, 1))
    started = offer(7, 0, 41, 9)
    started.blocks = engine.kv.pool.take(2)[0]
    engine.state.prefilling.append(started)
    started.num_tokens = 40  # as many as 2 blocks of its own and 8 free ones hold
    with pytest.raises(InvariantBreach, match="would fit"):
        checks.check_work_conserving(Plan())
    started.num_tokens = 41
    checks.check_work_conserving(Plan())
    started.in_flight = True  # it is being computed: the head of the queue is next
    with pytest.raises(InvariantBreach, match="would fit"):
        checks.check_work_conserving(Plan())


def test_a_decoding_request_needs_a_free_block_of_its_own_gpu():
    engine, checks = auditor(10)
    ready = offer(0, 0, 4, 9)
    engine.state.decoding.append(ready)
    with pytest.raises(InvariantBreach, match="a decoding request is ready"):
        checks.check_work_conserving(Plan())
    engine.kv.pool.take(10)
    checks.check_work_conserving(Plan())


def test_a_plan_that_preempts_may_leave_a_partition_idle():
    _engine, checks = auditor(10, offer(0, 0, 40, 1))
    checks.check_work_conserving(Plan(preemptions=[object()]))
    assert isinstance(checks, Auditor)


# -- the pool --------------------------------------------------------------------------------------


def test_a_prefix_id_names_512_tokens_unless_said_otherwise():
    kv = KVCacheManager(200, 16)
    first = offer(0, 0, 1100, 1, prefix_ids=(5, 6, 7))
    second = offer(1, 0, 1100, 1, prefix_ids=(5, 9, 7))
    first.num_tokens = second.num_tokens = first.num_computed_tokens = 1100
    assert kv.allocate(first, 1100, []) is not None
    kv.publish(first)
    assert len(kv.find_prefix(second)) * 16 == 512
    assert kv.count_cached([second]) == [512]


def test_swapped_requests_come_back_while_a_prompt_is_computed():
    """semi-PD's prompts in flight hold nobody back: there is nothing to do for them."""
    setting = Setting(kv_blocks=44, gpu=replace(tiny_gpu(), host_gbps=25.0))
    requests = [offer(i, 3 * i, 40, 40) for i in range(6)]
    engine = serve(requests, "semi-pd:preemption=swap", "whole", setting=setting)
    assert len(rows(engine, "moved")) >= 2
    assert all(r.num_tokens == r.stop_len for r in engine.requests)
