"""open-infer's way: a static split that holds only while both phases run, prefill asynchronous."""

from __future__ import annotations

from itertools import pairwise
from types import SimpleNamespace

import pytest

from nexusbench.core.batch import Batch, BatchShape, Plan
from nexusbench.core.state import Limits
from nexusbench.testing import offer, serve, tiny_gpu
from nexusbench.testing._harness import Setting, make_scheduler

WIDE = Setting(kv_blocks=4000, limits=Limits(8, 512, 1024), gpu=tiny_gpu(jitter=0.0))
CHATS = [offer(i, 0, 8, 60) for i in range(3)]
# They arrive in the middle of decode steps.
LOAD = [*CHATS, *[offer(3 + i, 400.3 + 170.7 * i, 300 + 60 * (i % 3), 12) for i in range(8)]]
SMS = 16


def launches(engine):
    """(partition, start, end, SMs) of each launch, in order of starts."""
    rows, done = (engine.log.tables[name].columns for name in ("submitted", "step_done"))
    ends = dict(zip(done["step"], done["time"], strict=True))
    names = engine.scheduler.partitions
    return [
        (names[code], start, ends[step], sms)
        for step, start, code, sms in zip(
            rows["step"], rows["time"], rows["partition"], rows["sms"], strict=True
        )
    ]


def of(rows, partition):
    return [row for row in rows if row[0] == partition]


def inside_a_step(rows):
    """Prefills that begin in the middle of a decode step."""
    steps = of(rows, "decode")
    return [p for p in of(rows, "prefill") if any(s[1] < p[1] < s[2] for s in steps)]


def most_claimed(rows):
    """The most SMs that launches claim at one time."""
    return max(sum(r[3] for r in rows if r[1] <= at < r[2]) for _, at, _, _ in rows)


@pytest.fixture(scope="module")
def rows():
    return launches(serve(LOAD, "openinfer", setting=WIDE))


def test_a_prompt_waits_for_the_end_of_the_decode_step(rows):
    assert len(of(rows, "prefill")) > 5
    assert not inside_a_step(rows)
    assert inside_a_step(launches(serve(LOAD, "semi-pd", "fixed:prefill=80", setting=WIDE)))


def test_no_two_launches_ever_share_an_sm(rows):
    assert most_claimed(rows) == SMS
    assert most_claimed(launches(serve(LOAD, "semi-pd", "fixed:prefill=80", setting=WIDE))) > SMS


def test_a_phase_that_is_alone_has_all_sms_and_both_have_the_static_split(rows):
    for kind, other in (("prefill", "decode"), ("decode", "prefill")):
        for _, start, _, sms in of(rows, kind):
            beside = any(r[1] <= start < r[2] for r in of(rows, other))
            assert sms == ({"prefill": 12, "decode": 4}[kind] if beside else SMS)
    assert {row[3] for row in of(rows, "decode")} == {4, SMS}


def test_decode_does_not_wait_for_a_prefill(rows):
    steps = of(rows, "decode")
    for before, after in pairwise(steps):
        assert after[1] == before[2]  # one is launched the moment the one before has ended
    long = max(of(rows, "prefill"), key=lambda row: row[2] - row[1])
    assert len([s for s in steps if long[1] <= s[1] < long[2]]) > 2


def test_a_prefill_goes_on_beside_later_steps_and_the_next_one_waits_for_its_end(rows):
    for before, after in pairwise(of(rows, "prefill")):
        assert after[1] >= before[2]


@pytest.mark.parametrize("most", [1, 2])
def test_a_prefill_batch_has_no_more_prompts_than_asked(most):
    requests = [offer(0, 0, 600, 2), *[offer(i, 0, 20, 2) for i in range(1, 7)]]
    log = serve(requests, f"openinfer:most_prompts={most}", setting=WIDE).log
    assert max(log.tables["submitted"].columns["chunks"]) == most


def test_no_prefill_is_queued_behind_one_in_flight():
    """Where a device would queue two."""
    policy = make_scheduler("openinfer")
    policy._running.add("prefill")
    asked: list[str] = []

    def decodes(partition, *, victim):
        asked.append(partition)

    ctx = SimpleNamespace(schedule_decodes=decodes, last_running=None, plan=Plan)
    assert policy.schedule(ctx) == Plan()  # the context has nothing to schedule a prompt with
    assert asked == ["decode"]
    policy.completed(Batch("prefill", [], [], BatchShape(0, 0)), 0)
    with pytest.raises(AttributeError, match="prefilling"):
        policy.schedule(ctx)
