"""Two GPUs: what a copy takes, who waits for whom, and that nobody is lost between them."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from nexusbench.core.batch import BatchShape, Plan, Split
from nexusbench.core.errors import PlanRefused, UsageError
from nexusbench.core.state import Limits
from nexusbench.devices.sim import Sim
from nexusbench.physics.gpus import load_gpu
from nexusbench.physics.links import Links
from nexusbench.schedulers.vllm_pd import VllmPdScheduler
from nexusbench.testing import offer, serve, tiny_device, tiny_gpu, tiny_model
from nexusbench.testing._harness import Setting

TOKEN = tiny_model().kv_bytes_per_token
LATENCY = 10_000  # ns, of the tiny GPU's link, which moves 1 byte/ns


def links(tensor_parallel=1, **rates):
    spec = tiny_device(count=2, host=True).spec
    return Links(replace(tiny_gpu(), **rates), replace(spec, tensor_parallel=tensor_parallel))


def ended(moves):
    """(ns, number) of every copy, in order of their ends."""
    found = []
    while moves.busy:
        found.append((moves.next_ns, moves.pop()))
    return found


def rows(engine, table):
    columns = engine.log.tables[table].columns
    names = list(columns)
    return [dict(zip(names, row, strict=True)) for row in zip(*columns.values(), strict=True)]


# -- the link --------------------------------------------------------------------------------------


def test_a_copy_takes_its_bytes_over_the_links_rate():
    moves = links(link_gbps=2.0, host_gbps=0.5)
    moves.start(0, 0, 1, 1_000_000.0, 7)
    moves.start(1, 0, 2, 1_000_000.0, 7)  # to the host
    assert ended(moves) == [(7 + 500_000 + LATENCY + 1, 0), (7 + 2_000_000 + LATENCY + 1, 1)]


def test_copies_of_one_direction_follow_each_other():
    moves = links()
    moves.start(0, 0, 1, 1000.0, 0)
    moves.start(1, 0, 1, 1000.0, 500)
    moves.start(2, 1, 0, 1000.0, 500)  # the other way is free
    each = 1000 + LATENCY + 1
    assert ended(moves) == [(each, 0), (500 + each, 2), (2 * each, 1)]


def test_each_gpu_of_a_group_has_its_own_link():
    moves = links(tensor_parallel=4)
    moves.start(0, 0, 1, 4_000_000.0, 0)
    assert ended(moves) == [(1_000_000 + LATENCY + 1, 0)]


def test_the_clock_stops_at_ends_of_copies_and_of_steps():
    device = tiny_device(gpu=tiny_gpu(jitter=0.0), count=2)
    device.transfer(0, 0, 1, 5000.0)
    assert device.wait(1000) == []
    assert device.now() == 1000
    (output,) = device.wait(None)
    assert (output.transfer, output.end_ns) == (0, 5000 + LATENCY + 1)


# -- prefill here, decode there --------------------------------------------------------------------


def crowd(count=12, prompt=100, output=20, gap_ms=5.0):
    return [offer(i, gap_ms * i, prompt, output) for i in range(count)]


def test_every_request_crosses_the_link_once_and_decodes_there():
    engine = serve(crowd(), "vllm-pd")
    moved = rows(engine, "moved")
    assert sorted(row["request"] for row in moved) == list(range(12))
    busy_until = 0
    for row in moved:
        assert (row["source"], row["target"]) == (0, 1)
        assert row["end"] - max(row["time"], busy_until) >= row["tokens"] * TOKEN + LATENCY
        busy_until = row["end"]
        assert row["tokens"] == 100
    submitted = rows(engine, "submitted")
    assert all(row["decodes"] == 0 for row in submitted if row["partition"] == 0)
    assert all(row["chunks"] == 0 for row in submitted if row["partition"] == 1)
    assert all(row["sms"] == 16 for row in submitted)  # a GPU each


def test_two_gpus_do_not_slow_each_other_down():
    engine = serve(crowd(), "vllm-pd")
    submitted = {row["step"]: row["time"] for row in rows(engine, "submitted")}
    for row in rows(engine, "step_done"):
        assert row["time"] - submitted[row["step"]] == row["solo"]


def test_a_full_decode_gpu_holds_back_prefill():
    """Prompts wait on the first GPU for room on the second, then new ones for room on the first."""
    setting = Setting(kv_blocks=64)  # two prompts of 100 tokens and their first answers
    limits = Limits(64, 256, 1024)
    tight = serve(crowd(8, output=40), "vllm-pd", setting=replace(setting, limits=limits))
    roomy = serve(crowd(8, output=40), "vllm-pd", setting=Setting(kv_blocks=900, limits=limits))

    def started(engine):
        times = {}
        for row in rows(engine, "admitted"):
            times.setdefault(row["request"], row["time"])
        return times

    # The sixth finds two decoding and two that wait for them: all four pools' worth is taken.
    ends = {row["request"]: row["time"] for row in rows(tight, "ended")}
    assert started(tight)[5] >= min(ends.values())
    assert started(roomy)[5] < min(row["time"] for row in rows(roomy, "ended"))
    assert all(r.num_tokens == r.stop_len for r in tight.requests)


def test_what_decode_preempts_is_recomputed_on_the_decode_gpu():
    setting = Setting(kv_blocks=44, prefix_caching=False)
    engine = serve(crowd(4, prompt=60, output=60, gap_ms=1.0), "vllm-pd", setting=setting)
    lost = {row["request"] for row in rows(engine, "preempted")}
    assert lost
    partition = {row["step"]: row["partition"] for row in rows(engine, "submitted")}
    seen = {}
    for row in rows(engine, "chunk"):
        seen.setdefault(row["request"], []).append(partition[row["step"]])
    for index, places in seen.items():
        assert places[0] == 0
        assert (1 in places) == (index in lost)
    assert all(r.num_tokens == r.stop_len for r in engine.requests)


def test_a_client_that_leaves_while_its_kv_is_on_the_way():
    slow = replace(tiny_gpu(), link_gbps=0.001)  # a copy takes a fifth of a second
    requests = [offer(0, 0, 100, 20, cancel_after_ms=150.0), offer(1, 1, 100, 20)]
    engine = serve(requests, "vllm-pd", setting=Setting(gpu=slow))
    (first, *_) = rows(engine, "moved")
    left = next(row for row in rows(engine, "ended") if row["request"] == 0)
    assert first["request"] == 0
    assert first["time"] < 150_000_000 < first["end"]  # it did leave on the way
    assert left["time"] == first["end"]  # hands off until then (I11)
    assert left["outcome"] == 3
    assert engine.requests[1].outcome == 0
    assert all(pool.num_used == 0 for pool in engine.pools)


# -- who may do what -------------------------------------------------------------------------------


def test_one_gpu_by_name_is_taken_twice():
    from nexusbench.core.config import RunConfig
    from nexusbench.serving.opening import open_device
    from nexusbench.serving.resolve import resolve

    config = RunConfig(trace="none", device="sim:l20", scheduler="vllm-pd")
    device, _ = open_device(resolve(config))
    assert device.spec.name == "sim:l20+l20"
    assert device.spec.num_gpus == 2
    assert device.spec.host is None


@pytest.mark.parametrize("argument", ["l20+h100", "l20+l20+l20"])
def test_a_pair_is_two_equal_gpus(argument):
    with pytest.raises(UsageError, match=r"two equal ones, such as sim:l20 or sim:l20\+l20"):
        Sim.describe(argument)


def test_splits_of_a_pair_divide_the_prefill_gpu():
    spec = tiny_device(count=2).spec
    *shared, whole = spec.splits
    assert whole == Split(("prefill", "decode"), (16, 16))
    assert {split.of("prefill") + split.of("remote") for split in shared} == {16}
    assert {split.of("decode") for split in shared} == {16}


class Misplaced(VllmPdScheduler):
    """Sends a request to where it is, or decodes elsewhere without SMs for it."""

    def __init__(self, how):
        super().__init__()
        self.how = how

    def schedule(self, ctx):
        for request in [r for r in ctx.decoding if not r.in_flight]:
            if self.how == "home":
                ctx.transfer(request, "prefill")
            else:
                ctx.schedule_decodes("decode", chosen=[request], remote="prefill")
                return ctx.plan()
        ctx.schedule_decodes("decode")
        while ctx.waiting.head is not None and ctx.try_schedule(ctx.waiting.head, None, "prefill"):
            pass
        return ctx.plan()


@pytest.mark.parametrize(
    ("how", "problem"), [("home", "I11: .*is there"), ("remote", "contract: .*leaves no SMs")]
)
def test_plans_that_no_pair_could_run_are_refused(how, problem):
    with pytest.raises(PlanRefused, match=problem):
        serve([offer(0, 0, 20, 5)], lambda: Misplaced(how), "whole")


def test_a_move_that_was_not_made_with_the_context_is_refused():
    class Smuggles(VllmPdScheduler):
        def schedule(self, ctx):
            if ctx.waiting.head is not None:
                return Plan(transfers=[object()])
            return ctx.plan()

    with pytest.raises(PlanRefused, match="otherwise than with the context"):
        serve(crowd(1), Smuggles, "whole")


def test_message_bytes_are_queries_keys_values_and_outputs():
    """Llama-3.1-8B in bf16: 2 x 32 query heads and 2 x 8 KV heads of 128 values."""
    from nexusbench.models.config import load_model
    from nexusbench.physics.launches import Physics
    from nexusbench.physics.remote import message_bytes

    physics = Physics(load_gpu("l20"), load_model("llama-3.1-8b"))
    assert message_bytes(physics, physics.mixing[0], 10) == 10 * (2 * 32 + 2 * 8) * 128 * 2
    assert BatchShape(8, 800, remote=(3, 500)).at_home == BatchShape(8, 300)
