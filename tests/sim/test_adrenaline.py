"""Adrenaline as its paper has it: the bound, the two conditions, remote attention in hiding."""

from __future__ import annotations

import random
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from nexusbench.core.batch import Batch, BatchShape, Plan
from nexusbench.core.errors import InputError
from nexusbench.core.state import EngineState, Limits
from nexusbench.costs.roofline import Roofline
from nexusbench.kv.manager import KVCacheManager
from nexusbench.models.config import load_model
from nexusbench.partitioners.adrenaline import AdrenalinePartitioner as Colocation
from nexusbench.physics.gpus import load_gpu
from nexusbench.physics.launches import Physics
from nexusbench.physics.remote import SYNC_NS, remote_slowdown, split_launch
from nexusbench.schedulers._offloading import AttentionLoad, OffloadBound, bound, fine_now, safe
from nexusbench.schedulers.base import schedulers
from nexusbench.testing import offer, serve, tiny_device, tiny_gpu
from nexusbench.testing._harness import Setting, build, make_scheduler

L20, MODEL = load_gpu("l20"), load_model("llama-3.1-8b")


def physics():
    return Physics(L20, MODEL)


def away(shape, remote_sms, sms=92):
    batch = Batch("decode", [], [], shape, remote_sms=remote_sms)
    return split_launch(physics(), batch, sms, 0)


# -- the bound -------------------------------------------------------------------------------------


def test_the_bound_of_an_example_worked_by_hand():
    """50 of 60 GB; 0.6 of 2 TB/s against 0.9 of it; 130 decodes within the SLO of 240."""
    hbm, bandwidth = 50 / 60, 0.6 * 2.0 / (0.9 * 2.0)
    assert bound(hbm, bandwidth, 130, 240) == pytest.approx(2 / 3)
    assert bound(hbm, 1.0, 130, 240) == pytest.approx(50 / 60)
    assert bound(1.0, 1.0, 130, 240) == pytest.approx(110 / 130)
    assert bound(hbm, bandwidth, 240, 240) == 0.0  # decode is compute-bound already
    assert bound(hbm, bandwidth, 300, 240) == 0.0


def test_the_belief_gives_what_the_bound_is_made_of():
    belief = Roofline(gpu=L20, model=MODEL)
    found = OffloadBound(belief, 60e6)
    # Dense layers: 2 FLOPs against 2 bytes a weight, so peak FLOP/s over bandwidth.
    assert found.compute_bound(92) == pytest.approx(119.5e12 / 864e9, rel=0.02)
    within = found.within_slo(2000, 92)
    assert belief.predict(BatchShape(int(within), int(within) * 2000), 92) <= 60e6
    more = int(within) + 1
    assert belief.predict(BatchShape(more, more * 2000), 92) > 60e6
    assert found.bandwidth(2000, 92, 92) == 1.0
    assert 0.1 < found.bandwidth(2000, 92, 8) < found.bandwidth(2000, 92, 16) < 1.0
    ample = 1_000_000
    assert found.of(2000, 92, 16, 0.8, ample) == pytest.approx(
        min(0.8, found.bandwidth(2000, 92, 16), found.compute_bound(92) / within - 1), rel=0.02
    )
    assert found.of(4000, 92, 0, 0.8, ample) == 0.0  # no SMs there


def test_short_memory_leaves_room_for_others_attention():
    """With a loose SLO only memory bounds the batch, and then offloading does pay."""
    belief = Roofline(gpu=L20, model=MODEL)
    assert OffloadBound(belief, 1e9).of(500, 92, 30, 0.8, 10_000_000) == 0.0
    assert OffloadBound(belief, 1e9).of(500, 92, 30, 0.8, 20_000) == pytest.approx(0.8)


# -- the conditions --------------------------------------------------------------------------------


def requests(lengths):
    made = []
    for prompt, generated, most in lengths:
        request = offer(len(made), 0, prompt, 1, max_tokens=most)
        request.num_tokens = prompt + min(generated, most)
        made.append(request)
    return made


def load(members):
    total = AttentionLoad()
    for request in members:
        total.add(request)
    return total


LENGTHS = st.tuples(st.integers(1, 500), st.integers(1, 200), st.integers(1, 200))


@given(
    st.lists(LENGTHS, min_size=1, max_size=12), st.lists(LENGTHS, max_size=12), LENGTHS,
    st.sampled_from([0.3, 0.67, 1.0]), st.integers(0, 300),
)  # fmt: skip
def test_what_c1_admits_stays_within_the_bound(local, offloaded, one, ratio, steps):
    """... for as long as the local set stays, however far each of them gets."""
    here, there, (new,) = requests(local), requests(offloaded), requests([one])
    if not safe(load(there), new, load(here), ratio):
        return
    for request in (*here, *there, new):
        most = request.num_prompt_tokens + request.max_tokens
        request.num_tokens = max(request.num_tokens, min(request.num_tokens + steps, most))
    assert load([*there, new]).tokens <= ratio * load(here).tokens


def test_c2_looks_at_tokens_and_at_requests():
    local = AttentionLoad(requests=10, tokens=1000, worst=9000)
    assert fine_now(AttentionLoad(5, 500, 9000), local, 0.6)
    assert not fine_now(AttentionLoad(5, 700, 700), local, 0.6)  # too many tokens
    assert not fine_now(AttentionLoad(7, 500, 500), local, 0.6)  # too many requests
    assert not fine_now(AttentionLoad(), AttentionLoad(), 0.6)  # nothing to hide behind


@pytest.mark.parametrize("options", ["ratio=-1", "prefill_kv=1", "prefill_kv=-0.1"])
def test_impossible_options_are_refused(options):
    with pytest.raises(InputError, match=rf"^field '{options.partition('=')[0]}': scheduler 'adr"):
        schedulers.create(f"adrenaline:{options}")


# -- remote attention in the simulator -------------------------------------------------------------


def test_a_launch_takes_the_longer_of_both_attentions():
    shape = BatchShape(100, 200_000, remote=(40, 60_000))
    load, there = away(shape, 46)
    alone = physics()
    kept = alone.attention(BatchShape(60, 140_000), 92).time
    sent = alone.attention(BatchShape(40, 60_000), 46).time
    ((local, _, wire),) = there.kinds
    assert local == kept
    assert sent + wire < kept  # in hiding
    dense = alone.load(shape, 92)
    assert load.solo == pytest.approx(dense.solo - dense.attention.time + kept + 32 * SYNC_NS)
    assert load.solo < dense.solo  # 60,000 keys fewer to read here
    few, there = away(shape, 4)
    assert there.attention.time + wire > kept
    assert few.solo == pytest.approx(load.solo - kept + there.attention.time + wire)


def test_each_layer_pays_for_its_two_messages():
    shape = BatchShape(64, 64_000, remote=(64, 64_000))  # nothing stays: nothing to hide behind
    load, there = away(shape, 46)
    sent = 64 * (2 * 32 + 2 * 8) * 128 * 2
    assert there.kinds[0][2] == pytest.approx(32 * (sent / 25.0 + 2 * 10_000))
    slow = replace(L20, link_latency_us=510.0)
    batch = Batch("decode", [], [], shape, remote_sms=46)
    far, _ = split_launch(Physics(slow, MODEL), batch, 92, 0)
    assert far.solo - load.solo == pytest.approx(32 * 2 * 500_000)  # ruinous: 32 ms


def test_prefill_and_remote_attention_slow_each_other_down():
    prefill = physics().load(BatchShape(0, 0, ((2048, 6000),)), 60)
    _, there = away(BatchShape(100, 200_000, remote=(40, 60_000)), 32)
    assert remote_slowdown(physics(), there, []) == 1.0
    assert remote_slowdown(physics(), there, [prefill]) > 1.0


def timed(launches, count=2):
    """Ends by partition of (partition, shape, SMs, remote SMs) that start together on a pair."""
    from nexusbench.devices.base import DeviceOptions
    from nexusbench.devices.sim import Sim

    quiet = replace(L20, sim=replace(L20.sim, jitter=0.0))
    device = Sim(quiet, MODEL, DeviceOptions(256, 2048), count=count)
    for step, (partition, shape, sms, remote) in enumerate(launches):
        device.submit(step, Batch(partition, [], [], shape, remote_sms=remote), sms)
    ends = {}
    while outputs := device.wait(None):
        for output in outputs:
            ends[launches[output.step][0]] = output.end_ns
    return ends


def test_only_what_runs_on_the_prefill_gpu_disturbs_prefill():
    prefill = ("prefill", BatchShape(0, 0, ((1024, 4000),)), 60, 0)
    alone = timed([prefill])["prefill"]
    local = timed([prefill, ("decode", BatchShape(100, 200_000), 92, 0)])
    assert local["prefill"] == alone  # another GPU
    sent = BatchShape(100, 200_000, remote=(50, 100_000))
    both = timed([prefill, ("decode", sent, 92, 32)])
    assert both["prefill"] > alone
    # ... and where it is not hidden, the step feels the prefill beside its attention.
    most = BatchShape(100, 200_000, remote=(90, 180_000))
    assert (
        timed([prefill, ("decode", most, 92, 16)])["decode"]
        > (timed([("decode", most, 92, 16)])["decode"])
    )


def steps_at(ratio, shares):
    """The remote parts of launches with so much offloaded, on those shares of the prefill GPU."""
    chance = random.Random(7)
    for _ in range(60):
        count, context = chance.randint(40, 100), chance.randint(1500, 4000)
        there = int(ratio * count)
        every = count + there
        shape = BatchShape(every, every * context, remote=(there, there * context))
        yield away(shape, round(chance.choice(shares) * 92 / 2) * 2)[1]


def test_within_the_bound_remote_attention_never_exceeds_local():
    """With the memory's bound of 0.8, wire and all; from 60 % of the SMs on, where the simulated
    attention is bound by bandwidth. Beyond the bound it does.
    """
    for sent in steps_at(0.8, (0.6, 0.7, 0.8)):
        assert sum(sent.kinds[0][1:]) <= sent.kinds[0][0]
    for sent in steps_at(1.2, (0.6, 0.7, 0.8)):
        assert sent.attention.time > sent.kinds[0][0]


def test_few_sms_break_what_the_bound_promises():
    """A fifth of the SMs attains less than the belief's roofline says: the bound is only as good.

    So it is the bound by the true times of attention that holds, not that of any belief.
    """

    class Truth(Roofline):
        def predict(self, shape, sms, neighbour=None):
            return physics().load(shape, sms).solo

    believed = OffloadBound(Roofline(gpu=L20, model=MODEL), 60e6).bandwidth(2500, 92, 18)
    true = OffloadBound(Truth(gpu=L20, model=MODEL), 60e6).bandwidth(2500, 92, 18)
    assert true < believed
    assert all(s.attention.time > s.kinds[0][0] for s in steps_at(believed, (0.2,)))
    assert all(s.attention.time <= 1.1 * s.kinds[0][0] for s in steps_at(true, (0.2,)))


# -- whole runs ------------------------------------------------------------------------------------


def rows(engine, table):
    columns = engine.log.tables[table].columns
    names = list(columns)
    return [dict(zip(names, row, strict=True)) for row in zip(*columns.values(), strict=True)]


ROOMY = Setting(kv_blocks=400, limits=Limits(64, 256, 1024))


def crowd(count=24):
    return [offer(i, 3 * i, 60 + i % 5, 30) for i in range(count)]


def test_offloaded_requests_never_cross_the_link():
    shapes = []

    def watch(engine):
        for running in engine.state.in_flight["decode"]:
            if running.batch.shape.remote is not None:
                shapes.append(running.batch.shape.remote)
                here = [r for r in running.batch.decodes if r.pool == 0]
                assert len(here) == running.batch.shape.remote[0]

    engine = serve(crowd(), "adrenaline", setting=ROOMY, observer=watch)
    moved = {row["request"] for row in rows(engine, "moved")}
    assert shapes
    assert 0 < len(moved) < 24
    assert all(r.num_tokens == r.stop_len for r in engine.requests)
    assert all(r.pool == (1 if r.index in moved else 0) for r in engine.requests)


def test_a_ratio_of_nothing_is_vllm_pd():
    one = serve(crowd(), "adrenaline:ratio=0", "whole", setting=ROOMY)
    two = serve(crowd(), "vllm-pd", "whole", setting=ROOMY)
    assert one.log.digest() == two.log.digest()


def test_a_higher_ratio_offloads_more():
    kept = [
        len(rows(serve(crowd(), f"adrenaline:ratio={ratio}", setting=ROOMY), "moved"))
        for ratio in (0, 0.3, 0.7, 2)
    ]
    assert kept[0] == 24
    assert sorted(kept, reverse=True) == kept
    assert len(set(kept)) == 4


@pytest.mark.slow
def test_where_memory_is_short_throughput_peaks_near_the_bound():
    """Few blocks on the decode GPU: offloading adds the prefill GPU's. Beyond the bound prompts
    lack room there, and the remote attention is no longer hidden.
    """
    setting = Setting(
        kv_blocks=120, gpu=tiny_gpu(jitter=0.0), prefix_caching=False, audit_every=1 << 40,
        limits=Limits(64, 256, 1024),
    )  # fmt: skip
    many = [offer(i, 0, 40, 80, max_tokens=80) for i in range(96)]

    def makespan(scheduler):
        return max(row["time"] for row in rows(serve(many, scheduler, setting=setting), "ended"))

    swept = {ratio: makespan(f"adrenaline:ratio={ratio}") for ratio in (0, 0.4, 0.8, 2, 4)}
    assert min(swept, key=swept.get) == 0.8  # what prompts leave of the prefill GPU's memory
    own = makespan("adrenaline")
    assert own <= 1.02 * swept[0.8]
    assert swept[0] > 1.1 * own
    assert swept[2] > 1.1 * own
    assert swept[4] > 1.3 * own


# -- the split -------------------------------------------------------------------------------------


def sized(ttft_ms, queue, now_ms=0.0, options=""):
    """The prefill share that the partitioner picks for a queue of prompts on a tiny pair."""
    engine = build(
        queue, make_scheduler("adrenaline"), f"adrenaline:ttft_ms={ttft_ms},delta=0{options}",
        setting=ROOMY,
    )  # fmt: skip
    engine.state.now = round(now_ms * 1e6)
    for request in engine.requests:
        request.num_tokens = request.num_prompt_tokens
        engine.state.waiting.add(request)
    engine.journal.begin()
    plan = engine.scheduler.schedule(engine.context)
    assert isinstance(engine.partitioner, Colocation)
    return engine.partitioner.split(plan, engine.state).of("prefill")


def test_prefill_gets_the_least_share_that_meets_its_slo():
    one, six = crowd(1), [offer(i, 0, 60, 5) for i in range(6)]
    loose, tight = sized(5000, one), sized(60, one)
    assert loose < tight
    assert sized(5000, one, options=",margin=1") <= loose
    assert sized(400, six) > sized(400, one)  # who waits behind must be in time too
    assert sized(60, one, now_ms=61) == sized(1, one)  # late: all that it can have
    assert sized(1, one) == 12  # of 16: the executor keeps 20 %
    assert sized(1, one, options=",executor=50") == 8


def test_the_executor_keeps_a_fifth_of_the_sms_by_default():
    """The paper: with 20 % of an A100's SMs the attention reaches 60 % of its bandwidth."""
    spec = tiny_device(gpu=tiny_gpu(num_sms=100, sm_minimum=1, sm_multiple=1), count=2).spec
    split = Colocation().initial(spec)
    assert (split.of("prefill"), split.of("remote")) == (80, 20)


def test_the_share_is_decided_for_the_prefill_of_a_plan():
    """Decodes alone keep the split; beside a prefill only the prefill is asked about."""
    spec = tiny_device(gpu=tiny_gpu(num_sms=100, sm_minimum=1, sm_multiple=1), count=2).spec
    asked = []

    def predict_splits(shape, sms):
        asked.append(shape)
        return [0.0 for _ in sms]

    made = Colocation(belief=SimpleNamespace(predict_splits=predict_splits))
    split = made.initial(spec)
    state = EngineState(
        spec, KVCacheManager(100, 4), Limits(8, 64, 1024), ("prefill", "decode"), split
    )
    decode = Batch("decode", [], [], BatchShape(4, 400))
    prefill = Batch("prefill", [], [], BatchShape(0, 0, ((100, 0),)))
    assert made.split(Plan([decode]), state) is split
    assert asked == []
    assert made.split(Plan([decode, prefill]), state).of("prefill") == 1
    assert asked == [prefill.shape]


@pytest.mark.parametrize("options", ["executor=0", "executor=100", "margin=0.5"])
def test_impossible_shares_are_refused(options):
    with pytest.raises(InputError, match=rf"^field '{options.partition('=')[0]}': partitioner 'a"):
        serve(crowd(1), "adrenaline", f"adrenaline:{options}")


def test_a_loose_slo_leaves_nothing_to_offload_where_memory_is_ample():
    """Then decode fills its own GPU's compute; a strict one bounds its batch, and others go."""
    ample = replace(ROOMY, kv_blocks=4000)

    def copied(scheduler, **bounds):
        setting = replace(ample, limits=replace(ample.limits, **bounds))
        return len(rows(serve(crowd(), scheduler, setting=setting), "moved"))

    assert copied("adrenaline:tbt_ms=10000") == copied("adrenaline", tbt_ms=10_000.0) == 24
    assert copied("adrenaline:tbt_ms=12") == copied("adrenaline", tbt_ms=12.0) < 24
    assert copied("adrenaline:tbt_ms=12", tbt_ms=10_000.0) < 24  # the option comes first
