"""FlowPrefill: prefills give way between layers, when something has happened (arXiv 2602.16603)."""

from __future__ import annotations

from itertools import pairwise

import pytest

from nexusbench.core.errors import InputError
from nexusbench.core.state import Limits
from nexusbench.testing import offer, serve, tiny_gpu
from nexusbench.testing._harness import Setting, make_scheduler

MS = 1_000_000
WIDE = Setting(kv_blocks=4000, limits=Limits(8, 512, 1024), gpu=tiny_gpu(jitter=0.0))
LAYERS = 4  # of the model that the tests serve


def watched(name, requests, setting=WIDE):
    """Each launch of prompts: when, which requests, layers; and the times of choices."""
    policy, seen, choices = make_scheduler(name), [], []
    schedule, choose = policy.schedule, policy._choose

    def note(ctx):
        plan = schedule(ctx)
        seen.extend(
            (ctx.now, tuple(c.request.index for c in batch.chunks), batch.layers)
            for batch in plan.batches
            if batch.chunks
        )
        return plan

    def asked(ctx):
        choices.append(ctx.now)
        choose(ctx)

    policy.schedule, policy._choose = note, asked
    engine = serve(requests, policy, setting=setting)
    return engine, seen, choices


def order(seen):
    """Batches as they come, one entry for launches in a row."""
    found = []
    for _, requests, _ in seen:
        if not found or found[-1] != requests:
            found.append(requests)
    return found


def firsts(engine):
    """When each request got its first token, ms."""
    token, done = (engine.log.tables[name].columns for name in ("token", "step_done"))
    owners, found = iter(token["request"]), {}
    for time, count in zip(done["time"], done["tokens"], strict=True):
        for _ in range(count):
            found.setdefault(next(owners), time / MS)
    return found


LONG_AND_SHORT = [offer(0, 0, 500, 2), offer(1, 30, 20, 2)]


def test_a_prefill_gives_way_at_the_next_layer_and_goes_on_where_it_stopped():
    engine, seen, _ = watched("flowprefill:norm_ttft_ms=3,layers=1", LONG_AND_SHORT)
    assert order(seen) == [(0,), (1,), (0,)]
    arrival = 30 * MS
    gave_way = next(when for when, requests, _ in seen if requests == (1,))
    before = [when for when, requests, _ in seen if requests == (0,) and when < gave_way]
    assert before[-1] < arrival < gave_way
    # Every layer once: nothing is computed again, nothing is left out.
    for index in (0, 1):
        layers = [layers for _, requests, layers in seen if requests == (index,)]
        assert layers == [(i, i + 1) for i in range(LAYERS)]
    assert not len(engine.log.tables["preempted"])
    whole = firsts(watched("flowprefill:norm_ttft_ms=3,layers=4", LONG_AND_SHORT)[0])
    assert firsts(engine)[1] < whole[1] - 50


@pytest.mark.parametrize(
    ("layers", "sizes"), [(1, [1, 1, 1, 1]), (2, [2, 2]), (3, [3, 1]), (9, [4])]
)
def test_layers_between_two_chances_to_give_way(layers, sizes):
    _, seen, _ = watched(f"flowprefill:layers={layers}", [offer(0, 0, 100, 2)])
    assert [last - first for _, _, (first, last) in seen] == sizes


def test_several_prefills_can_stand_still_and_the_most_urgent_goes_on_first():
    """Each arrival is more urgent than the one before; recursively, as in the paper."""
    requests = [offer(0, 0, 500, 2), offer(1, 30, 200, 2), offer(2, 60, 20, 2)]
    setting = Setting(
        kv_blocks=4000, limits=Limits(8, 512, 1024), gpu=tiny_gpu(jitter=0.0), prefix_caching=False
    )
    _, seen, _ = watched("flowprefill:norm_ttft_ms=3,layers=1,batch_tokens=1", requests, setting)
    assert order(seen) == [(0,), (1,), (2,), (1,), (0,)]


def test_the_end_of_a_prefill_is_a_time_to_choose():
    """The third comes while the second is computed, less urgent than that, more than the first."""
    requests = [offer(0, 0, 500, 2), offer(1, 30, 20, 9), offer(2, 45, 100, 2)]
    _, seen, _ = watched("flowprefill:norm_ttft_ms=3,layers=1,batch_tokens=1", requests)
    assert order(seen) == [(0,), (1,), (2,), (0,)]


def test_it_chooses_when_a_prompt_arrives_or_ends_and_at_no_other_time():
    requests = [*LONG_AND_SHORT, offer(2, 500, 400, 1), offer(3, 520, 400, 1)]
    engine, seen, choices = watched("flowprefill:norm_ttft_ms=3,layers=1", requests)
    ends = {round(t * MS) for t in firsts(engine).values()}
    ends |= set(engine.log.tables["ended"].columns["time"])
    events = sorted(ends | {r.arrival_ns for r in requests})
    launches = [when for when, _, _ in seen]
    for when in choices:
        earlier = [at for at in launches if at < when]
        since = earlier[-1] if earlier else -1
        assert any(since < event <= when for event in events)
    assert len(set(choices)) < len(launches)
    assert len(launches) == LAYERS * len(requests)


def test_one_that_cannot_keep_its_deadline_gives_way_to_one_that_can():
    """Equal bounds: the first to arrive is first, as long as it is believed to be in time."""
    requests = [offer(0, 0, 500, 2), offer(1, 30, 20, 2)]
    assert order(watched("flowprefill:ttft_ms=5000,layers=1", requests)[1]) == [(0,), (1,)]
    assert order(watched("flowprefill:ttft_ms=110,layers=1", requests)[1]) == [(0,), (1,), (0,)]


def test_the_late_go_by_latest_deadline_until_they_are_too_late():
    """All are late from the start; the paper's order among them is the newest first."""
    requests = [offer(0, 0, 400, 1), *[offer(i, 10 * i, 300, 1) for i in range(1, 4)]]
    name = "flowprefill:ttft_ms=1,layers=4,batch_tokens=1"
    assert order(watched(f"{name},late_ms=100000", requests)[1]) == [(0,), (3,), (2,), (1,)]
    assert order(watched(f"{name},late_ms=1", requests)[1]) == [(0,), (1,), (2,), (3,)]


BURST = [offer(0, 0, 200, 1), *[offer(i, 5, 30, 1) for i in range(1, 5)]]


@pytest.mark.parametrize(
    ("options", "batches"),
    [
        ("batch_tokens=70", [(0,), (1, 2), (3, 4)]),
        ("batch_tokens=2048", [(0,), (1, 2, 3, 4)]),
        ("batch_tokens=1", [(0,), (1,), (2,), (3,), (4,)]),
    ],
)
def test_short_prompts_go_together(options, batches):
    _, seen, _ = watched(f"flowprefill:ttft_ms=60000,layers=4,{options}", BURST)
    assert order(seen) == batches


def test_no_prompt_joins_one_that_has_no_slack_for_it():
    """Alone it is in time; with the others it would not keep a tenth of its SLO as slack."""
    requests = [offer(i, 0, 60, 1) for i in range(4)]
    sizes = {}
    for ttft in (54, 60_000):
        _, seen, _ = watched(f"flowprefill:ttft_ms={ttft},layers=4", requests)
        sizes[ttft] = len(seen[0][1])
    assert sizes[60_000] == 4
    assert sizes[54] == 3


def test_decodes_have_a_stream_of_their_own():
    requests = [offer(0, 0, 8, 60), offer(1, 60, 500, 2)]
    engine, _, _ = watched("flowprefill", requests)
    rows, done = (engine.log.tables[name].columns for name in ("submitted", "step_done"))
    ends = dict(zip(done["step"], done["time"], strict=True))
    decode = [
        (start, ends[step])
        for start, step, count in zip(rows["time"], rows["step"], rows["decodes"], strict=True)
        if count
    ]
    for before, after in pairwise(decode):
        assert after[0] == before[1]


def test_another_order_gives_way_by_that_order():
    assert order(watched("flowprefill:order=spf,layers=1", LONG_AND_SHORT)[1]) == [(0,), (1,), (0,)]
    assert order(watched("flowprefill:order=fcfs,layers=1", LONG_AND_SHORT)[1]) == [(0,), (1,)]


def test_a_request_that_is_recomputed_goes_before_prompts_that_are_in_time():
    """It has had its first token: what it waits for is the next one."""
    requests = [offer(0, 0, 60, 40), offer(1, 0, 60, 40), *[offer(i, 570, 10, 1) for i in (2, 3)]]
    setting = Setting(kv_blocks=20, block_size=8, limits=Limits(8, 512, 1024), prefix_caching=False)
    engine, seen, _ = watched("flowprefill:ttft_ms=200,batch_tokens=1", requests, setting)
    preempted = engine.log.tables["preempted"].columns
    assert list(preempted["request"]) == [1]
    (when,) = preempted["time"]
    assert requests[2].arrival_ns - 20 * MS < when < requests[2].arrival_ns + 190 * MS
    later = [requests for time, requests, _ in seen if time > when]
    assert later[0] == (1,)


def test_options_that_mean_nothing_are_refused():
    for option in ("layers=0", "ttft_ms=0", "late_ms=-1", "order=edf", "batch_tokens=0"):
        with pytest.raises(InputError, match=option.partition("=")[0]):
            make_scheduler(f"flowprefill:{option}")
