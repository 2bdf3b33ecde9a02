"""A few fixed runs whose event logs are committed as digests (tests/sim/golden.json).

They change when scheduling, sizing, the KV cache or the simulator's physics change behaviour. Then
look at why, and if it is meant: ``python -m tests.sim.refresh_golden``.
"""

from __future__ import annotations

import json
import random
from pathlib import Path

from nexusbench.core.state import Limits
from nexusbench.testing import offer, serve
from nexusbench.testing._harness import Setting
from tests.sim.pieces import pieces

GOLDEN = Path(__file__).with_name("golden.json")


def trace(seed, count, *, gap_ms=12.0, shared=0):
    """Arrivals in bursts; only integer arithmetic and random(), equal on every Python."""
    rng = random.Random(seed)
    requests, now = [], 0.0
    for index in range(count):
        now += gap_ms * int(4 * rng.random())
        prompt, output = 1 + int(240 * rng.random() ** 2), 1 + int(40 * rng.random() ** 2)
        ids = ()
        if shared:
            blocks = -(-prompt // 8)
            common = min(blocks, shared)
            ids = (*range(common), *range(1000 * (index + 1), 1000 * (index + 1) + blocks - common))
        requests.append(offer(index, now, prompt, output, prefix_ids=ids))
    return requests


ROOMY = Setting(kv_blocks=2000, audit_every=64)
TIGHT = Setting(kv_blocks=90, audit_every=64, limits=Limits(8, 48, 1024))
RUNS = {
    "vllm, plenty of KV": lambda: serve(trace(1, 60), "vllm", setting=ROOMY),
    "vllm spf, tight KV, shared prefixes": lambda: serve(
        trace(2, 60, shared=6), "vllm:order=spf", setting=TIGHT
    ),
    "sglang, tight KV": lambda: serve(trace(3, 60), "sglang", setting=TIGHT),
    "nexus, plenty of KV": lambda: serve(trace(4, 60), "nexus", setting=ROOMY),
    "nexus fcfs, tight KV, overlapping": lambda: serve(
        trace(5, 60, shared=9), "nexus:order=fcfs", "whole:idle=reserve", setting=TIGHT
    ),
    "nexus, both modes, reserve": lambda: serve(
        trace(6, 60), "nexus", "nexus:kv_switch=0.5,idle=reserve,reading=swapped", setting=TIGHT
    ),
    "layer-wise prefill, three decode steps a launch": lambda: serve(
        trace(7, 40), pieces(2, 3, 24), "fixed:prefill=60", setting=ROOMY
    ),
    "openinfer, tight KV": lambda: serve(trace(8, 60), "openinfer", setting=TIGHT),
    "slack, tight KV": lambda: serve(trace(9, 60), "slack:tbt_ms=40", setting=TIGHT),
    "debt, tight KV": lambda: serve(trace(10, 60), "debt:tbt_ms=60", setting=TIGHT),
    "flowprefill, tight KV, a layer at a time": lambda: serve(
        trace(11, 60), "flowprefill:norm_ttft_ms=3,layers=1", setting=TIGHT
    ),
}


def run(name):
    """What is committed of a run: enough to see in a diff what moved."""
    engine = RUNS[name]()
    columns = engine.log.tables["step_done"].columns
    return {
        "digest": engine.log.digest(),
        "steps": engine.num_steps,
        "tokens": engine.num_tokens,
        "preempted": len(engine.log.tables["preempted"]),
        "repartitioned": len(engine.log.tables["repartitioned"]),
        "end_ns": columns["time"][-1],
    }


def committed():
    """The golden values."""
    return json.loads(GOLDEN.read_text(encoding="utf-8"))
