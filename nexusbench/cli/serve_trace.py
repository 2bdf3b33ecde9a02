"""``nexusbench serve-trace``: replay a trace under one or more schedulers, side by side."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import typer

from nexusbench.cli import _endpoint_flags as remote
from nexusbench.cli import _flags as flags
from nexusbench.cli import _token_flags as tokens
from nexusbench.cli import _traffic_flags as traffic


def serve_trace(
    context: typer.Context,
    trace: flags.TracePath,
    device: flags.Device = "auto",
    model: flags.Model = "llama-3.1-8b",
    scheduler: flags.Schedulers = ["nexus"],  # noqa: B006 (Typer reads it, nobody changes it)
    partitioner: flags.Partitioners = None,
    cost_model: flags.CostModel = None,
    profile: flags.Profile = None,
    force_profile: flags.ForceProfile = False,
    recalibrate: flags.Recalibrate = False,
    kernel_table: flags.KernelTable = None,
    endpoint: remote.Endpoint = None,
    api: remote.Api = None,
    prompt: remote.PromptForm = "auto",
    vocab_size: remote.VocabSize = 32_000,
    api_key_env: remote.ApiKeyEnv = None,
    timeout_s: remote.Timeout = 600.0,
    tensor_parallel_size: flags.TensorParallel = 1,
    gpu_memory_utilization: flags.Utilization = 0.9,
    kv_blocks: flags.KvBlocks = None,
    swap_space: flags.SwapSpace = None,
    block_size: flags.BlockSize = 16,
    prefix_caching: flags.PrefixCaching = True,
    max_num_seqs: flags.MaxSeqs = None,
    max_num_batched_tokens: flags.MaxBatchedTokens = None,
    max_model_len: flags.MaxModelLen = None,
    too_long: flags.TooLong = "reject",
    max_tokens: flags.MaxTokens = None,
    load_format: tokens.LoadFormat = "auto",
    dtype: tokens.Dtype = None,
    temperature: tokens.Temperature = 0.0,
    top_p: tokens.TopP = 1.0,
    stop_at_eos: tokens.StopAtEos = False,
    graphs: tokens.Graphs = True,
    speed: flags.Speed = None,
    request_rate: flags.Rate = None,
    burstiness: flags.Burstiness = None,
    limit: flags.Limit = None,
    window: flags.Window = None,
    spread_ties: flags.SpreadTies = "none",
    quantize_arrivals: traffic.QuantizeArrivals = None,
    concurrency: traffic.Concurrency = None,
    warmup_s: flags.Warmup = 0.0,
    goodput: flags.Goodput = None,
    by: flags.By = None,
    price_per_hour: flags.Price = None,
    watts: flags.Watts = None,
    seed: flags.Seed = 0,
    seeds: flags.Seeds = 1,
    results: flags.Results = Path("results"),
    no_save: flags.NoSave = False,
    timeline: flags.Timeline = None,
    json: flags.Json = False,
    no_progress: flags.NoProgress = False,
    formulas: flags.Formulas = False,
) -> None:
    """Replay TRACE under one or more schedulers and show who wins, and why.

    nexusbench serve-trace workloads/mixed.jsonl --scheduler nexus,vllm,sglang --goodput ttft:500
    """
    import_module("nexusbench.cli._asked").serve_asked(context)
