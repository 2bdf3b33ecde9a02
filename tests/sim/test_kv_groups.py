"""Runs of models whose layers keep different tokens: who fits, what is moved, what is said."""

from __future__ import annotations

import json
import random

import pytest
from msgspec.structs import replace

import nexusbench
from nexusbench.core.config import RunConfig
from nexusbench.core.errors import InvariantBreach, UsageError
from nexusbench.core.events import PREEMPTION_KINDS
from nexusbench.core.kv_layout import KvGroup, KvLayout, kv_layout
from nexusbench.core.state import Limits
from nexusbench.kv.grouped import GroupedKV
from nexusbench.kv.manager import KVCacheManager
from nexusbench.kv.pages import NONE
from nexusbench.models.config import load_model
from nexusbench.schedulers.base import schedulers
from nexusbench.serving.opening import check_pool, kv_pages, kv_pools
from nexusbench.testing import offer, serve, tiny_device
from nexusbench.testing._harness import Setting, build, make_scheduler
from nexusbench.testing._workloads import random_workload
from nexusbench.workloads.base import Trace, TraceRequest

FULL, STATE = KvGroup("full", 64.0), KvGroup("state", 1000.0)
LAYOUTS = {
    "window": KvLayout((FULL, KvGroup("window", 64.0, 24))),
    "window alone": KvLayout((KvGroup("window", 64.0, 24),)),
    "all": KvLayout((FULL, KvGroup("window", 320.0, 17), KvGroup("chunk", 64.0, 16), STATE)),
    "state": KvLayout((FULL, STATE)),
}


def columns(engine, table):
    return engine.log.tables[table].columns


def tight(workload, layout, rng):
    """The workload in a pool of that layout, in which at least its largest request fits."""
    setting = workload.setting
    sizes = layout.paged(setting.block_size)
    step = setting.limits.max_num_batched_tokens
    least = max(sizes.most(r.stop_len, step) for r in workload.requests)
    blocks = int(least * rng.choice((1.0, 1.3, 2.0))) + rng.randint(0, 3)
    return replace(setting, kv_blocks=blocks, host_blocks=20 * least, layout=layout)


@pytest.mark.parametrize("name", sorted(schedulers.names()))
@pytest.mark.parametrize("kind", ["recompute", "swap"])
def test_every_policy_serves_every_layout_in_a_tight_pool(name, kind):
    """Books are audited after every step; the pool has room for one request or a little more."""
    for seed, layout in enumerate(("all", "window alone")):
        rng = random.Random(f"{name} {layout}")
        workload = random_workload(random.Random(f"{seed} {kind}"), layout)
        setting = tight(workload, LAYOUTS[layout], rng)
        engine = serve(workload.requests, f"{name}:preemption={kind}", setting=setting)
        assert isinstance(engine.kv, GroupedKV)
        assert {r.outcome for r in engine.requests} == {0}


def crowd(count=8, prompt=100, output=40):
    return [offer(i, i, prompt, output) for i in range(count)]


@pytest.mark.parametrize("kind", ["recompute", "swap"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_preempted_requests_come_back(kind, layout):
    """Pools in which the prompts of three requests fit, and not all that they grow to."""
    sizes = LAYOUTS[layout].paged(4)
    setting = Setting(kv_blocks=sizes.most(72, 64), layout=LAYOUTS[layout])
    engine = serve(crowd(3, 12, 60), f"vllm:preemption={kind}", setting=setting)
    assert set(columns(engine, "preempted")["kind"]) == {PREEMPTION_KINDS.index(kind)}
    assert {r.outcome for r in engine.requests} == {0}


def most_running(engine):
    return max(columns(engine, "submitted")["running"])


def test_with_windows_more_requests_fit_into_the_same_memory():
    """One layer in four of all tokens, three of the last 16: 35 blocks of 256 bytes a layer."""
    layout = KvLayout((KvGroup("full", 64.0), KvGroup("window", 192.0, 16)))
    limits = Limits(8, 128, 1024)
    windows = serve(crowd(), "vllm", setting=Setting(kv_blocks=280, layout=layout, limits=limits))
    keeps_all = serve(crowd(), "vllm", setting=Setting(kv_blocks=70, limits=limits))
    assert (most_running(windows), most_running(keeps_all)) == (5, 3)
    ends = [columns(engine, "ended")["time"][-1] for engine in (windows, keeps_all)]
    assert ends[0] < 0.8 * ends[1]


def test_a_chunk_of_a_prompt_that_no_pool_holds_with_its_window_is_rejected():
    """A window of 24 and 64 tokens at a time: 23 blocks of four tokens, whatever the length."""
    layout = KvLayout((KvGroup("window", 64.0, 24),))
    requests = [offer(0, 0, 400, 4)]
    for blocks, outcome in ((23, 0), (22, 1)):
        engine = serve(requests, "vllm", setting=Setting(kv_blocks=blocks, layout=layout))
        assert engine.requests[0].outcome == outcome
    assert "exceeds the KV pool of 22 pages" in engine.log.strings
    kv = engine.kv
    with pytest.raises(UsageError, match=r"pool of 22 pages, which .* the smallest needs 23"):
        check_pool(engine.requests, kv, 64)
    check_pool(engine.requests, kv, 60)


def test_what_is_copied_is_what_is_kept():
    """Prefill on one GPU, decode on the other: a window and a state, not all tokens."""
    layout = KvLayout((FULL, KvGroup("window", 320.0, 16), STATE))
    setting = Setting(layout=layout, kv_blocks=3000)
    engine = build([offer(0, 0, 200, 8)], make_scheduler("vllm-pd"), setting=setting)
    sent = []
    engine.device.transfer, real = lambda *a: (sent.append(a[3]), real(*a)), engine.device.transfer
    engine.run()
    page, size = layout.paged(4).page_bytes, layout.paged(4).pages
    assert sent == [200 * 64 + 16 * 320 + size[2] * page]
    assert columns(engine, "moved")["tokens"][0] == 200


def test_an_audit_names_a_request_that_lost_a_block_of_its_window():
    setting = Setting(layout=LAYOUTS["window"])
    engine = build([offer(0, 0, 50, 8)], make_scheduler("vllm"), setting=setting)

    def spoil(engine):
        if engine.state.decoding:
            r = engine.state.decoding[0]
            block = r.blocks[-1]
            r.blocks[-1] = NONE
            engine.kv.pool.release([block])

    engine._observer = spoil
    with pytest.raises(InvariantBreach, match=r"I3.*'r0' has computed tokens without a block"):
        engine.run()


def write(tmp_path, name, count=40):
    lines = [{"timestamp": 5 * i, "input_length": 3000, "output_length": 60} for i in range(count)]
    path = tmp_path / name
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


def test_a_run_of_a_windowed_model_says_what_its_pages_are(tmp_path):
    """gpt-oss: half of the layers keep 128 tokens, so a page is of half of the layers."""
    config = RunConfig(
        trace=write(tmp_path, "t.jsonl"), model="gpt-oss-120b", device="sim:h200",
        scheduler="vllm", kv_blocks=1500,
    )  # fmt: skip
    result = nexusbench.run(config)
    layout = kv_layout(load_model("gpt-oss-120b"))
    assert result.resolved.kv_groups == layout.paged(16)
    assert result.resolved.kv_blocks == 1500
    # A request holds 192 pages of all its tokens and 9 of its window; while its prompt is computed
    # at once, 188 of each. With blocks of all layers, three would fill the pool.
    submitted = result.events.tables["submitted"]
    assert submitted["running"].max() == 6
    assert submitted["kv_used"].max() == 5 * 201 + 2 * 188


def test_devices_that_keep_all_tokens_have_blocks_of_all_layers():
    """Real devices mask windows in their kernels, and keep what lies before them."""
    model = load_model("gpt-oss-120b")
    device = tiny_device()
    config, trace = RunConfig(trace="t", kv_blocks=20), Trace("t", [TraceRequest("0", 0, 40, 5)])
    assert isinstance(kv_pools(config, model, device, trace)[0], GroupedKV)
    device.spec = replace(device.spec, frees_windows=False)
    assert type(kv_pools(config, model, device, trace)[0]) is KVCacheManager
    assert kv_pages(config, model, device).page_bytes == 16 * 2 * model.kv_bytes_per_token
