"""Good inputs of every kind in one folder; a case gets a copy and spoils one thing of it."""

from __future__ import annotations

import gzip
import json
import random
import tomllib
from collections.abc import Callable, Iterable
from itertools import product
from pathlib import Path

_AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens"
TRACES = {
    "t.jsonl": ('{{"timestamp": {ms}, "input_length": {p}, "output_length": {o}}}', ""),
    "mooncake.jsonl": (
        '{{"timestamp": {ms}, "input_length": 600, "output_length": {o}, "hash_ids": [1, {i}]}}',
        "",
    ),
    "azure.csv": ("2023-11-16 18:17:{s:02d}.0000000,{p},{o}", _AZURE),
    "burstgpt.csv": (
        "{s},ChatGPT,{p},{o},{t},Conversation log",
        "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type",
    ),
}  # fmt: skip
WORKLOAD = """\
[workload]
name = "made"
num_requests = 8
seed = 1

[arrivals]
process = "poisson"
rate = 4.0

[[classes]]
name = "one"
weight = 1.0

[classes.input]
mean = 100
quantiles = [[0, 50], [0.5, 90], [1, 200]]

[classes.output]
mean = 6
quantiles = [[0, 2], [0.5, 6], [1, 10]]
"""
SWEEP = """\
[base]
trace = "t.jsonl"
device = "sim:l20"

[grid]
scheduler = ["vllm", "nexus"]
rate = [2.0]
seed = "0..1"

[[exclude]]
scheduler = "nexus"
seed = 1

[[include]]
scheduler = "sglang"
"""
GATE = """\
baseline = "base.json"
rules = ["ttft.p99:5%:2ms"]
seeds = [0]
repeats = 1
confirm = false

[defaults]
device = "sim:l20"

[[runs]]
trace = "t.jsonl"
scheduler = ["vllm"]
"""
MAP = """\
[map]
title = "small"
gpus = ["sim:l20"]
model = "qwen2.5-3b"
loads = [80]
seeds = 2
reference = "vllm"
ordered = "spf"
policy = "nexus"
span_s = 1
requests = [8, 10]

[systems.vllm]
kind = "whole"
scheduler = "vllm"

[systems.spf]
kind = "whole"
scheduler = "vllm:order=spf"

[systems.nexus]
kind = "split"
scheduler = "nexus"

[[traffic]]
name = "short"
trace = "w.toml"
slos = ["llama3.1-8b"]
"""
EXPERIMENT = """\
[experiment]
title = "Fig. 9"
figures = ["fig9"]

[base]
trace = "../t.jsonl"
device = "sim:l20"

[grid]
rate = [2.0, 4.0]
seed = [0, 1]

[quick]
rate = [2.0]

[systems.vllm]
scheduler = "vllm"

[systems.nexus]
scheduler = "nexus"

[[claim]]
says = "faster"
paper = "2x"
measure = "ttft.mean"
of = "nexus"
over = "vllm"
low = 2
high = 2
"""
META = """\
gpu: NVIDIA GeForce RTX 4090
tp_degrees: [1, 2]
engine_effective:
  hf_overrides:
    intermediate_size: 14336
    num_attention_heads: 32
    num_key_value_heads: 8
    vocab_size: 128256
"""
_LAYERS = (
    "qkv_proj", "o_proj", "gate_up_proj", "down_proj", "layernorm", "rotary_emb", "act_fn",
    "embedding", "final_layernorm",
)  # fmt: skip
_VIDUR = (
    "n_embd", "n_expanded_embd", "num_tensor_parallel_workers", "num_tokens", "n_head",
    "n_kv_head", "attn_pre_proj_ms", "attn_post_proj_ms", "mlp_up_proj_ms", "mlp_down_proj_ms",
)  # fmt: skip


def build(folder: Path, call: Callable[[Iterable[str]], int]) -> None:
    """Write everything into ``folder``; ``call`` runs a command line there."""
    for name, (line, head) in TRACES.items():
        (folder / name).write_text(_lines(line, head))
    packed = gzip.compress((folder / "t.jsonl").read_bytes(), mtime=0)
    (folder / "t.jsonl.gz").write_bytes(packed)
    for name, text in (
        ("w.toml", WORKLOAD), ("sweep.toml", SWEEP), ("gate.toml", GATE), ("map.toml", MAP),
        ("specs/paper/fig9.toml", EXPERIMENT), ("table/meta.yaml", META),
    ):  # fmt: skip
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    for name in ("t.jsonl", "w.toml"):
        (folder / "specs" / name).write_bytes((folder / name).read_bytes())
    _tables(folder / "table")
    _measurements(folder)
    _shipped(folder)
    for command in (
        "serve-trace t.jsonl --device sim:l20 --scheduler vllm,nexus --no-progress",
        "profile --device sim:l20 --model qwen2.5-3b --quick -o prof --no-progress",
    ):
        if call(command.split()):
            raise RuntimeError(f"{command} fails: nothing can be tried")
    for run in (folder / "results").iterdir():  # whose names have the time of day in them
        run.rename(folder / "results" / ("nexus" if "nexus" in run.name else "vllm"))
    if call(["gate", "baseline", "save", "vllm", "nexus", "-o", "base.json"]):
        raise RuntimeError("no baseline can be saved: nothing can be tried")


def _lines(line: str, head: str) -> str:
    rows = [
        line.format(ms=100 * i, s=i, i=i, p=100 + 37 * i, o=3 + i % 4, t=103 + 37 * i + i % 4)
        for i in range(12)
    ]
    return "\n".join([head, *rows] if head else rows) + "\n"


def _tables(folder: Path) -> None:
    """A kernel table of made-up but increasing times."""
    rows = ["layer,tokens,time_us"]
    rows += [f"{n},{t},{1 + t / 10}" for n in _LAYERS for t in (1, 16, 256, 2048)]
    (folder / "dense.csv").write_text("\n".join(rows) + "\n")
    rows = ["layer,sequences,time_us"]
    # weights of 1.05 GB: no GPU of this name reads them in less than 1,042 µs
    rows += [f"lm_head,{t},{1200 + t / 10}" for t in (1, 16, 256)]
    rows += [f"sampler,{t},{1 + t / 10}" for t in (1, 16, 256)]
    (folder / "per_sequence.csv").write_text("\n".join(rows) + "\n")
    rows = ["prefill_chunk,kv_prefill,n_decode,kv_decode,time_us"]
    for chunk, before, count, keys in product((0, 16, 2048), (0, 4096), (0, 1, 128), (0, 16, 4096)):
        if bool(count) == bool(keys) and (chunk or (count and not before)):
            time = 1 + (chunk + before + count * keys) / 1000
            rows.append(f"{chunk},{before},{count},{keys},{time}")
    (folder / "attention.csv").write_text("\n".join(rows) + "\n")


def _measurements(folder: Path) -> None:
    """A dense table, a result of a load generator, a recorded run, tables of parquet."""
    rows = [",".join(_VIDUR)]
    rows += [f"4096,11008,{d},{t},32,32,1.0,0.5,2.0,1.5" for d in (1, 2) for t in (16, 128, 1024)]
    (folder / "vidur.csv").write_text("\n".join(rows) + "\n")
    rows = ["op,K,N,tokens_or_batch,context,sms,ms"]
    rows += [f"gemm,4096,4096,16,,{sms},{3 / sms}" for sms in (16, 64, 132)]
    rows += [f"decode_attention_fa2,,,16,4096,{sms},{9 / sms}" for sms in (16, 64, 132)]
    (folder / "over_sms.csv").write_text("\n".join(rows) + "\n")
    draw = random.Random(1)
    detail = {
        "date": "20260101-000000", "model_id": "m", "input_lens": [100, 50, 70],
        "output_lens": [3, 2, 4], "ttfts": [0.1, 0.2, 0.1],
        "itls": [[0.02, 0.03], [0.04], [0.1, 0.1, 0.1]],
        "start_times": [10.5, 10.0, 10.7], "errors": ["", "", ""],
    }  # fmt: skip
    (folder / "bench.json").write_text(json.dumps(detail))
    recording = folder / "recording"
    recording.mkdir()
    meta = {
        "model": "m", "vllm_version": "0.10", "engine_kwargs": {"max_num_seqs": 64},
        "kv_cache": {"num_gpu_blocks": 4000, "block_size": 16, "enable_prefix_caching": True},
        "resolved_config": {"scheduler_config": {"async_scheduling": False}},
    }  # fmt: skip
    (recording / "meta.json").write_text(json.dumps(meta, indent=1))
    lines = []
    for i in range(6):
        first = i + draw.random() / 10
        lines.append(json.dumps({
            "request_id": f"r{i}", "input_toks": 100 + i, "output_toks": 4, "arrival_time": 1e3 + i,
            "queued_ts": float(i), "scheduled_ts": float(i), "first_token_ts": first,
            "last_token_ts": first + 0.1, "itls": [0.03, 0.03, 0.04],
        }))  # fmt: skip
    (recording / "requests.jsonl").write_text("\n".join(lines) + "\n")
    series = ["t,running,waiting,kv_cache_pct", *(f"{t},1,0,{t}" for t in range(6))]
    (recording / "timeseries.csv").write_text("\n".join(series) + "\n")
    _parquet(folder / "perf")


def _parquet(folder: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    bf16, ms = ["bfloat16"] * 3, [0.1, 0.2, 0.3]
    tables = {
        "gemm/vllm/1.0/gemm_perf": {
            "gemm_dtype": bf16, "m": [1, 16, 256], "n": [4096] * 3, "k": [4096] * 3, "latency": ms,
        },
    }  # fmt: skip
    for kind, tokens, step in (("context", [16, 128, 1024], 0), ("generation", [1, 1, 1], 128)):
        tables[f"attention/vllm/1.0/{kind}_attention_perf"] = {
            "kernel_source": ["vllm_flash_attn"] * 3, "attn_dtype": bf16, "kv_cache_dtype": bf16,
            "batch_size": [1, 2, 4], "isl": tokens, "num_heads": [32] * 3,
            "num_key_value_heads": [8] * 3, "head_dim": [128] * 3, "step": [step] * 3,
            "window_size": [0] * 3, "latency": ms,
        }  # fmt: skip
    for name, columns in tables.items():
        path = folder / f"{name}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table(columns), path)


def _shipped(folder: Path) -> None:
    """A GPU and a model of the package, as files of one's own."""
    from importlib import resources

    data = resources.files("nexusbench.data")
    (folder / "gpu.toml").write_bytes((data / "gpus" / "l20.toml").read_bytes())
    tomllib.loads((folder / "gpu.toml").read_text())
    model = folder / "model"
    model.mkdir()
    (model / "config.json").write_bytes((data / "models" / "qwen2.5-3b.json").read_bytes())
