"""Each policy does what its source says."""

from __future__ import annotations

import json

import pytest

from nexusbench.cli.main import main
from nexusbench.core.state import Limits
from nexusbench.schedulers.base import schedulers
from nexusbench.serving.resolve import rules_of
from nexusbench.testing import offer, serve
from nexusbench.testing._harness import Setting, make_scheduler

LIMITS = Limits(8, 64, 1024)


def rows(engine, table):
    columns = engine.log.tables[table].columns
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def chunks(engine):
    """Per step: {request: tokens}, and the number of decodes."""
    steps = [({}, row["decodes"]) for row in rows(engine, "submitted")]
    for row in rows(engine, "chunk"):
        steps[row["step"]][0][row["request"]] = row["tokens"]
    return steps


def admitted(engine):
    return [row["request"] for row in rows(engine, "admitted")]


def watch_plans(name):
    """A policy whose plans are kept: (batches as sizes, preempted ids)."""
    policy, plans = make_scheduler(name), []
    inner = policy.schedule

    def schedule(ctx):
        plan = inner(ctx)
        shapes = {b.partition: (b.shape.num_decodes, dict_of(b)) for b in plan.batches}
        plans.append((shapes, [p.request.index for p in plan.preemptions]))
        return plan

    policy.schedule = schedule
    return policy, plans


def dict_of(batch):
    return {chunk.request.index: chunk.num_tokens for chunk in batch.chunks}


# -- vLLM v1 ---------------------------------------------------------------------------------------


def test_vllm_puts_decodes_then_the_partial_prompt_then_new_ones_into_one_budget():
    requests = [offer(0, 0, 10, 9), offer(1, 0, 100, 5), offer(2, 0, 30, 5)]
    steps = chunks(serve(requests, "vllm"))
    assert steps[0] == ({0: 10, 1: 54}, 0)
    assert steps[1] == ({1: 46, 2: 17}, 1)  # 1 decode + 46 + 17 = 64
    assert steps[2] == ({2: 13}, 2)
    assert steps[3] == ({}, 3)


def test_vllm_preempts_the_last_to_join_and_admits_nobody_in_that_step():
    requests = [offer(i, 0, 12, 40) for i in range(5)]
    policy, plans = watch_plans("vllm")
    setting = Setting(kv_blocks=18, prefix_caching=False)
    serve(requests, policy, setting=setting)
    victims = [preempted for _, preempted in plans if preempted]
    assert victims[0] == [4] or victims[0] == [3]
    for shapes, preempted in plans:
        if preempted:
            assert not any(chunk for _, chunk in shapes.values())
    first = next(i for i, (_, preempted) in enumerate(plans) if preempted)
    joined = sorted({i for shapes, _ in plans[:first] for _, c in shapes.values() for i in c})
    assert victims[0] == [joined[-1]]


def test_vllm_readmits_a_preempted_request_before_later_arrivals():
    requests = [offer(i, 0, 12, 30) for i in range(4)]
    setting = Setting(kv_blocks=20)
    first = rows(serve(requests, "vllm", setting=setting), "preempted")[0]
    late = offer(4, first["time"] / 1e6 + 1, 4, 4)
    engine = serve([*requests, late], "vllm", setting=setting)
    after = [r["request"] for r in rows(engine, "admitted") if r["time"] >= first["time"]]
    assert after.index(first["request"]) < after.index(4)


def test_vllm_never_exceeds_seats_or_budget():
    requests = [offer(i, 0, 5, 20) for i in range(12)]
    engine = serve(requests, "vllm", setting=Setting(limits=Limits(3, 7, 1024)))
    for row in rows(engine, "submitted"):
        assert row["running"] <= 3
        assert row["decodes"] + row["prefill_tokens"] <= 7


# -- SGLang ----------------------------------------------------------------------------------------


def test_sglang_decodes_stall_while_prompts_can_be_admitted():
    requests = [offer(0, 0, 10, 9), *(offer(i, 1 + i, 60, 3) for i in range(1, 5))]
    for chunk, decodes in chunks(serve(requests, "sglang")):
        assert not (chunk and decodes), "a prefill batch runs alone"
    steps = chunks(serve(requests, "sglang"))
    prefills = [i for i, (chunk, _) in enumerate(steps) if chunk]
    assert prefills == list(range(len(prefills))), "decodes wait for all prompts"


def test_sglang_retracts_fewest_outputs_first_then_the_longest_prompt():
    policy = make_scheduler("sglang")
    order = []
    inner = policy._retract

    def retract(ctx):
        before = [(r.index, r.num_tokens - r.num_prompt_tokens, r.num_prompt_tokens)
                  for r in ctx.decoding]  # fmt: skip
        inner(ctx)
        left = {r.index for r in ctx.decoding}
        order.append((before, [p.request.index for p in ctx.plan().preemptions], left))

    policy._retract = retract
    policy._ratio = policy._least_ratio = policy._start_ratio = 0.0  # bold: admits everybody
    requests = [offer(i, 30 * i, 9 + 5 * (i % 3), 60, max_tokens=60) for i in range(7)]
    serve(requests, policy, setting=Setting(kv_blocks=64))
    assert order
    for before, gone, left in order:
        keys = {index: (outputs, -prompt) for index, outputs, prompt in before}
        assert [keys[index] for index in gone] == sorted(keys.values())[: len(gone)]
        assert left == set(keys) - set(gone)
        assert left


def test_sglang_retraction_leaves_room_for_20_steps_and_resets_the_ratio():
    policy = make_scheduler("sglang")
    policy._ratio = policy._least_ratio = 0.0
    inner, seen = policy._retract, []

    def retract(ctx):
        inner(ctx)
        left = list(ctx.decoding)
        free = ctx.kv.num_free * ctx.kv.block_size
        if len(left) > 1:
            assert free >= 20 * len(left)
        decoded = sum(r.num_tokens - r.num_prompt_tokens for r in left)
        allowed = sum(r.max_tokens for r in left)
        seen.append((policy._ratio, min(1.0, (decoded + 20 * len(left)) / allowed)))

    policy._retract = retract
    requests = [offer(i, 0, 20, 60) for i in range(7)]
    serve(requests, policy, setting=Setting(kv_blocks=64))
    assert seen
    assert all(ratio == expected for ratio, expected in seen)


def test_sglang_ratio_decays_linearly_to_its_floor():
    policy = make_scheduler("sglang")
    assert policy._ratio == pytest.approx(0.7)
    serve([offer(0, 0, 4, 61)], policy)
    assert policy._ratio == pytest.approx(0.7 - 60 * (0.7 - 0.098) / 600)
    serve([offer(0, 0, 4, 600, max_tokens=600)], policy)
    assert policy._ratio == pytest.approx(0.098)


def test_sglang_retracted_requests_queue_behind_everyone_who_has_arrived():
    policy = make_scheduler("sglang")
    policy._ratio = policy._least_ratio = policy._start_ratio = 0.0
    setting = Setting(kv_blocks=64, limits=Limits(7, 64, 1024))
    requests = [offer(i, 0, 20, 60) for i in range(7)] + [offer(i, 50, 20, 4) for i in range(7, 10)]
    engine = serve(requests, policy, setting=setting)
    first = rows(engine, "preempted")[0]
    after = [r["request"] for r in rows(engine, "admitted") if r["time"] > first["time"]]
    assert after.index(first["request"]) > max(after.index(i) for i in (7, 8, 9))


def test_sglang_admits_by_expected_growth():
    """A cautious ratio admits fewer at once than a bold one."""
    requests = [offer(i, 0, 20, 40, max_tokens=64) for i in range(7)]
    counts = []
    for conservativeness in (0.1, 1.4):
        engine = serve(
            requests,
            f"sglang:schedule_conservativeness={conservativeness}",
            setting=Setting(kv_blocks=64),
        )
        counts.append(max(row["running"] for row in rows(engine, "submitted")))
    assert counts[0] > counts[1]


# -- Nexus and the order of the queue --------------------------------------------------------------


@pytest.mark.parametrize("name", sorted({*schedulers.names()} - {"fastserve"}))  # has levels
def test_spf_takes_the_shortest_first_and_fcfs_the_first(name):
    lengths = [60, 50, 30, 5, 41]
    requests = [offer(0, 0, 64, 2), *(offer(1 + i, 1, n, 2) for i, n in enumerate(lengths))]
    setting = Setting(limits=Limits(1, 64, 1024))
    fcfs = admitted(serve(requests, f"{name}:order=fcfs", setting=setting))
    spf = admitted(serve(requests, f"{name}:order=spf", setting=setting))
    assert fcfs == [0, 1, 2, 3, 4, 5]
    assert spf == [0, 4, 3, 5, 2, 1]


@pytest.mark.parametrize(("later_s", "winner"), [(5.9, 2), (6.1, 1)])
def test_ageing_crosses_over_after_the_difference_in_length_over_gamma(later_s, winner):
    """100 against 10 tokens at gamma 15: six seconds make up for it, whenever they are compared."""
    blocker = offer(0, 0, 400, 600)  # holds the only seat, at one token a step, for over 7 seconds
    old, young = offer(1, 1, 100, 1), offer(2, 1 + 1000 * later_s, 10, 1)
    setting = Setting(limits=Limits(1, 1, 1024))
    engine = serve([blocker, old, young], "nexus:gamma=15", setting=setting)
    assert rows(engine, "ended")[0]["time"] > young.arrival_ns
    assert admitted(engine) == [0, winner, 3 - winner]


def test_nexus_chunks_a_long_prompt_and_lets_a_shorter_one_pass():
    requests = [offer(0, 0, 200, 2), offer(1, 3, 40, 2)]
    engine = serve(requests, "nexus")
    mine = [chunk for chunk, decodes in chunks(engine) if chunk]
    assert mine == [{0: 64}, {1: 40, 0: 24}, {0: 64}, {0: 48}]


def test_nexus_decodes_and_prompts_run_side_by_side_in_order_of_joining():
    requests = [offer(i, 5 * i, 20 + 9 * i, 20) for i in range(6)]
    engine = serve(requests, "nexus")
    steps = rows(engine, "submitted")
    ends = {row["step"]: row["time"] for row in rows(engine, "step_done")}
    prefills = [s for s in steps if s["partition"] == 0]
    decodes = [s for s in steps if s["partition"] == 1]
    assert all(s["decodes"] == 0 for s in prefills)
    assert all(s["chunks"] == 0 for s in decodes)
    assert any(
        p["time"] < ends[d["step"]] and d["time"] < ends[p["step"]]
        for p in prefills
        for d in decodes
    )


def test_nexus_goes_on_with_started_prompts_when_all_seats_are_taken():
    """A short prompt at the head of the queue that finds no seat keeps nobody from going on."""
    requests = [offer(0, 0, 150, 5), offer(1, 5, 20, 60), offer(2, 6, 10, 5)]
    engine = serve(requests, "nexus", setting=Setting(limits=Limits(2, 64, 1024)))
    first_token = {}
    for step, row in enumerate(rows(engine, "chunk")):
        first_token.setdefault(row["request"], step)
    done = {row["request"]: row["time"] for row in rows(engine, "ended")}
    assert done[0] < done[1]


@pytest.mark.slow
def test_nexus_half_done_prompts_do_not_wait_for_each_other_for_ever():
    requests = [offer(i, 12 * i, 100 + 9 * i, 30) for i in range(8)]
    for order in ("fcfs", "spf"):
        for blocks in range(50, 60):
            setting = Setting(kv_blocks=blocks, limits=Limits(8, 16, 1024))
            serve(requests, f"nexus:order={order}", "fixed:prefill=50", setting=setting)


@pytest.mark.parametrize(
    ("spec", "rules"),
    [
        ("vllm", "vLLM v1 before 0.19"),
        ("vllm:whole_prompt=true", "vLLM 0.19"),
        ("sglang", "SGLang 0.4.4.post1"),
        ("sarathi", "Sarathi, arXiv 2308.16369"),
    ],
)
def test_a_policy_says_whose_rules_of_which_version_it_follows(spec: str, rules: str) -> None:
    assert schedulers.create(spec).rules == rules
    assert rules_of([spec, spec]) == f"{spec}: {rules}"


def test_every_shipped_policy_names_whose_rules_it_follows() -> None:
    for name in schedulers.names():
        rules = schedulers.create(name).rules
        assert any(sign.isdigit() for sign in rules) or "main" in rules, (name, rules)


def test_screens_and_manifests_say_the_rules(tmp_path, capsys) -> None:
    trace = tmp_path / "one.jsonl"
    trace.write_text('{"timestamp": 0, "input_length": 128, "output_length": 2}\n')
    asked = ["serve-trace", str(trace), "--device", "sim:l20", "--model", "qwen2.5-3b"]
    asked += ["--scheduler", "vllm,vllm:whole_prompt=true"]
    assert main([*asked, "--no-save"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "vllm (rules of vLLM v1 before 0.19; partitioner whole)" in text
    assert "vllm:whole_prompt=true (rules of vLLM 0.19; partitioner whole)" in text
    assert main([*asked, "--no-save", "--json"]) == 0
    runs = json.loads(capsys.readouterr().out)["runs"]
    assert [run["resolved"]["scheduler_rules"] for run in runs] == [
        "vLLM v1 before 0.19", "vLLM 0.19",
    ]  # fmt: skip
