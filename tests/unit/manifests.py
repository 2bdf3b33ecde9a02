"""A manifest with everything that readers rely on, for runs that a test writes by hand."""

from __future__ import annotations

from typing import Any

import msgspec

from nexusbench.core.config import RunConfig
from nexusbench.models.config import load_model
from nexusbench.physics.gpus import load_gpu
from nexusbench.results.manifest import Manifest, new_manifest
from nexusbench.results.resolved import ResolvedEngineRun

ASKED = RunConfig(trace="t.jsonl", seed=1)
# As a file holds it.
STORED: dict[str, Any] = {
    "device": "sim:l20", "num_sms": 8, "kv_blocks": 100, "block_size": 16, "slo": {"ttft": 5.0},
    "gpu": msgspec.to_builtins(load_gpu("l20")), "environment": {}, "work": None,
    "model": msgspec.to_builtins(load_model("llama-3.1-8b")), "random_weights": False,
    "kernel_table": None, "made_of_profile": None, "scheduler": "vllm", "scheduler_options": {},
    "partitioner": "whole", "partitioner_options": {}, "belief": None, "machine": {}, "seed": 1,
    "limits": {"max_num_seqs": 4, "max_num_batched_tokens": 64, "max_model_len": 512},
    "trace": {"name": "t", "sha256": "0" * 64, "requests": 2, "notes": [], "concurrency": 0,
              "following": 0},
    "warmup_ns": 0, "gpus": 1, "pools": ["gpu"], "homes": [0], "price_per_hour": None,
    "watts": None,
}  # fmt: skip
RESOLVED = msgspec.convert(STORED, ResolvedEngineRun)


def manifest(**changes: Any) -> Manifest:
    given: dict[str, Any] = {
        "simulated": True, "config": ASKED, "resolved": RESOLVED, "partitions": ["all"],
    }  # fmt: skip
    return new_manifest("run", "2026-01-01T00:00:00Z", **{**given, **changes})
