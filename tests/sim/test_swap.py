"""Swapping KV to the host and back: when blocks are free, who comes back, what is lost."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from nexusbench.core.config import RunConfig
from nexusbench.core.errors import UsageError
from nexusbench.core.events import PREEMPTION_KINDS
from nexusbench.schedulers.base import schedulers
from nexusbench.serving.assembly import assemble
from nexusbench.serving.resolve import swap_gib
from nexusbench.testing import offer, serve, tiny_gpu, tiny_model
from nexusbench.testing._harness import Setting
from tests.examples import sample

SWAP = PREEMPTION_KINDS.index("swap")
HOST = 1  # its pool, where there is one GPU
# Three of the requests below start together; two of them fit to the end.
TIGHT = Setting(kv_blocks=46, prefix_caching=False)
SLOW = replace(tiny_gpu(), host_gbps=0.002)  # a swap takes about 60 ms


def crowd(count=3, prompt=48, output=40):
    return [offer(i, i, prompt, output) for i in range(count)]


def rows(engine, table):
    columns = engine.log.tables[table].columns
    names = list(columns)
    return [dict(zip(names, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def test_swapped_requests_come_back_and_nothing_is_computed_twice():
    engine = serve(crowd(), "vllm:preemption=swap", setting=TIGHT)
    preempted, moved = rows(engine, "preempted"), rows(engine, "moved")
    assert preempted
    assert {row["kind"] for row in preempted} == {SWAP}
    out = [row for row in moved if row["target"] == HOST]
    back = [row for row in moved if row["source"] == HOST]
    assert [row["request"] for row in out] == [row["request"] for row in preempted]
    assert sorted(row["request"] for row in back) == sorted(row["request"] for row in out)
    for row in out:  # what went out comes back, later
        again = next(b for b in back if b["request"] == row["request"] and b["time"] >= row["end"])
        assert again["tokens"] == row["tokens"]
    # Every token's KV was computed once: the prompt in chunks, each answer but the last in a step.
    computed = sum(row["tokens"] for row in rows(engine, "chunk"))
    assert computed == sum(r.num_prompt_tokens for r in engine.requests)


def test_recomputing_is_what_swapping_saves():
    engine = serve(crowd(), "vllm:preemption=recompute", setting=TIGHT)
    computed = sum(row["tokens"] for row in rows(engine, "chunk"))
    assert computed > sum(r.num_prompt_tokens for r in engine.requests)
    assert not rows(engine, "moved")


def test_blocks_are_busy_until_the_copy_has_ended():
    """While a copy is under way its blocks count as used, on both sides."""
    setting, seen = replace(TIGHT, gpu=SLOW), []

    def watch(engine):
        state = engine.state
        for queue in (state.decoding, state.prefilling):
            for request in queue:
                if state.moving and request.in_flight and state.swapping_blocks:
                    held = [b for running in queue for b in running.blocks]
                    seen.append(engine.kv.num_used - len(held))

    engine = serve(crowd(), "vllm:preemption=swap", setting=setting, observer=watch)
    assert seen
    assert min(seen) >= 0  # no block of a copy under way is free
    for row in rows(engine, "moved"):
        least = row["tokens"] * tiny_model().kv_bytes_per_token / SLOW.host_gbps
        assert row["end"] - row["time"] >= least
    # Until a copy out ends, its request makes no token: it is in flight (I11).
    out = next(row for row in rows(engine, "moved") if row["target"] == HOST)
    back = next(
        row
        for row in rows(engine, "moved")
        if row["source"] == HOST and row["request"] == out["request"]
    )
    assert back["time"] >= out["end"]


def test_a_full_host_means_recomputing():
    small = replace(TIGHT, host_blocks=3)
    engine = serve(crowd(), "vllm:preemption=swap", setting=small)
    assert {row["kind"] for row in rows(engine, "preempted")} == {1 - SWAP}
    assert all(r.num_tokens == r.stop_len for r in engine.requests)


def test_nobody_new_is_admitted_while_somebody_is_out():
    requests = [*crowd(), offer(3, 400, 8, 4)]
    engine = serve(requests, "vllm:preemption=swap", setting=replace(TIGHT, gpu=SLOW))
    out = [(row["end"], row["request"]) for row in rows(engine, "moved") if row["target"] == HOST]
    back = {row["request"]: row["time"] for row in rows(engine, "moved") if row["source"] == HOST}
    late = next(row["time"] for row in rows(engine, "admitted") if row["request"] == 3)
    away = [(end, back[index]) for end, index in out if end > 400_000_000 or back[index] > 4e8]
    assert away  # somebody was out when the new one came
    assert not [1 for end, begin in away if end <= late < begin]


@pytest.mark.parametrize("direction", ["out", "back"])
def test_a_client_that_leaves_while_its_blocks_move(direction):
    setting = replace(TIGHT, gpu=SLOW)
    calm = serve(crowd(), "vllm:preemption=swap", setting=setting)
    way = "target" if direction == "out" else "source"
    move = next(row for row in rows(calm, "moved") if row[way] == HOST)
    requests = crowd()
    leaver = requests[move["request"]]
    middle = (move["time"] + move["end"]) // 2
    leaver.cancel_after_ns = middle - leaver.arrival_ns
    engine = serve(requests, "vllm:preemption=swap", setting=setting)
    end = next(row for row in rows(engine, "ended") if row["request"] == leaver.index)
    assert (end["outcome"], end["time"]) == (3, move["end"])
    assert all(pool.num_used == 0 for pool in engine.pools)
    others = [r for r in engine.requests if r.index != leaver.index]
    assert all(r.num_tokens == r.stop_len for r in others)


def test_a_client_that_leaves_while_it_is_out():
    setting = replace(TIGHT, gpu=SLOW)
    calm = serve(crowd(), "vllm:preemption=swap", setting=setting)
    out = next(row for row in rows(calm, "moved") if row["target"] == HOST)
    back = next(row for row in rows(calm, "moved") if row["source"] == HOST)
    assert out["request"] == back["request"]
    requests = crowd()
    leaver = requests[out["request"]]
    leaver.cancel_after_ns = (out["end"] + back["time"]) // 2 - leaver.arrival_ns
    engine = serve(requests, "vllm:preemption=swap", setting=setting)
    end = next(row for row in rows(engine, "ended") if row["request"] == leaver.index)
    assert end["outcome"] == 3
    assert end["time"] < back["time"]
    assert not [row for row in rows(engine, "moved") if row["source"] == HOST]
    assert all(pool.num_used == 0 for pool in engine.pools)


@pytest.mark.parametrize("scheduler", sample(schedulers.names(), 4))
def test_every_policy_swaps_if_it_is_told_to(scheduler):
    """Whatever goes out comes back, and nobody is lost."""
    requests = [offer(i, 2 * i, 40, 40) for i in range(6)]
    setting = Setting(kv_blocks=30, prefix_caching=False)
    engine = serve(requests, f"{scheduler}:preemption=swap", setting=setting)
    preempted = rows(engine, "preempted")
    if scheduler == "vllm":
        assert SWAP in {row["kind"] for row in preempted}
    moved = rows(engine, "moved")
    host = len(engine.pools) - 1
    assert sum(row["target"] == host for row in moved) == sum(
        row["source"] == host for row in moved
    )
    assert all(r.num_tokens == r.stop_len for r in engine.requests)


def test_host_memory_is_what_was_asked_for_or_what_vllm_takes(tmp_path):
    trace = tmp_path / "two.jsonl"
    line = '{"timestamp": 0, "input_length": 40, "output_length": 7}'
    trace.write_text(f"{line}\n{line}\n", encoding="utf-8")
    base = {"trace": str(trace), "device": "sim:l20"}
    for scheduler, space, gib in (
        ("vllm", None, 0), ("vllm:preemption=swap", None, 4), ("vllm", 2.0, 2),
        ("vllm-pd:preemption=swap", None, 8),
    ):  # fmt: skip
        assembly = assemble(RunConfig(scheduler=scheduler, swap_space=space, **base))
        assert assembly.device.spec.host_bytes == gib * 2**30
        assert len(assembly.other_pools) == assembly.device.spec.num_gpus - 1 + (gib > 0)
    with pytest.raises(UsageError, match="--swap-space: only simulated devices"):
        swap_gib(RunConfig(swap_space=2.0, **{**base, "device": "cpu"}), None, "cpu")
